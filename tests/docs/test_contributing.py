"""Every worked commit of CONTRIBUTING.md, applied to a copy of the tree, passes the tests that it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.markdown_pages import ROOT, Block, blocks

PAGE = ROOT / "CONTRIBUTING.md"
COPIED = ("neumann", "conf", "sweeps", "experiments", "tests", "docs", "benchmarks", "pyproject.toml", "mkdocs.yml")


def commits() -> dict[str, list[Block]]:
    """Return {section: its blocks}, of the sections that have some."""
    headings = [(i, line[3:]) for i, line in enumerate(PAGE.read_text().splitlines()) if line.startswith("## ")]
    found: dict[str, list[Block]] = {}
    for block in blocks(PAGE):
        section = next(name for line, name in reversed(headings) if line < block.line)
        found.setdefault(section, []).append(block)
    return found


def apply(diff: str, file: Path) -> None:
    """Replace the lines of every hunk, which must stand in ``file`` once; ``@@`` divides hunks."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines()
        assert all(line[:1] in (" ", "-", "+") for line in lines if line), hunk
        old = "\n".join(line[1:] for line in lines if line[:1] in (" ", "-")) + "\n"
        new = "\n".join(line[1:] for line in lines if line[:1] in (" ", "+")) + "\n"
        text = file.read_text()
        assert text.count(old) == 1, f"{file.name} has these lines {text.count(old)} times:\n{old}"
        file.write_text(text.replace(old, new))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def test_every_kind_of_extension_is_worked_out() -> None:
    assert list(commits()) == [
        "An optimizer",
        "A data set",
        "A schedule",
        "A study",
        "A launcher",
        "A logger",
    ]


def applied(section: str, tree: Path) -> tuple[list[str], list[str]]:
    """Apply a worked commit to ``tree``; return its commands and the files that it adds or changes."""
    commands, touched = [], []
    for block in commits()[section]:
        if block.title is None:
            commands += [line for line in block.code.splitlines() if line.strip()]
            continue
        touched.append(block.title)
        if block.language == "diff":
            apply(block.code, tree / block.title)
        else:
            assert not (tree / block.title).exists(), block.title
            (tree / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tree / block.title).write_text(block.code)
    return commands, touched


@pytest.mark.medium
@pytest.mark.parametrize("section", commits())
def test_a_worked_commit_fits_the_code_of_today(section: str, tree: Path) -> None:
    commands, touched = applied(section, tree)
    assert commands
    assert touched


@pytest.mark.slow
@pytest.mark.parametrize("section", commits())
def test_a_worked_commit_passes_its_tests(section: str, tree: Path) -> None:
    commands, touched = applied(section, tree)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(tree)}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, cwd=tree, env=environment, timeout=280
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert " skipped" not in done.stdout, done.stdout
    if code := [name for name in touched if name.endswith(".py")]:
        linted = [sys.executable, "-m", "ruff", "check", "--quiet", *code]
        done = subprocess.run(linted, capture_output=True, text=True, cwd=tree, timeout=60)
        assert done.returncode == 0, done.stdout
