"""`neumann predict`: the run's own classes and probabilities, whatever is damaged, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neumann.cli.main import main
from neumann.store import per_image
from neumann.store.files import read_json
from neumann.training.trained import read
from tests.support.image_folders import coloured

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a trained run, and its images."""
    place = tmp_path_factory.mktemp("place")
    coloured(place / "images")
    words = ["trainer.max_epochs=3", "batch.size=16", "+model.kwargs.width=4", "logger=none", "optimizer=neumann"]
    more = ["data=image_folder", f"data.root={place / 'images'}", f"output={place / 'runs'}"]
    assert main(["train", *words, *more]) == 0
    return place


def run_of(place: Path) -> Path:
    (folder,) = (place / "runs" / "default").glob("*-*[0-9a-f]")
    return folder


def predicted(place: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["predict", str(run_of(place)), *words]) == code
    said = capsys.readouterr()
    return said.out, said.err


def test_the_recorded_answers_come_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from neumann.config import load_spec
    from neumann.store.records import read_record

    folder = run_of(place)
    examples = load_spec(read_record(folder)).facts.examples
    files = [place / "images" / examples.paths[i] for i in examples.test]
    out, _ = predicted(place, capsys, *map(str, files), "--json", "--batch-size", "4")
    found = json.loads(out)
    assert [one["image"] for one in found] == [str(file) for file in files]
    right = [one["classes"][0]["class"] == file.parent.name for one, file in zip(found, files, strict=True)]
    assert right == per_image.read(folder, read_json(folder / "result.json"))["test.base"].tolist()
    for one in found:
        values = [each["probability"] for each in one["classes"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-6)


def test_the_probabilities_are_the_networks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = read(run_of(place))
    model, _ = run.network()
    file = place / "images" / "dog" / "003.png"
    pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (run.mean, run.std))
    with torch.no_grad():
        expected = model((pixels - mean) / std).softmax(1)[0]
    out, _ = predicted(place, capsys, str(file), "--json")
    for one in json.loads(out)[0]["classes"]:
        assert one["probability"] == pytest.approx(expected[one["index"]].item(), abs=1e-5)
        assert one["class"] == ("cat", "dog", "emu")[one["index"]]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_damaged_image_is_a_line_and_the_others_go_on(
    workers: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = coloured(tmp_path / "new" / "below", count=30, sizes=((12, 12), (40, 30)))
    whole = (folder / "dog" / "001.png").read_bytes()
    (folder / "dog" / "001.png").write_bytes(whole[:100])
    (folder / "dog" / "002.png").write_bytes(b"no image")
    (folder / "dog" / "notes.txt").write_text("not an image by name")
    (folder / ".hidden.png").write_bytes(b"")
    os.mkfifo(folder / "dog" / "pipe.png")
    out, err = predicted(
        place, capsys, str(tmp_path / "new"), "--csv", "--topk", "2", "--workers", workers, code=1
    )  # fmt: skip
    lines = [line for line in err.splitlines() if "cannot be decoded" in line]
    assert [Path(line.split(" cannot")[0]).name for line in lines] == ["001.png", "002.png", "pipe.png"]
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["image", "rank", "class", "probability"]
    assert len(rows) == 1 + 2 * (90 - 2)
    images = list(dict.fromkeys(row[0] for row in rows[1:]))
    assert images == sorted(images)
    assert all(Path(image).parent.parent == folder for image in images)
    table, _ = predicted(place, capsys, str(folder / "dog" / "002.png"), str(folder / "cat"), "--topk", "1", code=1)
    assert len(table.splitlines()) == 1 + 30
    told, _ = predicted(place, capsys, str(folder / "dog" / "002.png"), "--json", code=1)
    assert json.loads(told) == [{"image": str(folder / "dog" / "002.png"), "error": "no known image format"}]


def test_other_sizes_and_modes_are_prepared_as_the_runs_images(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Image.open(place / "images" / "emu" / "000.png")
    large = small.resize((36, 36), Image.Resampling.NEAREST)
    for name, image in (("large", large), ("alpha", small.convert("RGBA")), ("grey", small.convert("L"))):
        image.save(tmp_path / f"{name}.png")
    small.save(tmp_path / "small.png")
    out, _ = predicted(
        place, capsys, *(str(tmp_path / f"{n}.png") for n in ("small", "alpha", "large", "grey")), "--json"
    )
    first, alpha, large_, grey = ({c["class"]: c["probability"] for c in one["classes"]} for one in json.loads(out))
    assert first == pytest.approx(alpha, abs=1e-6)
    assert first == pytest.approx(large_, abs=0.3)  # nothing was cut away
    assert first != grey


def test_wrong_words_are_one_sentence(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(place / "images" / "cat" / "000.png")
    (tmp_path / "empty").mkdir()
    for words, said in (
        ((), "takes a run and then images"),
        (("nothing.png",), "there is no image nothing.png"),
        ((str(tmp_path / "empty"),), "holds no images: they end in .jpg"),
        ((image, "--topk", "0"), "--topk 0: give 1 or more"),
        ((image, "--batch-size", "-1"), "--batch-size -1: give 1 or more"),
        ((image, "--workers=-1"), "--workers -1: give 0 or more"),
        ((image, "--device", "gpu7"), "--device gpu7 cannot be used here"),
        ((image, "--device", "meta"), "--device meta holds no numbers"),
        ((image, "--json", "--csv"), "--csv and --json exclude each other"),
        ((image, "--tokp", "1"), "takes no --tokp: did you mean '--topk'?"),
    ):  # fmt: skip
        out, err = predicted(place, capsys, *words, code=2)
        assert (out, said in " ".join(err.split())) == ("", True), err
    assert main(["predict", "--help"]) == 0
    assert "neumann predict RUN cat.jpg photos/" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_traceback(place: Path) -> None:
    command = f"{sys.executable} -m neumann predict {run_of(place)} {place / 'images'} --csv | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout == "image,rank,class,probability\n"
    assert "Traceback" not in done.stderr
