"""Tests of the wheel: it installs the whole package, the optimizer beside torch alone, and the command from an empty directory."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the wheel alone is installed, built from a copy of the tree."""
    work = tmp_path_factory.mktemp("wheel")
    (work / "tree").mkdir()
    for name in ("neumann", "conf", "sweeps", "experiments", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, work / "tree" / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", work, work / "tree"], check=True)
    (wheel,) = work.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "neumann/conf/train.yaml" in names
    assert "neumann/experiments/README.md" in names
    assert {"neumann/sweeps/README.md", "neumann/sweeps/rates.yaml", "neumann/conf/sweeps/rates.yaml"} <= set(names)
    assert "neumann/py.typed" in names
    # every module, with no help from the checkout: `exclude = ["neumann.conf*"]` once left neumann.config out
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "neumann").glob("**/*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    settings = {f"neumann/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert settings <= set(names)
    embedded = {
        f"neumann/{p.relative_to(ROOT / 'neumann')}" for p in (ROOT / "neumann" / "data" / "fashion14").iterdir()
    }
    assert len(embedded) == 3  # images, labels, and the licence that they come under
    assert embedded <= set(names)
    assert any(name.endswith("licenses/neumann/data/fashion14/LICENSE") for name in names)
    assert wheel.stat().st_size < 4 << 20
    archives = {name.split("/")[2] for name in names if name.endswith("runs.jsonl.gz")}
    assert archives == {"baselines", "regularizers"}  # that of scaling is in the repository alone
    site = work / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


def closure(name: str, seen: set[str]) -> set[str]:
    """Return the distributions that ``name`` needs, itself included."""
    if name in seen:
        return seen
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return seen
    seen.add(name)
    for requirement in distribution.requires or []:
        if "extra ==" not in requirement:
            closure(re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0], seen)
    return seen


def link_distributions(names: set[str], folder: Path) -> None:
    """Make ``folder`` hold links to what ``names`` installed and to nothing else."""
    folder.mkdir()
    for name in names:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            target = folder / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))))


TRAIN = """
import sys
import torch
from neumann.optim import Neumann
torch.manual_seed(0)
x = torch.randn(64, 5); y = x @ torch.randn(5, 1)
model = torch.nn.Linear(5, 1)
optimizer = Neumann(model.parameters(), lr=0.05, burn_in_steps=5, reset_period=20)
for step in range(200):
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
optimizer.eval()
assert float((model(x) - y).square().mean()) < 1e-3, float(loss)
for absent in ("timm", "pytorch_lightning", "hydra", "wandb", "sklearn"):
    try:
        __import__(absent)
    except ImportError:
        continue
    raise SystemExit(absent + " is importable, so this test shows nothing")
print("trained", neumann_file := sys.modules["neumann"].__file__)
"""


@pytest.mark.slow
def test_the_optimizer_needs_nothing_but_torch(installed: Path, tmp_path: Path) -> None:
    beside = tmp_path / "torch-alone"
    link_distributions(closure("torch", set()) | closure("numpy", set()), beside)
    code = f"import sys; sys.path[:0] = {[str(installed), str(beside)]!r}\n{TRAIN}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout


@pytest.mark.slow
def test_the_installed_command_trains_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    packages = sysconfig.get_path("purelib")  # without its .pth files, hence without the editable checkout
    words = ["train", "trainer.max_epochs=1", "batch.size=128", "+model.kwargs.width=8"]
    code = f"import sys; sys.path[:0] = {[str(installed), packages]!r}; from neumann.cli.main import main; code = main(sys.argv[1:]);"
    code += "print({m.__file__.rsplit('/neumann/', 1)[0] for n, m in sys.modules.items() if n.startswith('neumann.')}); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *words], capture_output=True, text=True, timeout=200, cwd=empty
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str({str(installed)})
    (folder,) = (empty / "runs" / "default").iterdir()
    assert (folder / "result.json").exists()
    assert {p.name for p in empty.iterdir()} == {"runs"}
