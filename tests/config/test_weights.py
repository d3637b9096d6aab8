"""A local file of weights that a model starts from is signed by what is in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from neumann.cli.main import main as cli
from neumann.config import load_spec, make_spec
from neumann.config import weights as weights_module
from neumann.errors import UserError
from neumann.models.classifiers import SmallCNN
from neumann.store import find
from tests.support.launching import QUICK


def words(key: str, value: str) -> list[str]:
    return [*QUICK, f"+model.kwargs.{key}={value}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_path", "w.pth"),
        ("pretrained_cfg_overlay", "{file: w.pth}"),
        ("pretrained_cfg", "{file: w.pth, num_classes: 10}"),
        ("pretrained_cfg_overlay", "{url: 'file://HERE/w.pth'}"),
    ],
)
def test_another_file_under_the_same_path_is_another_run(key: str, value: str) -> None:
    Path("w.pth").write_bytes(b"one")
    given = words(key, value.replace("HERE", str(Path.cwd())))
    first = make_spec(given)
    assert list(first.weights.values()) == [hashlib.sha256(b"one").hexdigest()]
    assert first.signed()["weights"] == first.weights
    assert make_spec(given).signature == first.signature
    assert make_spec([*given, "seed=1"]).weights == first.weights
    assert load_spec(first.as_record()).signature == first.signature
    Path("w.pth").write_bytes(b"two")
    assert make_spec(given).signature != first.signature
    with pytest.raises(UserError, match="its data or the code has changed"):
        load_spec(first.as_record())


def test_a_run_without_local_weights_signs_none() -> None:
    for given in ([], words("pretrained_cfg_overlay", "{url: 'https://host/w.pth'}"), words("pretrained", "true")):
        assert "weights" not in make_spec(given).signed()


def test_a_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("w.pth").write_bytes(b"one")
    first = make_spec(words("checkpoint_path", "w.pth"))
    with monkeypatch.context() as patch:
        patch.delattr(weights_module.hashlib, "file_digest")
        assert make_spec(words("checkpoint_path", "w.pth")).signature == first.signature
    for kept in Path(os.environ["NEUMANN_CACHE"], "weights").glob("*.json"):
        kept.write_text("damaged")
    assert make_spec(words("checkpoint_path", "w.pth")).signature == first.signature


@pytest.mark.parametrize("what", ["missing", "folder", "pipe"])
def test_what_is_not_a_file_is_one_sentence(what: str) -> None:
    if what == "folder":
        Path("w.pth").mkdir()
    elif what == "pipe":
        os.mkfifo("w.pth")
    with pytest.raises(UserError, match=r"model.kwargs.checkpoint_path=w.pth(: the file cannot be read|.*not a file)"):
        make_spec(words("checkpoint_path", "w.pth"))


@pytest.mark.medium
def test_a_finished_run_does_not_answer_for_other_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(SmallCNN(width=8).state_dict(), "w.pth")
        assert cli(["train", *words("checkpoint_path", "w.pth")]) == 0
        assert "already there" not in capsys.readouterr().out
    assert cli(["train", *words("checkpoint_path", "w.pth")]) == 0
    assert "already there" in capsys.readouterr().out
    assert len(list(find(make_spec(words("checkpoint_path", "w.pth"))).path.parent.iterdir())) == 2
