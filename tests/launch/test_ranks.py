"""Runs on several devices: ranks with exactly their run's specification, the same numbers, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from neumann.config import LocalLaunchConfig, RunSpec, make_specs
from neumann.errors import UserError
from neumann.launch.local import LocalLauncher
from neumann.launch.protocol import RunOutcome
from neumann.launch.run_processes import RunProcesses
from neumann.search.grid import expand
from neumann.store import RunFolder, find, per_image
from neumann.store.files import read_json
from tests.support.launching import QUICK, RecordingView, left_over, own_optimizer, wait_for

pytestmark = pytest.mark.medium

# no batch norm, which sees a rank's share of the batch, and no dropout, which draws by rank
SPLITS_EVENLY = [
    *("model=timm", "model.name=vit_tiny_patch16_224", "trainer.precision=64-true"),
    *("+model.kwargs.img_size=8", "+model.kwargs.patch_size=4", "+model.kwargs.embed_dim=16"),
    *("+model.kwargs.depth=1", "+model.kwargs.num_heads=2", "data.augmentation=crop"),
]
PLAIN = [word for word in QUICK if "width" not in word]


def specs_of(*words: str, dirs: tuple[str, ...] = ()) -> list[RunSpec]:
    return make_specs(expand(words, dirs), dirs)


def launch(specs: list[RunSpec]) -> list[RunOutcome]:
    with LocalLauncher(LocalLaunchConfig(parallel=2, threads=1)) as launcher:
        return launcher.run(specs, RecordingView())


def weights(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "eval-weights.pt", weights_only=True)["state_dict"]
    return state


def test_device_counts_mixed_in_one_sweep_give_the_same_numbers() -> None:
    there = specs_of(*PLAIN, *SPLITS_EVENLY, "trainer.devices=1,2", "study=there")
    back = specs_of(*PLAIN, *SPLITS_EVENLY, "trainer.devices=2,1", "study=back")
    outcomes = launch([*there, *back])
    assert [o.message for o in outcomes] == [None] * 4
    for outcome in outcomes:
        devices = outcome.spec.config.trainer.devices
        result = outcome.result
        assert result is not None
        assert result["world_size"] == devices
        assert result["distinct_examples"] == {"training": 18 * 64, "validation": 300, "test": 300}
        (attempt,) = read_json(outcome.folder / "provenance.json")["attempts"]
        assert len(attempt["ranks"]) == devices
        assert len(RunFolder(outcome.folder).read_measurements()) == 2  # rank 0 alone writes
    one, two, again_two, again_one = [weights(o.folder) for o in outcomes]
    for a, b in ((one, again_one), (two, again_two)):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(one[key], two[key]) for key in one)  # else nothing was shared out
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-9, atol=1e-11)
    assert len({(outcome.folder / per_image.FILE).read_bytes() for outcome in outcomes}) == 1  # of each image, in order
    for a, b in zip(*(RunFolder(outcomes[i].folder).read_measurements() for i in (0, 1)), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)  # logits are scored in float32
        assert [s["wrong"] for s in a["validation"].values()] == [s["wrong"] for s in b["validation"].values()]
    assert not list(Path("runs/there").glob(".*"))


def test_batch_norm_is_recalibrated_by_all_ranks_and_training_does_not_notice() -> None:
    specs = specs_of(*QUICK, "trainer.devices=2", "recipe.recalibrate_batch_norm=0,3", "trainer.accelerator=cpu")
    without, with_it = launch(specs)
    assert without.result is not None, without.message
    assert with_it.result is not None, with_it.message
    ours, theirs = weights(with_it.folder), weights(without.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    result = with_it.result
    assert (result["validation"], result["test"]) == (without.result["validation"], without.result["test"])
    assert list(result["test_recalibrated"]) == ["held", "base", "average"]
    for point, scores in result["test_recalibrated"].items():
        assert scores["n"] == result["distinct_examples"]["test"]
        assert scores["loss"] != result["test"][point]["loss"]


def test_what_was_evaluated_is_what_was_saved() -> None:
    """Batch norm's statistics differ by rank; every rank evaluates its share of the images with those of rank 0."""
    (spec,) = specs_of(*QUICK, "optimizer=sgd", "trainer.devices=2", "checkpoint=last", "trainer.max_epochs=3")
    (outcome,) = launch([spec])
    assert outcome.result is not None, outcome.message
    from neumann.data.module import build
    from neumann.models.classifiers import build_model

    config = spec.config
    data = build(config.data, spec.facts, batch_size=64, seed=0)
    model = build_model("small_cnn", config.model.kwargs, in_chans=1, num_classes=10, image_size=(8, 8))
    model.load_state_dict(weights(outcome.folder))
    model.eval()
    with torch.no_grad():
        losses = [torch.nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in data.test_dataloader()]
    expected = float(sum(losses)) / 300
    assert outcome.result["test"]["held"]["loss"] == pytest.approx(expected, rel=1e-5)
    # and dropout draws by rank
    streams = torch.load(outcome.folder / "last.ckpt", weights_only=True)["rng"]
    assert len(streams) == 2
    assert not torch.equal(streams[0]["torch"], streams[1]["torch"])


ON_ONE_RANK = """
import os, signal, time
import torch, torch.distributed as dist

class Mine(torch.optim.SGD):
    steps = 0
    def __init__(self, params, lr, ends="well", at=20, weight_decay=0.0):
        super().__init__(params, lr=lr)
        self.how, _, self.rank = ends.partition("_")
        self.at = at
    def step(self, closure=None):
        self.steps += 1
        if self.steps == self.at and str(dist.get_rank()) == self.rank:
            open(f"ended-{self.how}-{self.rank}", "w").close()
            if self.how == "raise": raise RuntimeError("it broke\\nin two lines")
            if self.how == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "exit": os._exit(3)
            if self.how == "leave": raise SystemExit(0)
            if self.how == "drift":
                for p in self.param_groups[0]["params"][:1]: p.data += 1e-3
            if self.how == "stop": os.kill(os.getpid(), signal.SIGUSR2)
            if self.how == "term": os.kill(os.getpid(), signal.SIGTERM)
        return super().step(closure)
"""


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_others_down_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dirs = (own_optimizer(Path.cwd(), ON_ONE_RANK),)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    endings = ["raise_0", "raise_1", "kill_0", "kill_1", "exit_1", "leave_1", "drift_1", "stop_1", "term_0", "term_1"]
    specs = specs_of(*QUICK, "optimizer=mine", f"optimizer.ends={','.join(endings)}", "trainer.devices=2", dirs=dirs)
    ended: dict[str, float] = {}

    class Clock(RecordingView):
        def done(self, outcome: RunOutcome) -> None:
            ended[outcome.spec.section("optimizer")["ends"]] = time.time()

    with LocalLauncher(LocalLaunchConfig(parallel=2, threads=1)) as launcher:
        outcomes = dict(zip(endings, launcher.run(specs, Clock()), strict=True))
        assert not set(left_over(f"NEUMANN_CACHE={tmp_path}")) - _helpers()
    assert {ending: (o.status, o.message) for ending, o in outcomes.items() if ending[:4] not in ("stop", "term")} == {
        "raise_0": ("failed", "rank 0: it broke"),
        "raise_1": ("failed", "rank 1: it broke"),
        "kill_0": ("failed", "rank 0 of 2 was killed by signal 9 (SIGKILL); out of memory?"),
        "kill_1": ("failed", "rank 1 of 2 was killed by signal 9 (SIGKILL); out of memory?"),
        "exit_1": ("failed", "rank 1 of 2 left with exit code 3"),
        "leave_1": ("failed", "rank 1: the program left with exit code 0"),
        "drift_1": ("failed", outcomes["drift_1"].message),
    }
    # whichever rank was first to say so
    assert "the weights of rank 1 are not those of rank 0, first in model.features.0.weight" in str(
        outcomes["drift_1"].message
    )
    for ending in endings:
        if ending == "drift_1":  # it goes on to the next evaluation
            continue
        assert ended[ending] - Path(f"ended-{ending.replace('_', '-')}").stat().st_mtime < 15
    for rank in (0, 1):
        killed = RunFolder(outcomes[f"kill_{rank}"].folder)
        assert killed.error.read_text().startswith(f"rank {rank} of 2 was killed by signal 9")
        assert killed.status()["message"] == outcomes[f"kill_{rank}"].message
        assert killed.status()["step"] in (18, 19)
    left = RunFolder(outcomes["leave_1"].folder)
    assert left.error.read_text().startswith("rank 1: the program left with exit code 0\n")
    assert left.status()["message"] == "rank 1: the program left with exit code 0"
    for rank in (0, 1):
        folder = RunFolder(outcomes[f"raise_{rank}"].folder)
        trace = folder.error.read_text()
        assert trace.startswith(f"rank {rank}: it broke\n")
        assert "RuntimeError: it broke" in trace
        assert folder.status()["status"] == "failed"
        assert folder.status()["message"] == f"rank {rank}: it broke"
    # a signal to one rank stops all after the same step, and the run goes on from there
    for ending in ("stop_1", "term_0", "term_1"):
        stopped = outcomes[ending]
        assert stopped.status == "interrupted", stopped.message
        assert RunFolder(stopped.folder).status()["status"] == "interrupted"
        assert torch.load(RunFolder(stopped.folder).last, weights_only=True)["global_step"] in (20, 21)
    own_optimizer(Path.cwd(), ON_ONE_RANK.replace("self.steps == self.at", "False"))
    for outcome in launch(specs[-3:]):
        assert outcome.status == "finished", outcome.message
        assert outcome.result is not None
        assert outcome.result["attempts"] == 2


def _helpers() -> set[int]:
    """Return the processes that Python itself starts: the fork server and the resource tracker."""
    from multiprocessing import forkserver, resource_tracker

    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return {forkserver._forkserver._forkserver_pid, tracker}  # type: ignore[attr-defined]


def test_this_machine_is_one_node() -> None:
    view = RecordingView()
    with (
        pytest.raises(UserError, match=r"trainer.num_nodes=2: this machine is one node"),
        LocalLauncher(LocalLaunchConfig()) as it,
    ):
        it.run(specs_of(*QUICK, "trainer.num_nodes=2"), view)
    assert not view.begun
    assert not Path("runs").exists()


def torchrun(processes: int, *words: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, "-m", "neumann", "train", *words]


@pytest.mark.slow
def test_torchrun_starts_the_ranks_too(tmp_path: Path) -> None:
    words = [*QUICK, "trainer.devices=2", "optimizer=neumann"]
    done = subprocess.run(torchrun(2, *words, "study=torchrun"), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation error") == 1  # rank 0 alone speaks
    (ours,) = launch(specs_of(*words))
    theirs = find(specs_of(*words, "study=torchrun")[0])
    a, b = weights(ours.folder), weights(theirs.path)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (theirs.result() or {})["world_size"] == 2
    refused = subprocess.run(torchrun(1, *words, "seed=1"), capture_output=True, text=True, timeout=250)
    assert refused.returncode != 0
    assert "torchrun started 1 processes and the run wants 2" in refused.stderr
    # the elastic agent takes the other rank down; the folder holds the cause
    dirs = own_optimizer(Path.cwd(), ON_ONE_RANK)
    broken = [*QUICK, "trainer.devices=2", "optimizer=mine", "optimizer.ends=raise_1", "study=broken"]
    failed = subprocess.run(torchrun(2, "--config-dir", dirs, *broken), capture_output=True, text=True, timeout=250)
    assert failed.returncode != 0
    folder = find(specs_of(*broken, dirs=(dirs,))[0])
    assert folder.error.read_text().startswith("rank 1: it broke\n"), folder.error.read_text()
    wait_for(lambda: not set(left_over(f"NEUMANN_CACHE={tmp_path}")) - _helpers(), 20)


ASKS = """
import torch

class Mine(torch.optim.SGD):
    def __init__(self, params, lr, ends="", at=0, weight_decay=0.0):
        super().__init__(params, lr=lr)
    def step(self, closure=None):
        open(f"asked-{torch.are_deterministic_algorithms_enabled()}", "w").close()
        return super().step(closure)
"""


def test_deterministic_kernels_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    dirs = (own_optimizer(Path.cwd(), ASKS),)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for asked in (False, True):
        words = [*QUICK, "optimizer=mine", "trainer.max_epochs=0.1", f"trainer.deterministic={asked}"]
        (outcome,) = launch(specs_of(*words, dirs=dirs))
        assert outcome.status == "finished", outcome.message
        (seen,) = Path.cwd().glob("asked-*")
        assert seen.name == f"asked-{asked}"
        seen.unlink()


class SeenRank:
    """What `RunProcesses` sees of a rank's process, at moments that the test sets."""

    def __init__(self, rank: int, code: int = -9) -> None:
        self.rank, self.lives, self.said, self.code = rank, True, False, code

    def alive(self) -> bool:
        return self.lives

    def answer(self) -> tuple[str, str | None] | None:
        return ("failed", "Connection closed by peer") if self.said else None

    def bad(self) -> bool:
        return True

    def answered_at(self) -> float:
        return 1.0 if self.said else 0.0

    def exit_code(self) -> int:
        return self.code


def test_a_killed_rank_is_named_although_its_end_is_seen_after_the_others_answer() -> None:
    killed, survivor = SeenRank(0), SeenRank(1)
    run: Any = RunProcesses.__new__(RunProcesses)
    run._processes, run._first_bad, run._ended_others, run._stopped = [killed, survivor], None, False, False
    survivor.said = True  # the kernel closes a killed process's sockets before its parent can see that it is dead
    assert not run.settled()
    killed.lives = False
    assert run.settled()
    assert run._how_it_ended(run._first_bad[0])[1] == "rank 0 of 2 was killed by signal 9 (SIGKILL); out of memory?"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (3, "its process left with exit code 3"),
        (255, "its process left with exit code 255, or the fork server that had started it was killed; out of memory?"),
        (-15, "killed by signal 15 (SIGTERM)"),
    ],
)
def test_a_process_whose_fork_server_was_killed_is_not_said_to_have_left(code: int, sentence: str) -> None:
    process = SeenRank(0, code)
    run: Any = RunProcesses.__new__(RunProcesses)
    run._processes, run._stopped = [process], False
    assert run._how_it_ended(process) == ("failed", sentence)
