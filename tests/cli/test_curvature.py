"""`neumann curvature`: the eigenvalues are those of the exact Hessian at the run's weights, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neumann.cli.main import main
from neumann.cli.own_images import own_section, recorded_data
from neumann.curvature import spectral_density
from neumann.data.other_sets import own_images
from neumann.data.splits import order
from neumann.studies.report.figures.density import density_figure
from neumann.training.scored import own_batches
from neumann.training.trained import read
from tests.support import two_heads
from tests.support.known_curvature import Matrix, exact_gauss_newton, exact_hessian, with_spectrum

pytestmark = pytest.mark.medium

RUNS: dict[str, tuple[str, ...]] = {
    "heads": (*two_heads.WORDS, "+model.kwargs.width=2", "optimizer=neumann", "recipe.label_smoothing=0.1"),
    "double": ("model=mlp", "+model.kwargs.width=3", "+model.kwargs.depth=1", "optimizer=sgd", "trainer.precision=64-true"),
}  # fmt: skip
QUICK = ("trainer.max_epochs=1", "batch.size=128", "logger=none")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with trained runs."""
    place = tmp_path_factory.mktemp("place")
    for study, more in RUNS.items():
        assert main(["train", *QUICK, f"output={place / 'runs'}", f"study={study}", *more]) == 0
    return place


def run_of(place: Path, study: str) -> Path:
    (folder,) = (place / "runs" / study).glob("*-????????????")
    return folder


def measured(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "curvature.json").read_text(encoding="utf-8"))
    return content


class _Main(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.network(x)
        logits: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return logits


def exact(folder: Path, matrix: Any, smoothing: float, count: int, seed: int) -> torch.Tensor:
    """Return the eigenvalues of the whole matrix at the run's weights, by torch.func on one batch in float64."""
    run = read(folder)
    data = own_section(run, [])
    chosen = own_images(data, recorded_data(run), "train")
    batches = own_batches(run, data, chosen, batch_size=len(chosen.indices), device=torch.device("cpu"))
    ((images, labels),) = list(batches)
    some = order(len(labels), (seed,))[:count]
    model = _Main(run.network()[0]).double()
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    values: torch.Tensor = torch.linalg.eigvalsh(matrix(model, loss, images[some].double(), labels[some]))
    return values


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_both_ends_are_those_of_the_exact_matrix(matrix: str, place: Path) -> None:
    """Of a network with a second head, batch norm and label smoothing, at Neumann's base point."""
    folder = run_of(place, "heads")
    more = ["--matrix", matrix, "--images", "30", "-b", "16", "--seed", "2", "--float64", "--tolerance", "1e-6"]
    assert main(["curvature", str(folder), *more, "--iterations", "400", "--to", matrix]) == 0
    found = measured(Path(matrix))
    whole = exact_hessian if matrix == "hessian" else exact_gauss_newton
    values = exact(folder, whole, 0.1, 30, 2)
    assert (found["lambda_min"], found["lambda_max"]) == pytest.approx((float(values[0]), float(values[-1])), abs=1e-5)
    if matrix == "hessian":  # the smoothing is in the loss; Gauss-Newton's inner Hessian knows no targets
        assert abs(found["lambda_max"] - exact(folder, whole, 0.0, 30, 2)[-1]) > 1e-3
    assert found["converged"] is True
    assert found["mu"] == pytest.approx(float(values[-1] / (values[0].abs() + values[-1])))
    assert found["eta"] == pytest.approx(1 / float(values[-1]))
    assert found["parameters"] == len(values)
    assert (found["dtype"], found["label_smoothing"], found["run"]["point"]) == ("float64", 0.1, "base")
    assert found["rate"] == json.loads((folder / "result.json").read_text())["lr"]["scaled"]
    assert found["lambda_max_times_rate"] == pytest.approx(found["rate"] * float(values[-1]))


def test_a_run_in_double_is_measured_in_double_and_beside_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(place, "double")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    words = ["-n", "40", "--density"]
    assert main(["curvature", folder.name[-12:-4], f"output={place / 'runs'}", *words]) == 0
    said = capsys.readouterr().out
    home = folder.parent / f"{folder.name}.curvature"
    found = measured(home / "hessian-40")
    assert found["dtype"] == "float64"
    values = exact(folder, exact_hessian, 0.0, 40, 0)
    for name, value in (("lambda_max", values[-1]), ("lambda_min", values[0])):
        assert (values - found[name]).abs().min() <= found[f"{name}_residual"] <= 1e-3 * float(values[-1])
        assert found[name] == pytest.approx(float(value), abs=1e-2 * float(values[-1]))
    assert f"{found['lambda_max']:.4g}" in said
    assert f"{found['gradient_evaluations']} gradient evaluations of all the images" in said
    assert "held point: the Hessian of the mean loss on 40 training images\n" in said  # it has no batch norm
    assert found["batch_norm"] is None
    assert found["code"]["neumann"] == json.loads((folder / "provenance.json").read_text())["attempts"][-1]["code"]["neumann"]  # fmt: skip
    assert {path.name for path in (home / "hessian-40").iterdir()} == {"curvature.json", "density.svg", "density.png"}
    density = found["density"]
    assert sum(density["weights"]) == pytest.approx(1)
    trace = sum(w * node for w, node in zip(density["weights"], density["nodes"], strict=True))
    spread = float(values.std()) * (2 / len(values) / density["probes"]) ** 0.5  # of the mean over the probes
    assert trace == pytest.approx(float(values.mean()), abs=4 * spread)
    assert main(["curvature", str(folder), *words]) == 0
    again = measured(home / "hessian-40-2")
    assert {k: v for k, v in again.items() if k not in ("time", "seconds")} == {
        k: v for k, v in found.items() if k not in ("time", "seconds")
    }
    assert main(["curvature", str(folder), "-n", "40", "--to", str(home / "hessian-40")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert measured(home / "hessian-40") == found
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["runs", str(place / "runs")]) == 0
    assert "hessian-40" not in capsys.readouterr().out


@pytest.mark.parametrize("values", [[-8.0] + [0.0] * 50 + [25.0], [3.0], [0.0, 0.0], [1e-9, 1e9]])
def test_any_density_is_drawn(values: list[float]) -> None:
    found = spectral_density(Matrix(with_spectrum(values)), iterations=5, probes=2)
    ends = (min(values), max(values))
    drawing = density_figure(found.grid.tolist(), found.density.tolist(), ends, len(values))
    assert drawing.svg.startswith(b"<?xml")
    assert f"λ_max = {max(values):.3g}".encode() in drawing.svg
    assert drawing == density_figure(found.grid.tolist(), found.density.tolist(), ends, len(values))


def test_several_runs_are_a_table_and_an_array(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in figure 4 of the paper: 10 iterations for λ_max, and 10 of the shifted Hessian."""
    folders = [run_of(place, study) for study in RUNS]
    words = [*map(str, folders), "-n", "16", "--iterations", "10", "--tolerance", "0", "--shift"]
    assert main(["curvature", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [measured(folder.parent / f"{folder.name}.curvature" / "hessian-16") for folder in folders]
    for folder, one, line in zip(folders, found, lines[1:], strict=False):
        assert folder.name in line
        told = [f"{one[key]:.4g}".replace("-", "−") for key in ("lambda_max", "lambda_max_residual", "lambda_min", "lambda_min_residual")]  # fmt: skip
        assert line.split()[1:5] == told
        assert line.split()[-1] == "40"
        assert (one["iterations"], one["tolerance"], one["shifted"], one["converged"]) == (10, None, True, None)
    assert main(["curvature", *words, "--json"]) == 0
    told_json = json.loads(capsys.readouterr().out)
    assert [one["lambda_max"] for one in told_json] == [one["lambda_max"] for one in found]


def test_batch_norm_may_be_held_at_the_statistics_of_the_images(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(place, "heads")
    for which in ("eval", "batch"):
        words = ["-n", "20", "-b", "7", "--batch-norm", which, "--iterations", "3", "--to", which]
        assert main(["curvature", str(folder), *words]) == 0
    eval_, batch = (measured(Path(which)) for which in ("eval", "batch"))
    assert (eval_["batch_norm"], batch["batch_norm"]) == ("eval", "batch")
    assert eval_["lambda_max"] != pytest.approx(batch["lambda_max"], rel=1e-3)
    assert eval_["converged"] is False
    assert "not within 0.001 of λ_max after 3 iterations: give more of them" in capsys.readouterr().out
    assert main(["curvature", str(run_of(place, "double")), "--batch-norm", "batch", "--to", "none"]) == 2
    assert "the model has no batch norm" in capsys.readouterr().err
    assert not Path("none").exists()


def test_wrong_words_are_one_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(run_of(place, "double"))
    for words, said in (
        ((), "takes a run or several"),
        ((run, "data=cifar10"), "takes no 'data=cifar10': it measures on images that the run was trained on"),
        ((run, "data.image_size=8"), "'data.image_size=8' would make other images of the run's own set"),
        ((run, "data.root=a", "data.root=b"), "both set data.root"),
        ((run, "data.root=a"), "the run's data.kind=digits has no such setting"),
        ((run, "--images", "0"), "--images 0: give 1 or more"),
        ((run, "--images", "9999"), "--images 9999: the run's train split has 1,197 images"),
        ((run, "--iterations", "0"), "--iterations 0: give 1 or more"),
        ((run, "--batch-size", "0"), "--batch-size 0: give 1 or more"),
        ((run, "--seed", "-1"), "--seed -1: give 0 or more"),
        ((run, "--tolerance", "1"), "--tolerance 1: give a share of λ_max below 1, or 0 for a fixed number"),
        ((run, "--matrix", "gauss"), "--matrix gauss is not a choice: did you mean 'gauss-newton'?"),
        ((run, "--batch-norm", "bath"), "--batch-norm bath is not a choice: did you mean 'batch'?"),
        ((run, "--to", ""), "--to is empty: name a folder"),
        ((run, run, "--to", "out"), "--to is the folder of one run, and 2 are given"),
        ((run, "--device", "cuda:77"), "--device cuda:77 cannot be used here"),
    ):  # fmt: skip
        assert main(["curvature", *words]) == 2
        assert said in " ".join(capsys.readouterr().err.split()), words
    assert not Path("out").exists()
