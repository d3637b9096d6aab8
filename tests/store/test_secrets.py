"""Tests of secrets: none of the environment's is in a file that a run writes, W&B's own included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECRETS = {
    "WANDB_API_KEY": "feedface0123456789abcdef0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key",
    "HF_TOKEN": "hf_plantedtoken",
    "DATABASE_PASSWORD": "planted-password",
    "HTTPS_PROXY": "http://user:planted-proxy@127.0.0.1:9",
    "HTTP_PROXY": "http://user:planted-proxy@127.0.0.1:9",
}
REMOTES = {
    "origin": "https://planted-remote-token:x-oauth-basic@git.invalid/x.git",
    "other": "https://me:planted-remote@git.invalid/x",
}
PLANTED = [b"feedface0123456789", b"planted"]


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts]


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_secret_of_the_environment(tmp_path: Path) -> None:
    place, home = tmp_path / "place", tmp_path / "home"
    place.mkdir()
    home.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    for name, url in REMOTES.items():
        subprocess.run(["git", "remote", "add", name, url], cwd=place, check=True)
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "one"]
    subprocess.run(commit, cwd=place, check=True)
    environment = {**os.environ, **SECRETS, "HOME": str(home)}
    words = ["train", "-m", "seed=0", "trainer.max_epochs=1", "batch.size=64", "+model.kwargs.width=8", "optimizer=sgd"]
    done = subprocess.run(
        [sys.executable, "-m", "neumann", *words, "logger=wandb"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    written = files(place) + files(home) + files(tmp_path / "cache")
    names = {path.name for path in written}
    assert {"provenance.json", "config.yaml", "output.log", "result.json", "debug.log"} <= names
    assert any(name.endswith(".wandb") for name in names)
    holds = {path.name: path.read_bytes() for path in written}
    assert [name for name, content in holds.items() for secret in PLANTED if secret in content] == []
    assert "planted" not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_error_of_a_run_does_not_repeat_the_environment(tmp_path: Path) -> None:
    """A traceback shows lines of code, and no values."""
    (tmp_path / "work" / "theirs.py").write_text(
        "import os, torch\n\nclass Mine(torch.optim.SGD):\n    def step(self, closure=None):\n"
        "        key = os.environ['WANDB_API_KEY']\n        raise RuntimeError('no luck')\n"
    )
    folder = tmp_path / "work" / "conf" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: theirs.Mine\nlr: 0.1\n")
    words = ["train", "-m", "seed=0", "batch.size=64", "optimizer=mine", "--config-dir", "conf", "logger=none"]
    done = subprocess.run(
        [sys.executable, "-m", "neumann", *words],
        env={**os.environ, **SECRETS},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    (error,) = Path("runs").rglob("error.txt")
    assert "RuntimeError: no luck" in error.read_text()
    holds = {path.name: path.read_bytes() for path in files(Path("runs"))}
    assert [name for name, content in holds.items() for secret in PLANTED if secret in content] == []
