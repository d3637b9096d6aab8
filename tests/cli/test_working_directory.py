"""Commands in a folder whose files have the names of Python's, of packages' and of our own modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import neumann
from neumann.store.files import read_json
from tests.support.launching import QUICK, own_optimizer

SCRIPT = str(Path(sys.executable).with_name("neumann"))
NAMES = ("statistics", "random", "select", "copy", "omegaconf", "hydra/__init__", "timm/__init__", "wandb")
# what Hydra, torch, NumPy and timm import where it is installed, and go on without
OPTIONAL = ("hydra_plugins/mine", "torch_xla/__init__", "apex", "opt_einsum", "simplejson", "tensorboard", "cupy")


def hostile(place: Path, names: Sequence[str] = NAMES) -> None:
    for name in names:
        path = place / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("open('executed', 'a').write(__name__)\nraise SystemExit(9)\n")


def said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(names: Sequence[str]) -> list[str]:
    """Return the command as a script, and as a module unless ``names`` hold the package itself, which Python prefers."""
    if not Path(SCRIPT).exists():
        pytest.skip("the command is not installed beside this Python")
    return [SCRIPT] if "neumann/__init__" in names else [SCRIPT, sys.executable]


@pytest.mark.slow
@pytest.mark.parametrize("names", [(*NAMES, *OPTIONAL), ("neumann/__init__",)], ids=["others", "ours"])
def test_no_file_there_stands_for_a_module(names: Sequence[str]) -> None:
    hostile(Path(), names)
    for command in commands(names):
        start = [command, *(["-m", "neumann"] if command == sys.executable else [])]
        said(*start, "--help")
        said(*start, "study")
        study = Path(command).name
        said(*start, "train", *QUICK, f"study={study}")
        (folder,) = Path("runs", study).glob("d*")
        said(*start, "runs", "show", str(folder))
        (folder / "result.json").unlink()
        said(*start, "runs", "resume", str(folder))
        said(*start, "train", "-m", *QUICK, "seed=1,2", f"study={study}")
    assert not Path("executed").exists()


@pytest.mark.slow
def test_a_users_optimizer_is_still_found_there() -> None:
    config = own_optimizer(Path.cwd())
    for words, study in ((["train"], "one"), (["train", "-m"], "many")):
        said(SCRIPT, *words, *QUICK, "--config-dir", config, "optimizer=mine", f"study={study}")
        (folder,) = Path("runs", study).glob("d*")
        result = read_json(folder / "result.json")
        assert result["status"] == "finished"


@pytest.mark.medium
def test_a_package_of_our_name_there_is_told_where_python_prefers_it() -> None:
    """``python -m`` takes what lies in the working directory, which only -P and the script leave out."""
    shutil.copytree(Path(neumann.__file__).parent, "neumann", ignore=shutil.ignore_patterns("__pycache__"))
    here = Path("neumann").resolve()
    done = subprocess.run([sys.executable, "-m", "neumann", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"takes the package neumann of the working directory, {here}, and not the one that is" in done.stderr
    assert "use the command neumann, or python -P -m neumann" in done.stderr
    for safe in ([sys.executable, "-P", "-m", "neumann"], commands(("neumann/__init__",))):
        done = subprocess.run([*safe, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
