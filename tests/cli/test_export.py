"""`neumann export`: plain timm loads what it writes, in a process without this package, and errs as recorded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml

from neumann.cli.main import main
from neumann.store import per_image
from neumann.store.files import read_json, write_json
from neumann.store.vouching import sealed
from neumann.training.checkpoints import decode, encode
from tests.support.image_folders import coloured

pytestmark = pytest.mark.medium
WORDS = ("train", "trainer.max_epochs=2", "batch.size=16", "logger=none", "optimizer=neumann", "data=image_folder")
RESNET = ("model=timm", "model.name=test_resnet")

# Runs where `import neumann` fails; the images are prepared by timm's own transform
BY_TIMM = """
import json, sys
sys.modules["neumann"] = None
import timm, torch
from PIL import Image
folder, files = sys.argv[1], json.loads(sys.argv[2])
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
names = model.pretrained_cfg["label_names"]
with torch.no_grad():
    said = [names[model(transform(Image.open(f).convert("RGB"))[None]).argmax(1).item()] for f in files]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two trained runs, of images of one size and of several, and the images."""
    place = tmp_path_factory.mktemp("place")
    for name, sizes in (("same", ((16, 16),)), ("several", ((256, 256), (300, 256)))):
        coloured(place / name, count=30 if name == "same" else 12, sizes=sizes)
        more = [f"data.root={place / name}", f"output={place / 'runs'}", f"study={name}"]
        size = [] if name == "same" else ["data.image_size=56", "trainer.max_epochs=6"]
        words = [word for word in WORDS if not (size and word.startswith("trainer"))]
        assert main([*words, *RESNET, *more, *size]) == 0
    return place


def run_of(place: Path, study: str) -> Path:
    (folder,) = (place / "runs" / study).glob("*-*[0-9a-f]")
    return folder


def test_files(folder: Path, root: Path) -> list[Path]:
    from neumann.config import load_spec
    from neumann.store.records import read_record

    examples = load_spec(read_record(folder)).facts.examples
    return [root / examples.paths[i] for i in examples.test]


test_files.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("study", ["same", "several"])
@pytest.mark.slow
def test_plain_timm_gives_the_recorded_error_to_the_image(study: str, place: Path, tmp_path: Path) -> None:
    folder = run_of(place, study)
    assert main(["export", str(folder), "--to", str(tmp_path / "out")]) == 0
    files = test_files(folder, place / study)
    done = subprocess.run(
        [sys.executable, "-c", BY_TIMM, str(tmp_path / "out"), json.dumps([str(file) for file in files])],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    right = [said == file.parent.name for said, file in zip(json.loads(done.stdout), files, strict=True)]
    result = read_json(folder / "result.json")
    scores = result["test"]["base"]
    assert (right.count(False), len(files)) == (scores["wrong"], scores["n"])
    assert right == per_image.read(folder, result)["test.base"].tolist()
    assert scores["error"] < 0.6  # three classes: it has learnt something


def test_what_lies_in_the_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(place, "same")
    assert main(["export", folder.name[-12:-4], f"output={place / 'runs'}"]) == 0
    assert 'timm.create_model("local-dir:' in capsys.readouterr().out
    out = folder.parent / f"{folder.name}.export"
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    saved = torch.load(folder / "eval-weights.pt", weights_only=True)
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    assert tensors.keys() == saved["state_dict"].keys()
    assert all(torch.equal(tensors[key], value) for key, value in saved["state_dict"].items())
    config = json.loads((out / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("test_resnet", 3)
    assert config["label_names"] == ["cat", "dog", "emu"]
    prepared = config["pretrained_cfg"]
    assert prepared["mean"] == list(saved["data"]["mean"])
    assert (prepared["input_size"], prepared["crop_pct"]) == ([3, 16, 16], 1.0)
    assert len(prepared["std"]) == 3
    card = (out / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("timm", "image-classification")
    scores = read_json(folder / "result.json")["test"]["base"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == round(1 - scores["error"], 6)
    attempt = read_json(folder / "provenance.json")["attempts"][-1]
    for told in (
        f"| test | {100 * scores['error']:.2f} % | {scores['loss']:.4f} | {scores['n']} | base |",
        attempt["data"]["fingerprint"], attempt["code"]["neumann"], attempt["packages"]["timm"],
        'timm.create_model(f"local-dir:{folder}", pretrained=True)', "neumann train", "model.name=test_resnet",
    ):  # fmt: skip
        assert told in text, told
    if attempt["git"]:
        assert attempt["git"]["commit"] in text
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["export", str(folder)]) == 2
    assert "is there already, and nothing is overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert main(["runs", str(place / "runs")]) == 0
    assert "export" not in capsys.readouterr().out


def test_the_cards_command_is_the_run(place: Path) -> None:
    from neumann.config import make_spec
    from neumann.config.repeat import words_of
    from neumann.store.records import read_record

    folder = run_of(place, "several")
    words = words_of(read_record(folder))
    assert words is not None
    assert any(word.startswith("trainer.precision=") for word in words), "another device's default is another run"
    assert make_spec(words).signature == folder.name[-12:]


def test_a_network_that_timm_lacks_says_how_it_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "trainer.max_epochs=1", "logger=none", "batch.size=64", "+model.kwargs.width=8"]) == 0
    (folder,) = Path("runs/default").iterdir()
    assert main(["export", folder.name, "--to", "out"]) == 0
    assert "timm alone does not know small_cnn" in capsys.readouterr().out
    card = Path("out/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('folder = "."', 'folder = "out"')
    found: dict[str, object] = {}
    exec(code, found)
    model = found["model"]
    assert isinstance(model, torch.nn.Module)
    saved = torch.load(folder / "eval-weights.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_exported_says_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def copy(name: str) -> Path:
        signature = run_of(place, "same").name[-12:]
        return Path(shutil.copytree(run_of(place, "same"), f"copies/{name}-{signature}"))

    def refused(folder: Path, words: str, *more: str) -> None:
        assert main(["export", str(folder), *more]) == 2
        assert words in " ".join(capsys.readouterr().err.split())

    none = copy("none")
    (none / "eval-weights.pt").unlink()
    refused(none, "eval-weights.pt is missing: put it back")
    result = read_json(none / "result.json")
    write_json(none / "result.json", sealed({k: v for k, v in result.items() if k not in ("eval_weights", "digest")}))
    refused(none, "kept no weights (checkpoint=none): train it again with checkpoint=eval_weights")
    write_json(none / "result.json", {**result, "status": "diverged", "digest": None})
    refused(none, "diverged, so it has no weights")
    (none / "result.json").unlink()
    refused(none, "so it has no weights to use")
    damaged = copy("damaged")
    content = (damaged / "eval-weights.pt").read_bytes()
    (damaged / "eval-weights.pt").write_bytes(content[:3000] + b"x" + content[3001:])
    refused(damaged, "its content has changed since it was written")
    other = copy("other").rename(Path("copies/other-0123456789ab"))
    refused(other, "eval-weights.pt is of run")
    edited = copy("edited")
    write_json(edited / "result.json", {**result, "step": 1})
    refused(edited, "result.json is not what the run wrote")
    lost = copy("lost")
    (lost / "provenance.json").unlink()
    refused(lost, "provenance.json is missing or damaged, and it says how images are prepared")
    sound = copy("sound")
    refused(sound, "takes one run", "another")
    refused(sound, "--to is empty", "--to", "")
    refused(sound, "takes no --too: did you mean '--to'?", "--too", "x")
    Path("a file").write_text("mine")
    refused(sound, "a file is there already", "--to", "a file")
    refused(sound, "cannot be written", "--to", "a file/below")
    refused(Path("nowhere"), "there is no results folder runs")
    assert Path("a file").read_text() == "mine"
    assert not list(Path().glob("**/*.tmp"))


def test_settings_of_a_folder_that_would_load_other_weights_are_left_out(place: Path) -> None:
    folder = Path(shutil.copytree(run_of(place, "same"), Path("theirs") / run_of(place, "same").name))
    with (folder / "eval-weights.pt").open("rb") as file:
        saved = decode(file)
    theirs = {"pretrained": True, "checkpoint_path": "theirs.pt", "pretrained_cfg_overlay": {"file": "theirs.pt"}}
    saved["model"]["kwargs"] |= theirs
    (folder / "eval-weights.pt").write_bytes(encode(saved))
    assert main(["export", str(folder), "--to", "out"]) == 0
    assert json.loads(Path("out/config.json").read_text())["model_args"] == {"in_chans": 3}


def test_the_recorded_preparation_is_exported_and_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(run_of(place, "same"), Path("theirs") / run_of(place, "same").name))
    recorded = read_json(folder / "provenance.json")
    recorded["attempts"][-1]["data"] |= {"native_size": None, "interpolation": "bicubic", "crop_pct": 0.9}
    write_json(folder / "provenance.json", recorded)
    assert main(["export", str(folder), "--to", "out"]) == 0
    prepared = json.loads(Path("out/config.json").read_text())["pretrained_cfg"]
    assert (prepared["crop_pct"], prepared["interpolation"]) == (0.9, "bicubic")
    assert "scaled (bicubic) until 16×16 / 0.9 just fits" in Path("out/README.md").read_text()
    told = []
    for one in (folder, run_of(place, "same")):
        capsys.readouterr()
        assert main(["predict", str(one), str(place / "same" / "cat" / "000.png"), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] != told[1]


def test_timm_is_what_makes_the_network(place: Path) -> None:
    from neumann.models.hub_config import in_timm

    assert timm.is_model("small_cnn")
    assert [in_timm(name) for name in ("small_cnn", "test_resnet", "resnet18.a1_in1k")] == [False, True, True]
