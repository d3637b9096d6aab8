"""`neumann train` end to end, in real processes: exit codes, one sentence on stderr, no half-written run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from neumann.cli.main import main
from neumann.store import RunFolder
from neumann.store.files import read_json

QUICK = ["+model.kwargs.width=8", "logger=none"]


def neumann(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "neumann", *words],
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        **options,
    )


def only_run(study: str = "default") -> RunFolder:
    (path,) = Path("runs", study).iterdir()
    return RunFolder(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes that colour tells apart, 20 real JPEG files each."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for label, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
        (root / label).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(colour, 30, size=(16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i:02}.jpg", quality=90)
    return root


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "optimizer=nuemann"], ["did you mean 'neumann'?"]),
        (["train", "optimizer.alhpa=0"], ["did you mean 'alpha'?"]),
        (["trian"], ["there is no command 'trian': did you mean 'train'?"]),
        (["train", "--cofnig-dir", "x"], ["neumann train takes no --cofnig-dir", "--config-dir"]),
        (["train", "--cfg", "x"], ["neumann train: --cfg x: choose from 'job'"]),
        (["train", "seed=1", "optimizer=sgd", "seed=2"], ["'seed=1' and 'seed=2' both set seed: leave out one"]),
        (["train", "-m", "seed=0,1", "seed=2"], ["both set seed"]),
        (["wandb-sweep", "optimizer=sgd,adam", "optimizer=adam,lars"], ["both set optimizer"]),
        (["report", "regularizers", "output=a", "output=b"], ["both set output"]),
        (["train", "launch.devices=[7]", "output=x"], ["launch.devices names GPU 7"]),
        (["train", "seed=0,1"], ["names several values", "add -m"]),
        (["train", "+sweeps=rates"], ["add -m"]),
        (["train", "-m", "+sweeps=rate"], ["did you mean 'rates'?"]),
        (
            ["train", "-m", "optimizer=neumann,sgd", "optimizer.alpha=0"],
            ["in the run 'optimizer=sgd optimizer.alpha=0'"],
        ),
        (["train", "-m", "hydra/launcher=joblib"], ["launch.parallel=N"]),
        (
            ["train", "-m", "seed=0,1", "output=/proc/neumann"],
            ["the results folder /proc/neumann", "cannot be written"],
        ),
        (["train", "data=image_folder", "data.root=nowhere"], ["nowhere"]),
        (["train", "output=/proc/neumann"], ["the results folder /proc/neumann", "cannot be written"]),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(
    words: list[str], parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capfd.readouterr()
    # on a slow machine a launch says how many runs it has before the first of them finds its folder
    assert out == "" or (words[1] == "-m" and out.startswith("2 of 2 runs to train; "))
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    for part in parts:
        assert part in err


def test_help_lists_commands_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "neumann train" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "nesterov_inner" in out
    assert "image_folder" in out
    assert main(["--version"]) == 0


def test_cfg_prints_the_resolved_configuration_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "optimizer=adam", "seed=4"]) == 0
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert config.seed == 4
    assert config.derived.steps_per_epoch == 37
    assert not Path("runs").exists()


@pytest.mark.medium
def test_a_run_ends_with_a_panel_and_is_returned_at_once_the_second_time() -> None:
    first = neumann("train", *QUICK, "trainer.max_epochs=1", "batch.size=16")
    assert first.returncode == 0, first.stderr
    assert "test error" in first.stdout
    assert "finished" in first.stdout
    assert only_run().path.name in first.stdout
    assert first.stderr == ""
    code = (
        "import sys; from neumann.cli.main import main; code = main(sys.argv[1:]);"
        "assert code == 0 and 'torch' not in sys.modules and 'pytorch_lightning' not in sys.modules"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, "train", *QUICK, "trainer.max_epochs=1", "batch.size=16"],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert "already there" in again.stdout
    assert len(read_json(only_run().provenance)["attempts"]) == 1


@pytest.mark.slow
def test_a_jpeg_folder_trains(photos: Path) -> None:
    done = neumann(
        "train",
        *QUICK,
        "data=image_folder",
        f"data.root={photos}",
        "batch.size=8",
        "trainer.max_epochs=30",
        "schedule=constant",
    )
    assert done.returncode == 0, done.stderr
    result = only_run().result()
    assert result is not None
    assert result["test"]["base"]["error"] <= 0.25  # two classes: chance is 0.5
    data = read_json(only_run().provenance)["attempts"][0]["data"]
    assert data["train_count"] + data["validation_count"] + data["test_count"] == 40
    assert data["class_names"] == ["blue", "red"]
    assert data["test_is"] == "0.2 of the class folders, cut by us"


def break_file(root: Path) -> None:
    whole = (root / "red" / "07.jpg").read_bytes()
    (root / "red" / "07.jpg").write_bytes(whole[: len(whole) // 2])


def empty_class(root: Path) -> None:
    (root / "green").mkdir()


def small_class(root: Path) -> None:
    (root / "green").mkdir()
    Image.new("RGB", (16, 16)).save(root / "green" / "only.jpg")


@pytest.mark.parametrize(("spoil", "part"), [(break_file, "07.jpg"), (empty_class, "green"), (small_class, "green")])
def test_a_spoilt_folder_is_one_sentence(
    spoil: Any, part: str, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(photos)
    assert main(["train", *QUICK, "data=image_folder", f"data.root={photos}", "batch.size=8", "data.workers=0"]) == 2
    err = capfd.readouterr().err
    assert len(err.strip().splitlines()) == 1, err
    assert part in err
    assert not any(Path("runs").rglob("*.json"))


@pytest.mark.slow
def test_online_without_a_login_is_one_sentence(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path)}
    done = neumann("train", "logger.mode=online", env=env)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "logger.mode=online: W&B cannot log in" in done.stderr
    assert not any(p.is_dir() for p in Path("runs").glob("*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_process_of_a_run_still_leaves_a_clean_run(number: int, photos: Path) -> None:
    """A terminal, `timeout` and scancel signal the whole group: decoding workers and W&B's service too."""
    words = ["train", "+model.kwargs.width=8", "data=image_folder", f"data.root={photos}", "data.in_memory=false"]
    words += ["batch.size=4", "trainer.max_epochs=40", "schedule=constant", "data.workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "neumann", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.time() + 120
    while not any(RunFolder(p).read_measurements() for p in Path("runs/default").glob("*")) and time.time() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command goes on from there" in err
    folder = only_run()
    assert folder.status()["status"] == "interrupted"
    step = torch.load(folder.last, weights_only=True)["global_step"]
    assert 0 < step < 40 * (folder_steps := OmegaConf.load(folder.config).derived.steps_per_epoch)
    again = neumann(*words)
    assert again.returncode == 0, again.stderr
    result = folder.result()
    assert result is not None
    assert result["step"] == 40 * folder_steps


@pytest.mark.slow
@pytest.mark.parametrize("evaluations", [1, 3])
def test_kill_9_loses_nothing_that_was_evaluated(evaluations: int) -> None:
    words = ["train", "logger=none", "trainer.max_epochs=6", "optimizer=neumann", "checkpoint=eval_weights"]
    whole = neumann(*words, "study=whole")
    assert whole.returncode == 0, whole.stderr
    victim = subprocess.Popen([sys.executable, "-m", "neumann", *words, "study=killed"], stdout=subprocess.DEVNULL)
    deadline = time.time() + 200
    while time.time() < deadline:
        if any(len(RunFolder(p).read_measurements()) >= evaluations for p in Path("runs/killed").glob("*")):
            break
        time.sleep(0.005)
    victim.kill()
    victim.wait()
    assert only_run("killed").result() is None
    again = neumann(*words, "study=killed")
    assert again.returncode == 0, again.stderr
    a, b = (torch.load(only_run(s).eval_weights, weights_only=True)["state_dict"] for s in ("whole", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    steps = [m["step"] for m in only_run("killed").read_measurements()]
    assert steps == [37 * e for e in range(1, 7)]


@pytest.mark.medium
def test_a_single_run_trains_with_the_threads_that_its_command_names() -> None:
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    try:
        assert main(["train", *QUICK, "trainer.max_epochs=0.1", f"launch.threads={other}"]) == 0
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)
    assert only_run().attempts()[-1]["torch_threads"] == other


@pytest.mark.slow
def test_a_locale_without_greek_letters_ends_no_command(tmp_path: Path) -> None:
    """ASCII alone, as LC_ALL=C without Python's own remedy: a folder called größe, a plan that prints α."""
    here = tmp_path / "größe"
    (here / "my" / "optimizer").mkdir(parents=True)
    (here / "my" / "optimizer" / "mine.yaml").write_text("# β, größe\n_target_: torch.optim.SGD\nlr: 0.5\n", "utf-8")
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    plan = neumann("study", "regularizers", "--budget", "small", "--plan", cwd=here, env=ascii_only)
    assert (plan.returncode, plan.stderr) == (0, "")
    assert "Neumann, \\u03b1 = 0" in plan.stdout
    words = [
        "train",
        "--config-dir",
        str(here / "my"),
        "optimizer=mine",
        *QUICK,
        "batch.size=2",
        "trainer.max_epochs=0.1",
    ]
    trained = neumann(*words, cwd=here, env=ascii_only)
    assert (trained.returncode, trained.stderr) == (0, "")
    (folder,) = (here / "runs" / "default").iterdir()
    shown = neumann("runs", "show", str(folder), env=ascii_only)
    assert (shown.returncode, shown.stderr) == (0, "")
    (folder / "result.json").unlink()
    assert neumann("runs", "resume", str(folder), env=ascii_only).returncode == 0
    assert (folder / "result.json").exists()
    for word in ("name='größe'", "output='日本'"):  # of which neither a file's name nor a UTF-8 file could be made
        refused = neumann("train", word, *QUICK, cwd=here, env=ascii_only)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "is not text in this locale's encoding, ascii: set LC_ALL=C.UTF-8" in refused.stderr
    assert sorted(path.name for path in here.iterdir()) == ["my", "runs"]
    assert len(list((here / "runs" / "default").iterdir())) == 1
