"""`neumann evaluate`: the own test split gives the recorded error again; other sets go by the names of their classes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neumann.cli.main import main
from neumann.store import per_image
from neumann.store.files import read_json, write_json
from neumann.studies.report.figures.confusion import confusion_figure, worst
from tests.support.image_folders import coloured

EARLIER = ("test_correct", "digest", "measurements_digest", "steps_digest", "code")  # what results had not

pytestmark = pytest.mark.medium
FILES = {"evaluation.json", "classes.csv", "confusion.csv", "images.csv", "confusion.svg", "confusion.png"}
RUNS: dict[str, tuple[str, ...]] = {
    "memory": ("+model.kwargs.width=4", "data.in_memory=true"),
    "streamed": ("+model.kwargs.width=4", "data.in_memory=false", "data.workers=0", "data.image_size=10"),
    "bf16": ("+model.kwargs.width=4", "trainer.precision=bf16-mixed"),
    "double": ("+model.kwargs.width=4", "trainer.precision=64-true"),
    "ghosts": ("+model.kwargs.width=4", "batch.norm_size=4", "batch.max_per_device=8"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with trained runs, and their images."""
    place = tmp_path_factory.mktemp("place")
    coloured(place / "images")
    words = ["train", "trainer.max_epochs=2", "batch.size=16", "logger=none", "optimizer=neumann", "data=image_folder"]
    for study, more in RUNS.items():
        assert main([*words, f"data.root={place / 'images'}", f"output={place / 'runs'}", f"study={study}", *more]) == 0
    return place


def run_of(place: Path, study: str = "memory") -> Path:
    (folder,) = (place / "runs" / study).glob("*-*[0-9a-f]")
    return folder


def scored(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return content


def rows(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))


@pytest.mark.parametrize("study", RUNS)
def test_its_own_test_split_gives_the_recorded_error_to_the_image(
    study: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(place, study)
    assert main(["evaluate", str(folder), "--to", "out"]) == 0
    assert "as recorded, image by image" in capsys.readouterr().out
    found, result = scored(Path("out")), read_json(folder / "result.json")
    recorded = result["test"]["base"]
    assert (found["wrong"], found["n"], found["error"]) == (recorded["wrong"], recorded["n"], recorded["error"])
    assert found["loss"] == pytest.approx(recorded["loss"], rel=1e-5)
    right = [row[1] == row[2] for row in rows(Path("out/images.csv"))[1:]]
    assert right == per_image.read(folder, result)["test.base"].tolist()


def test_every_file_says_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(place)
    assert main(["evaluate", folder.name, f"output={place / 'runs'}"]) == 0
    said = capsys.readouterr().out
    home = folder.parent / f"{folder.name}.evaluations"
    out = home / "images-test"
    assert {path.name for path in out.iterdir()} == FILES
    found = scored(out)
    matrix = np.array([[int(cell) for cell in row[1:]] for row in rows(out / "confusion.csv")[1:]])
    assert rows(out / "confusion.csv")[0] == ["class", "cat", "dog", "emu"]
    assert matrix.sum() == found["n"] == 18
    assert matrix.sum() - np.trace(matrix) == found["wrong"]
    images = rows(out / "images.csv")[1:]
    for a, name in enumerate(("cat", "dog", "emu")):
        for b, other in enumerate(("cat", "dog", "emu")):
            assert matrix[a, b] == sum(row[1:3] == [name, other] for row in images)
    classes = [dict(zip(rows(out / "classes.csv")[0], row, strict=True)) for row in rows(out / "classes.csv")[1:]]
    assert [int(one["n"]) for one in classes] == matrix.sum(axis=1).tolist()
    assert [int(one["wrong"]) for one in classes] == (matrix.sum(axis=1) - np.diag(matrix)).tolist()
    losses = np.array([float(row[3]) for row in images])
    half = 1.959964 * losses.std(ddof=1) / 18**0.5
    assert found["loss"] == pytest.approx(losses.mean())
    assert found["loss_high"] == pytest.approx(losses.mean() + half, rel=1e-5)
    assert found["error_low"] < found["error"] < found["error_high"]
    assert f"{100 * found['error']:.2f} %" in said
    attempt = read_json(folder / "provenance.json")["attempts"][-1]
    assert found["run"]["signature"] == folder.name[-12:]
    assert found["data"]["fingerprint"] == attempt["data"]["fingerprint"]
    assert found["code"]["neumann"] == attempt["code"]["neumann"]
    assert {"packages", "git", "host", "device", "time"} <= found.keys()
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["evaluate", str(folder)]) == 0
    assert {path.name for path in home.iterdir()} == {"images-test", "images-test-2"}
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert main(["evaluate", str(folder), "--to", str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main(["runs", str(place / "runs")]) == 0
    assert "images-test" not in capsys.readouterr().out


def test_a_run_that_keeps_no_answers_by_image_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Path(shutil.copytree(run_of(place), Path("old") / run_of(place).name))
    result = read_json(old / "result.json")
    write_json(old / "result.json", {k: v for k, v in result.items() if k not in EARLIER})
    assert main(["evaluate", str(old), "--to", "out"]) == 0
    assert "as recorded; which images were right is not recorded, as in runs of earlier" in capsys.readouterr().out
    assert scored(Path("out"))["run"]["changed"] is None


def test_another_folder_is_scored_by_the_names_of_its_classes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set with fewer classes, in another order of labels, one image each: the answers are those of predict."""
    other = tmp_path / "other"
    for name, count in (("emu", 2), ("cat", 1)):
        (other / name).mkdir(parents=True)
        for i in range(count):
            shutil.copy(place / "images" / name / f"{i:03}.png", other / name / f"{i}.png")
    Image.open(other / "cat" / "0.png").resize((30, 24)).save(other / "cat" / "1.png")
    folder = run_of(place)
    assert main(["evaluate", str(folder), "data=image_folder", f"data.root={other}", "--to", "out"]) == 0
    assert "classes of the run without images: dog" in capsys.readouterr().out
    found = scored(Path("out"))
    assert (found["n"], found["data"]["split"], found["data"]["absent_classes"]) == (4, "all", ["dog"])
    assert [one["n"] for one in found["classes"]] == [2, 0, 2]
    assert found["classes"][1]["error"] is None
    assert "recorded" not in found["run"]
    paths = [f"{name}/{i}.png" for name in ("cat", "emu") for i in (0, 1)]
    assert main(["predict", str(folder), *(str(other / path) for path in paths), "--json", "--topk", "1"]) == 0
    told = [one["classes"][0]["class"] for one in json.loads(capsys.readouterr().out)]
    assert [row[:3] for row in rows(Path("out/images.csv"))[1:]] == [
        [path, path.split("/")[0], name] for path, name in zip(paths, told, strict=True)
    ]


def test_the_same_images_given_as_a_set_are_the_same_test_split(place: Path) -> None:
    words = ["data=image_folder", f"data.root={place / 'images'}", "--to"]
    for study in ("memory", "streamed"):
        assert main(["evaluate", str(run_of(place, study)), *words, study]) == 0
        found, recorded = scored(Path(study)), read_json(run_of(place, study) / "result.json")["test"]["base"]
        assert (found["n"], found["data"]["split"]) == (18, "test")
        assert (found["wrong"], found["loss"]) == (recorded["wrong"], pytest.approx(recorded["loss"], rel=1e-5))
    assert main(["evaluate", str(run_of(place)), *words, "all", "--split", "all"]) == 0
    assert scored(Path("all"))["n"] == 90


def test_images_that_have_moved_are_found_and_changed_ones_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(place / "images", tmp_path / "moved"))
    assert main(["evaluate", str(run_of(place)), f"data.root={moved}", "--to", "out"]) == 0
    assert "as recorded" in capsys.readouterr().out
    (moved / "cat" / "000.png").unlink()
    assert main(["evaluate", str(run_of(place)), f"data.root={moved}", "--to", "again"]) == 2
    assert "the images that the run was trained on have changed" in capsys.readouterr().err
    assert not Path("again").exists()


def test_wrong_words_are_one_sentence(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coloured(tmp_path / "strange", ("cat", "dug", "yak"), count=2)
    (tmp_path / "broken" / "cat").mkdir(parents=True)
    (tmp_path / "broken" / "dog").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "broken" / name / "0.png").write_bytes(b"no image")
    set_ = "data=image_folder"
    for words, said in (
        ((set_, f"data.root={tmp_path / 'strange'}"), "the class 'dug' and 1 more of the set is none of the run's 3, and classes are matched by name: did you mean 'dog'?"),
        ((set_, f"data.root={tmp_path / 'broken'}"), "is not a readable image (no known image format); 2 of the 2"),
        ((set_, f"data.root={place / 'images'}", "data.image_size=8"), "images are prepared as they were for the run's own network"),
        ((set_,), "data=image_folder needs data.root"),
        (("data=fashion14",), "has images of 14×14 pixels and 1 channel(s), and the run takes 12×12 pixels and 3 channel(s)"),
        (("data=imagefolder",), "did you mean data=image_folder"),
        (("data.split_seed=1",), "would make other images of the run's own set"),
        (("optimizer=sgd",), "takes no 'optimizer=sgd', only data=..."),
        (("--split", "tests"), "--split tests is not a choice: did you mean 'test'?"),
        (("--batch-size", "0"), "--batch-size 0: give 1 or more"),
        ((f"data.root={place}", f"data.root={place}"), "both set data.root"),
    ):  # fmt: skip
        assert main(["evaluate", str(run_of(place)), *words, "--to", "out"]) == 2
        assert said in " ".join(capsys.readouterr().err.split()), words
        assert not Path("out").exists()


def test_a_confusion_matrix_of_any_size_is_drawn() -> None:
    for count in (2, 10, 41, 300):
        matrix = np.diag(np.arange(count)) + np.eye(count, k=1, dtype=int)
        names = [f"class {i} with a long name" for i in range(count)]
        drawing = confusion_figure(matrix, names)
        assert drawing.svg.startswith(b"<?xml")
        assert (b"class 1" in drawing.svg) == (count <= 40)
        assert drawing == confusion_figure(matrix, names)
    assert worst(np.array([[5, 2], [3, 1]])) == [(1, 0, 3), (0, 1, 2)]
