"""One run, end to end on real digits: what it writes, that it is done once, and how it ends when it cannot go on."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from neumann.config import make_spec
from neumann.errors import Interrupted, UserError
from neumann.models.classifiers import build_model
from neumann.store import RunFolder, find
from neumann.store.files import NotWritten, read_json
from neumann.store.session import Session
from neumann.store.steps import STEPS, read_lines
from neumann.store.vouching import CURVE, DIGEST
from neumann.training.checkpoints import Stream, decode
from neumann.training.run import run
from neumann.training.stopping import Stop
from tests.support.quick_runs import Train, quick

CLOCKS = ("train_seconds", "eval_seconds", "examples_per_second", "time", "first_step_at", "attempts")
CLOCKS = (*CLOCKS, DIGEST, CURVE, STEPS.key)  # digests cover clocks


def without_clocks(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in CLOCKS}


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder.eval_weights, weights_only=True)["state_dict"]
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.medium
def test_a_run_records_everything(train: Train) -> None:
    result, folder = train("optimizer=neumann", "seed=3")
    assert result["status"] == "finished"
    assert (result["step"], result["examples"], result["epoch"]) == (36, 36 * 64, 2.0)
    assert read_json(folder.path / "result.json") == json.loads(json.dumps(result))
    measured = folder.read_measurements()
    assert [m["step"] for m in measured] == [18, 36]
    assert [m["optimizer_step"] for m in measured] == [18, 36]
    assert measured[-1]["validation"] == result["validation"]
    assert measured[1]["train_loss"] < measured[0]["train_loss"]
    for split, n in (("validation", 300), ("test", 300)):
        assert set(result[split]) == {"held", "base", "average"}
        for scores in result[split].values():
            assert scores["n"] == n
            assert scores["error"] == scores["wrong"] / n
    assert result["test"]["base"]["error"] < 0.8  # ten classes: chance is 0.9
    config = OmegaConf.to_container(OmegaConf.load(folder.config))
    assert config == quick("optimizer=neumann", "seed=3").as_dict()
    assert read_json(folder.signed)["config"]["seed"] == 3
    attempt = read_json(folder.provenance)["attempts"][0]
    assert attempt["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert attempt["data"]["fingerprint"].startswith("content:")
    assert set(attempt["seeds"]) == {"initialisation", "order", "augmentation", "noise", "evaluation"}
    assert attempt["choices"]["optimizer"] == "neumann"
    assert folder.status()["status"] == "finished"
    names = {p.name for p in folder.path.iterdir() if not p.name.startswith(".claim.")}
    assert names == {
        "config.yaml", "signed.json", "provenance.json", "status.json", "measurements.jsonl", "steps.jsonl", "result.json", "eval-weights.pt",
        "test-correct.bin", "test-confusion.csv",
    }  # fmt: skip


@pytest.mark.medium
def test_a_finished_run_is_returned_at_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    first, folder = train("optimizer=sgd")
    before = {p.name: p.stat().st_mtime_ns for p in folder.path.iterdir()}
    monkeypatch.setattr("neumann.training.run.build_parts", None)  # nothing may be built again
    again, _ = train("optimizer=sgd", "name=another", "checkpoint=last")
    assert again == json.loads(json.dumps(first))
    assert {
        p.name: p.stat().st_mtime_ns for p in folder.path.iterdir() if not p.name.startswith(".claim.")
    }.items() <= before.items()


@pytest.mark.medium
def test_the_same_seed_gives_the_same_bits_and_another_does_not(train: Train) -> None:
    a, folder_a = train("optimizer=neumann", "study=a")
    b, folder_b = train("optimizer=neumann", "study=b")
    _, folder_c = train("optimizer=neumann", "study=a", "seed=1")
    assert same(weights(folder_a), weights(folder_b))
    assert a["validation"] == b["validation"]
    assert not same(weights(folder_a), weights(folder_c))


@pytest.mark.parametrize(
    ("optimizer", "points"), [("sgd", ["held"]), ("nesterov", ["held", "base"]), ("adam", ["held"])]
)
def test_every_point_that_an_optimizer_has_is_recorded(optimizer: str, points: list[str], train: Train) -> None:
    result, _ = train(f"optimizer={optimizer}", "trainer.max_epochs=1")
    assert list(result["validation"]) == points
    assert list(result["test"]) == points
    assert result["eval_point"] == points[-1]
    losses = {scores["loss"] for scores in result["validation"].values()}
    assert len(losses) == len(points)  # the points are different places


@pytest.mark.medium
@pytest.mark.parametrize(("optimizer", "own"), [("sgd", ["held"]), ("nesterov", ["held", "base"]), ("adam", ["held"])])
def test_an_average_is_recorded_beside_the_rest_and_changes_nothing_else(
    optimizer: str, own: list[str], train: Train
) -> None:
    result, folder = train(f"optimizer={optimizer}", "recipe.weight_average=0.9")
    plain, without = train(f"optimizer={optimizer}")
    assert result["signature"] != plain["signature"]
    assert result["eval_point"] == plain["eval_point"] == own[-1]
    assert same(weights(folder), weights(without))
    records = [*folder.read_measurements(), result, {"validation": result["test"]}]
    for record in records:
        assert list(record["validation"]) == [*own, "average"]
        assert len({scores["loss"] for scores in record["validation"].values()}) == len(own) + 1
    assert {point: result["test"][point] for point in own} == plain["test"]


@pytest.mark.medium
def test_neumann_keeps_its_own_average_where_the_recipe_asks_for_the_same(train: Train) -> None:
    result, folder = train("optimizer=neumann", "recipe.weight_average=0.99")
    plain, without = train("optimizer=neumann")
    assert list(result["validation"]) == ["held", "base", "average"]
    assert (result["validation"], result["test"]) == (plain["validation"], plain["test"])
    assert same(weights(folder), weights(without))


@pytest.mark.medium
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_an_average_is_of_the_type_of_the_weights_that_are_trained(precision: str, train: Train) -> None:
    choice = ("optimizer=sgd", "recipe.weight_average=0.9", "checkpoint=last", "trainer.max_epochs=1")
    _, folder = train(*choice, f"trainer.precision={precision}")
    state = torch.load(folder.last, weights_only=True)["weight_average"]
    assert state["gamma"] == 0.9
    dtype = torch.float64 if precision == "64-true" else torch.float32
    assert {v.dtype for group in state["averages"] for v in group} == {dtype}


@pytest.mark.medium
def test_evaluating_more_often_changes_nothing(train: Train) -> None:
    _, seldom = train("optimizer=neumann", "study=seldom", "trainer.check_val_every_n_epoch=2")
    often, folder = train("optimizer=neumann", "study=often", "trainer.check_val_every_n_epoch=0.2")
    assert len(folder.read_measurements()) == 9
    assert same(weights(seldom), weights(folder))
    assert often["best_validation_error"] <= often["validation"]["base"]["error"]


@pytest.mark.medium
def test_fractions_of_an_epoch_end_with_an_evaluation(train: Train) -> None:
    result, folder = train("optimizer=sgd", "trainer.max_epochs=1.4")
    assert result["step"] == 25
    assert [m["step"] for m in folder.read_measurements()] == [18, 25]


RESUMED = {
    "fresh": ("optimizer=two_loop_neumann", "optimizer.inner_data=fresh", "optimizer.inner_steps=1"),
    "two-loop": (
        "optimizer=two_loop_neumann",
        "optimizer.mu=0.9",
        "optimizer.beta=1e-3",
        "batch.max_per_device=32",
        "batch.norm_size=8",
    ),
    "neumann": ("optimizer=neumann", "timing.reset_period=0.5"),
    "average": ("optimizer=nesterov", "recipe.weight_average=0.9"),
    "burn-in": ("optimizer=sgd_burn_in", "timing.burn_in=1", "recipe.weight_average=0.9"),
}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        *(("neumann", step) for step in (1, 18, 25)),
        *(pytest.param("neumann", step, marks=pytest.mark.slow) for step in (17, 35)),
        pytest.param("average", 1, marks=pytest.mark.slow),
        ("average", 18),
        ("burn-in", 17),
        ("two-loop", 25),
        ("fresh", 17),
    ],
)
def test_ctrl_c_leaves_a_clean_run_that_goes_on_to_the_same_bits(
    optimizer: str, step: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before, at and after an evaluation (18) and in mid-epoch; compared with a run that was not stopped."""
    choice = (*RESUMED[optimizer], "+model.kwargs.drop_rate=0.2", "data.augmentation=crop")
    choice = (*choice, "trainer.log_every_n_steps=7", "trainer.track_update_norm=true")
    whole, untouched = train(*choice, "study=untouched")
    handler_before = signal.getsignal(signal.SIGINT)
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *words: Any) -> None:
        if words[-1] == step - 1:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
        original(self, *words)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted, match=f"stopped at step {step}"):
        train(*choice)
    folder = find(quick(*choice))
    assert folder.status()["status"] == "interrupted"
    assert folder.result() is None
    assert torch.load(folder.last, weights_only=True)["global_step"] == step
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # as another command would have it, which would round otherwise
    result, _ = train(*choice)
    torch.set_num_threads(threads)
    assert result["attempts"] == 2
    assert [each["torch_threads"] for each in read_json(folder.provenance)["attempts"]] == [threads, threads]
    assert same(weights(folder), weights(untouched))
    pairs = zip(folder.read_measurements(), untouched.read_measurements(), strict=True)
    assert all(without_clocks(a) == without_clocks(b) for a, b in pairs)
    found, expected = (list(map(without_clocks, read_lines(f.path, f.result()))) for f in (folder, untouched))
    assert [line["step"] for line in found] == [7, 14, 21, 28, 35, 36]
    assert found == expected
    assert without_clocks(result) == {**without_clocks(whole), "study": "default"}
    assert signal.getsignal(signal.SIGINT) is handler_before


@pytest.mark.parametrize(("variable", "wanted"), [(None, 1), ("2", 2)])
def test_torch_takes_no_more_threads_than_a_container_has_cores(
    train: Train, monkeypatch: pytest.MonkeyPatch, variable: str | None, wanted: int
) -> None:
    monkeypatch.setattr("neumann.training.run.cores", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(2)  # as torch itself counts, or was told
    _, folder = train("trainer.max_epochs=1")
    assert read_json(folder.provenance)["attempts"][0]["torch_threads"] == wanted


@pytest.mark.medium
@pytest.mark.parametrize("change", ["cut", "doubled", "edited", "removed"])
def test_a_resumed_runs_curve_comes_from_its_checkpoint(change: str, train: Train) -> None:
    """The file of the measurements may have lost lines or been edited since; a study would choose by them."""
    words = ("optimizer=sgd", "checkpoint=last", "trainer.check_val_every_n_epoch=0.4")
    whole, folder = train(*words)
    measured = folder.read_measurements()
    (folder.path / "result.json").unlink()
    lines = folder.measurements.read_text().splitlines(keepends=True)
    spoilt = {"cut": lines[:2], "doubled": [lines[0], *lines], "edited": [lines[0], *lines[1:-1], lines[0]]}
    if change == "removed":
        folder.measurements.unlink()
    else:
        folder.measurements.write_text("".join(spoilt[change]))
    with pytest.warns(UserWarning, match="restored"):
        result, _ = train(*words)
    assert without_clocks(result) == without_clocks(whole)
    assert folder.read_measurements() == measured


@pytest.mark.medium
def test_without_checkpoints_an_interrupted_run_begins_again(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *words: Any) -> None:
        if words[-1] == 19:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGTERM)
        original(self, *words)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted, match=r"s0, without a checkpoint$") as caught:
        train("checkpoint=none")
    assert caught.value.again == "begins anew"
    folder = find(quick("checkpoint=none"))
    assert not folder.last.exists()
    train("checkpoint=none")
    assert [m["step"] for m in folder.read_measurements()] == [18, 36]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("at", "said", "again"),
    [
        (4, "stopped at step 3 of digits-small_cnn-sgd-s0, without a checkpoint", "begins anew"),
        (
            20,
            "stopped at step 19 of digits-small_cnn-sgd-s0, whose last checkpoint is of step 18",
            "goes on from there",
        ),
    ],
)
def test_a_second_ctrl_c_stops_at_once_and_says_what_is_kept(
    at: int, said: str, again: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Stop.on_train_batch_end

    def stop_at_once(self: Stop, *words: Any) -> None:
        if words[-1] == at - 1:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        original(self, *words)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_at_once)
    with pytest.raises(Interrupted) as caught:
        train("optimizer=sgd")
    assert (str(caught.value), caught.value.again) == (said, again)
    folder = find(quick("optimizer=sgd"))
    assert folder.status()["status"] == "interrupted"
    assert folder.last.exists() == (at > 18)
    result, _ = train("optimizer=sgd")
    assert result["status"] == "finished"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("keep", "files"),
    [("none", set()), ("last", {"last.ckpt", "eval-weights.pt"}), ("eval_weights", {"eval-weights.pt"})],
)
def test_what_is_kept_is_a_setting(keep: str, files: set[str], train: Train) -> None:
    result, folder = train("optimizer=neumann", f"checkpoint={keep}")
    assert {p.name for p in folder.path.iterdir() if p.suffix in (".ckpt", ".pt")} == files
    if keep == "none":
        return
    kept = torch.load(folder.eval_weights, weights_only=True)
    assert kept["point"] == "base"
    model = build_model(
        kept["model"]["name"],
        kept["model"]["kwargs"],
        in_chans=kept["model"]["in_chans"],
        num_classes=kept["model"]["num_classes"],
        image_size=tuple(kept["data"]["image_size"]),
    )
    model.load_state_dict(kept["state_dict"])
    model.eval()
    from neumann.data.module import build

    spec = quick("optimizer=neumann")
    data = build(spec.config.data, spec.facts, batch_size=64, seed=0)
    with torch.no_grad():
        wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in data.test_dataloader())
    assert wrong == result["test"]["base"]["wrong"]


@pytest.mark.medium
def test_divergence_is_a_result(train: Train) -> None:
    result, folder = train("optimizer=sgd", "optimizer.lr=1e38", "schedule=constant")
    assert result["status"] == "diverged"
    assert result["test"] is None
    assert folder.status()["status"] == "diverged"
    assert not folder.eval_weights.exists()
    assert train("optimizer=sgd", "optimizer.lr=1e38", "schedule=constant")[0]["time"] == result["time"]
    assert json.loads((folder.path / "result.json").read_text())["train_loss"] is None


FAILS_LATE = """
import torch

class FailsLate(torch.optim.SGD):
    failing = True
    steps = 0

    def step(self, closure=None):
        FailsLate.steps += 1
        if FailsLate.failing and FailsLate.steps == 20:
            raise RuntimeError("the cat pulled the plug")
        return super().step(closure)
"""


@pytest.mark.medium
def test_a_failure_is_recorded_and_tried_again(
    train: Train, own_group: Callable[[str, str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(FAILS_LATE)
    monkeypatch.syspath_prepend(str(tmp_path))
    dirs = (own_group("optimizer", "mine", "_target_: failing.FailsLate\nlr: 0.1\n"),)
    with pytest.raises(RuntimeError, match="the cat"):
        train("optimizer=mine", dirs=dirs)
    folder = find(quick("optimizer=mine", dirs=dirs))
    assert folder.status()["status"] == "failed"
    assert folder.status()["message"] == "the cat pulled the plug"
    assert "FailsLate" not in folder.status()["message"]
    assert 'raise RuntimeError("the cat pulled the plug")' in folder.error.read_text()
    sys.modules["failing"].FailsLate.failing = False
    result, _ = train("optimizer=mine", dirs=dirs)
    assert result["status"] == "finished"
    assert not folder.error.exists()


@pytest.mark.medium
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.name=small_cn"], "timm has no such model: did you mean 'small_cnn'"),
        (["model=timm", "model.name=resnet18", "+model.kwargs.colour=3"], "model.name=resnet18 has no setting"),
        (["optimizer.alpha=-1"], "optimizer: Neumann refuses its settings"),
        (["optimizer.alpha=null"], "null"),
        (
            ["optimizer=torch", "optimizer.name=ASGD", "+optimizer.kwargs.lambd=x"],
            "optimizer.kwargs.lambd=x is not a number: ASGD has lambd=0.0001 by itself",
        ),
        (
            ["optimizer=torch", "optimizer.name=sgd", "+optimizer.kwargs.momentum=null"],
            "optimizer: sgd refuses momentum=null: give it a value",
        ),
        (["optimizer=timm", "optimizer.name=lion", "+optimizer.kwargs.beta=0.9"], "optimizer: lion takes no 'beta'"),
        (["optimizer=timm", "optimizer.name=lion", "+optimizer.kwargs.opt=3"], "takes no 'opt': it is set here"),
        (["optimizer=torch", "optimizer.name=12"], "optimizer.name=12 is not a word"),
        (["optimizer.beta_count=tensor"], "tensors"),
        (["optimizer=timm", "optimizer.name=adoptt"], "timm has no optimizer 'adoptt': did you mean 'adopt'"),
        (["optimizer=torch", "optimizer.name=Adagrd"], "did you mean 'Adagrad'"),
        (["optimizer=torch", "optimizer.name=adagrad", "+optimizer.kwargs.epz=1"], "did you mean 'eps'"),
        (["optimizer=sgd", "optimizer.momentum=-1"], "optimizer.momentum=-1 is out of range"),
        (["schedule=synchronous", "schedule.factor=-1"], "schedule.factor=-1 is out of range: it must be above 0"),
        (["schedule.ramp_steps=-1"], "schedule.ramp_steps=-1 is out of range"),
        (
            ["schedule=synchronous", "schedule.every_steps=0"],
            "schedule.every_steps=0 is out of range: it must be at least 1",
        ),
        (["optimizer=torch", "optimizer.name=LBFGS"], "cannot be trained here: it evaluates the loss several times"),
        (["optimizer=timm", "optimizer.name=adahessian"], "cannot be trained here"),
        (["optimizer=torch", "optimizer.name=SGD", "optimizer.kwargs.lr=3"], "set optimizer.lr alone"),
        (["optimizer._target_=os.system"], "is not a torch.optim.Optimizer"),
        (["optimizer._target_=torch.optim.SDG"], "cannot be imported: torch.optim has no SDG: did you mean 'SGD'?"),
        (["optimizer._target_=nowhere.Mine"], "cannot be imported: Are you sure that module 'nowhere' is installed?"),
        (["recipe.weight_average=1"], "recipe.weight_average=1.0 is out of range: it must be at least 0 and below 1"),
        (["recipe.weight_average=-0.1"], "recipe.weight_average=-0.1 is out of range"),
        (["recipe.weight_average=nan"], "recipe.weight_average=nan is out of range"),
        (["recipe.weight_average=0.9"], "recipe.weight_average=0.9 is not optimizer.gamma=0.99: Neumann keeps an"),
        (
            ["optimizer=timm", "optimizer.name=lookahead_sgd", "recipe.weight_average=0.9"],
            "recipe.weight_average=0.9: Lookahead runs no step hooks of its own",
        ),
        (["trainer.accelerator=gpu"], "torch sees no CUDA device"),
        (["trainer.precision=16-mixed"], "needs a GPU"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_is_refused_before_training_leaves_nothing_behind(
    overrides: list[str], sentence: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "gpu" in overrides[0] and torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the test wants missing")
    monkeypatch.setenv("HOME", str(tmp_path))  # where no login to W&B lies
    with pytest.raises(UserError) as caught:
        train(*overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_a_refused_run_leaves_the_users_own_folder_where_it_is(train: Train, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(UserError):
        train("optimizer.lr=-1", f"output={own}")
    assert own.is_dir()
    assert not list(own.iterdir())


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(("share", "written"), [(math.inf, [18, 36, 54]), (1e-9, [18, 54])])
def test_evaluations_are_followed_by_a_checkpoint_where_writing_takes_little_of_the_time_and_the_last_always(
    share: float, written: list[int], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr("neumann.training.checkpoints.WRITING_SHARE", share)
    write = Session.checkpoint

    def noted(self: Session, content: bytes) -> None:
        steps.append(decode(io.BytesIO(content))["global_step"])
        write(self, content)

    monkeypatch.setattr(Session, "checkpoint", noted)
    _, folder = train("trainer.max_epochs=3")
    assert steps == written
    assert [line["step"] for line in folder.read_measurements()] == [18, 36, 54]


@pytest.mark.medium
@pytest.mark.parametrize(
    "damage",
    [
        cut,
        pytest.param(flip, marks=pytest.mark.slow),
        lambda content: b"",
        pytest.param(lambda content: b"not a checkpoint", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("files", "goes_on_at", "words"),
    [(("last.ckpt",), 36, "goes on from the one before"), (("last.ckpt", "previous.ckpt"), 0, "the run begins again")],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    files: tuple[str, ...],
    goes_on_at: int,
    words: str,
    damage: Callable[[bytes], bytes],
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = ("optimizer=neumann", "+model.kwargs.drop_rate=0.2", "trainer.max_epochs=3")
    whole, untouched = train(*choice, "study=untouched")
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *place: Any) -> None:
        if place[-1] == 40:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGUSR1)
        original(self, *place)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    monkeypatch.setattr("neumann.training.checkpoints.WRITING_SHARE", math.inf)  # a checkpoint after every evaluation
    with pytest.raises(Interrupted):
        train(*choice)
    folder = find(quick(*choice))
    assert decode(io.BytesIO(folder.last.read_bytes()))["global_step"] == 41
    assert decode(io.BytesIO((folder.path / "previous.ckpt").read_bytes()))["global_step"] == 36
    for name in files:
        (folder.path / name).write_bytes(damage((folder.path / name).read_bytes()))
    began_at: list[int] = []
    stream = Stream.__iter__
    monkeypatch.setattr(Stream, "__iter__", lambda self: began_at.append(self._first) or stream(self))
    with pytest.warns(UserWarning, match=words):
        result, _ = train(*choice)
    assert set(began_at) == {goes_on_at}
    assert same(weights(folder), weights(untouched))
    assert without_clocks(result) == {**without_clocks(whole), "study": "default"}


@pytest.mark.medium
def test_plain_lines_off_a_terminal_and_a_bar_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neumann.training.display.REFRESH_S", 0.0)  # else the run is over before the first refresh
    plain, fancy = io.StringIO(), io.StringIO()
    run(quick("optimizer=sgd", "study=plain"), Console(file=plain, width=200))
    lines = plain.getvalue().splitlines()
    assert len(lines) == 2
    assert "step 36/36" in lines[1]
    assert "val error" in lines[1]
    assert "lr " in lines[1]
    run(quick("optimizer=sgd", "study=fancy"), Console(file=fancy, width=200, force_terminal=True))
    assert fancy.getvalue().startswith("digits-small_cnn-sgd-s0\n")
    assert re.search(r"36/36\S* lr .* loss .* val error .* % .* it/s", fancy.getvalue())
    assert "step 36/36" not in fancy.getvalue()  # no plain lines beside the bar


def test_a_signed_default_run_is_what_the_readme_says() -> None:
    assert make_spec([]).name == "digits-small_cnn-neumann-s0"


def test_ctrl_c_before_training_leaves_nothing_behind(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neumann.store.session.provenance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("optimizer=sgd")
    assert not Path("runs").exists()


@pytest.mark.medium
def test_label_smoothing_reaches_training(train: Train) -> None:
    plain, _ = train("optimizer=sgd", "trainer.max_epochs=1")
    smooth, _ = train("optimizer=sgd", "trainer.max_epochs=1", "recipe.label_smoothing=0.2")
    assert smooth["train_loss"] != plain["train_loss"]


@pytest.mark.medium
def test_another_runs_result_is_not_taken_for_this_ones(train: Train) -> None:
    _, other = train("seed=1")
    folder = find(quick())
    folder.path.mkdir(parents=True)
    result = other.path / "result.json"
    (folder.path / "result.json").write_bytes(result.read_bytes())
    with pytest.raises(UserError, match=rf"result.json is that of the run {other.path.name[-12:]}: move it away"):
        train()
    assert (folder.path / "result.json").read_bytes() == result.read_bytes()


@pytest.mark.medium
def test_half_a_result_is_none(train: Train) -> None:
    folder = find(quick())
    folder.path.mkdir(parents=True)
    (folder.path / "result.json").write_text('{"status": "finished"}')
    result, _ = train()
    assert result["step"] == 36


@pytest.mark.medium
def test_a_pipe_in_the_place_of_a_checkpoint_is_not_waited_for(train: Train) -> None:
    folder = find(quick())
    folder.path.mkdir(parents=True)
    os.mkfifo(folder.last)
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged .*it is not a regular file.* the run begins again"):
        result, _ = train()
    assert result["step"] == 36


def test_what_fails_before_the_mirror_has_begun_is_what_is_said(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any, **more: Any) -> None:
        raise NotWritten("the disk is full")

    monkeypatch.setattr(RunFolder, "set_status", full)
    with pytest.raises(NotWritten, match="the disk is full"):
        train("logger=wandb")


@pytest.mark.medium
def test_variables_of_lightnings_trainer_leave_a_run_as_it_is(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = train("optimizer=sgd", "trainer.max_epochs=1")
    for name, value in (("GRADIENT_CLIP_VAL", "1e-6"), ("LIMIT_TRAIN_BATCHES", "0"), ("ACCUMULATE_GRAD_BATCHES", "4")):
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    found, folder = train("optimizer=sgd", "trainer.max_epochs=1", "study=other")
    assert found["validation"] == expected["validation"]
    record = json.loads(folder.provenance.read_text())["attempts"][-1]
    assert Path(record["package"], "training", "run.py").is_file()
