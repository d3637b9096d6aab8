"""A search asks for the same trials whenever it is started, trains no run twice, and reports its best trial."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from neumann.config import RunSpec, make_specs
from neumann.errors import Interrupted, UserError
from neumann.search.optuna import Trial, conclusion, run_search
from neumann.store import RunFolder
from neumann.store.files import read_json
from neumann.store.scores import objective
from tests.support.instant_search import LR, Answer, InstantLauncher, bowl, read, run
from tests.support.launching import left_over, wait_for


def rates(trials: Sequence[Trial]) -> list[str]:
    return [trial.values["optimizer.lr"] for trial in trials]


@pytest.mark.medium
@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_the_same_command_asks_for_the_same_trials_and_another_seed_for_others(sampler: str) -> None:
    words = (f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=16", LR, "batch.size=32,64")
    wanted = read(*words)
    first, second = run(wanted, InstantLauncher()), run(wanted, InstantLauncher())
    assert [trial.values for trial in first] == [trial.values for trial in second]
    assert len(set(rates(first))) == 16
    assert rates(run(read(*words, "hydra.sweeper.sampler.seed=1"), InstantLauncher())) != rates(first)


@pytest.mark.medium
def test_the_same_in_another_process(python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from tests.support import instant_search as t\n"
        "wanted = t.read('hydra.sweeper.n_trials=14', t.LR, 'batch.size=32,64', 'optimizer=sgd,adam')\n"
        "print([trial.values for trial in t.run(wanted, t.InstantLauncher())])"
    )
    trials = run(read("hydra.sweeper.n_trials=14", LR, "batch.size=32,64", "optimizer=sgd,adam"), InstantLauncher())
    assert len(trials) == 14
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert python(code) == f"{[trial.values for trial in trials]}\n"


@pytest.mark.medium
def test_quasi_random_trials_are_spread_from_the_first_one_on() -> None:
    trials = run(read("hydra/sweeper/sampler=qmc", "hydra.sweeper.n_trials=16", LR), InstantLauncher())
    bins = sorted(int((math.log10(float(rate)) + 3) / 3 * 16) for rate in rates(trials))
    assert bins == list(range(16))  # one in each sixteenth, which random trials are not


@pytest.mark.medium
def test_tpe_learns_and_keeps_away_from_what_diverged() -> None:
    def high_diverges(spec: RunSpec) -> Answer:
        return ("diverged", 0.0) if spec.config.optimizer["lr"] > 0.1 else bowl(spec)

    words = ("hydra.sweeper.n_trials=60", "hydra.sweeper.n_jobs=2", LR)
    trials = run(read(*words), InstantLauncher(high_diverges))
    began = [float(rate) > 0.1 for rate in rates(trials[:10])]
    later = [float(rate) > 0.1 for rate in rates(trials[10:])]
    assert sum(began) >= 2  # a third of the interval
    assert sum(later) <= 8  # random ones have 16.7
    near = [abs(math.log(float(rate) / 0.03)) < 1 for rate in rates(trials[10:])]
    assert sum(near) > 25  # random ones have 14.5


def test_a_failed_trial_is_told_as_failed_and_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, tuple[Any, Any]] = {}
    tell = optuna.Study.tell

    def listen(study: optuna.Study, trial: optuna.Trial, values: Any = None, state: Any = None) -> Any:
        told[trial.number] = values, state
        return tell(study, trial, values, state)

    monkeypatch.setattr(optuna.Study, "tell", listen)

    def fails(spec: RunSpec) -> Answer:
        return ("failed", 0.0) if spec.config.optimizer["lr"] > 0.1 else bowl(spec)

    wanted = read("hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=4", LR)
    trials = run(wanted, InstantLauncher(fails))
    failed = [trial.number for trial in trials if trial.status == "failed"]
    finished = {trial.number: trial.objective() for trial in trials if trial.status == "finished"}
    assert failed
    assert len(failed) + len(finished) == 12
    fail = optuna.trial.TrialState.FAIL
    assert told == dict.fromkeys(failed, (None, fail)) | {n: (value, None) for n, value in finished.items()}
    first, *_ = conclusion(wanted, trials, [])
    assert f"best of 12 trials, {len(failed)} failed: trial {min(finished, key=finished.__getitem__)}, " in first


@pytest.mark.medium
def test_every_seed_counts_by_the_mean_and_one_that_diverged_counts_as_the_worst() -> None:
    def by_seed(spec: RunSpec) -> Answer:
        lr, seed = spec.config.optimizer["lr"], spec.config.seed
        return ("diverged" if lr > 0.3 and seed == 2 else "finished"), 0.1 * seed

    wanted = read("hydra.sweeper.n_trials=10", "seed=1,2,3", LR)
    launcher = InstantLauncher(by_seed, parallel=4)
    trials = run(wanted, launcher)
    assert launcher.calls == [6, 6, 6, 6, 6]  # two trials keep four busy
    for trial in trials:
        assert [outcome.spec.config.seed for outcome in trial.outcomes] == [1, 2, 3]
        if float(trial.values["optimizer.lr"]) > 0.3:
            assert (trial.status, trial.objective()) == ("diverged", 1.0)
        else:
            assert trial.objective() == pytest.approx(0.2)
    assert {trial.status for trial in trials} == {"finished", "diverged"}


@pytest.mark.medium
@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
@pytest.mark.parametrize("stop_at", [1, 5, 13])
def test_a_search_that_was_stopped_goes_on_with_the_same_trials(sampler: str, stop_at: int) -> None:
    wanted = read(f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=16", "hydra.sweeper.n_jobs=3", LR)
    untouched = run(wanted, InstantLauncher())
    launcher = InstantLauncher()
    launcher.stop_at = stop_at
    with pytest.raises(Interrupted, match=f"stopped with {stop_at // 3 * 3} of 16 trials over"):
        run(wanted, launcher)
    launcher.stop_at = None
    again = run(wanted, launcher)
    assert [trial.values for trial in again] == [trial.values for trial in untouched]
    assert sorted(launcher.trained) == sorted({outcome.spec.signature for t in untouched for outcome in t.outcomes})


@pytest.mark.medium
def test_only_tpe_is_asked_in_generations_of_what_trains_at_once() -> None:
    for words, calls in (
        (["hydra.sweeper.n_trials=7"], [3, 3, 1]),
        (["hydra.sweeper.n_trials=7", "hydra.sweeper.n_jobs=5"], [5, 2]),
        (["hydra.sweeper.n_trials=7", "hydra/sweeper/sampler=qmc"], [7]),
        (["hydra.sweeper.n_trials=7", "hydra/sweeper/sampler=random", "hydra.sweeper.n_jobs=4"], [4, 3]),
    ):
        launcher = InstantLauncher(parallel=3)
        run(read(*words, LR), launcher)
        assert launcher.calls == calls


def test_the_objective_is_validation_at_the_eval_point_after_the_last_step() -> None:
    scores = {"held": {"error": 0.3}, "base": {"error": 0.2}}
    result = {
        "status": "finished",
        "validation": scores,
        "test": {"base": {"error": 0.0}},
        "best_validation_error": 0.1,
    }
    assert objective(result) == 0.2
    assert objective(result | {"validation": {"held": {"error": 0.3}}}) == 0.3
    assert objective(result | {"status": "diverged"}) == 1.0


@pytest.mark.medium
def test_the_conclusion_names_a_command_the_edge_and_how_often_was_tried() -> None:
    wanted = read(
        "hydra.sweeper.n_trials=32", "hydra/sweeper/sampler=qmc", "optimizer.lr=tag(log,interval(0.03,1))", "name='a b'"
    )
    trials = run(wanted, InstantLauncher())
    first, command, *more = conclusion(wanted, trials, ["my conf"])
    best = min(trials, key=Trial.rank)
    assert first == f"best of 32 trials: trial {best.number}, validation error {100 * best.objective():.2f} %"
    assert shlex.split(command)[:4] == ["neumann", "train", "--config-dir", "my conf"]
    (spec,) = make_specs([shlex.split(command)[4:]])
    assert spec.signature == best.outcomes[0].spec.signature
    assert spec.config.name == "a b"
    edge = [line for line in more if line.startswith("warning")]
    assert len(edge) == 1
    assert "lower edge of 'optimizer.lr=tag(log,interval(0.03,1))'" in edge[0]
    assert "optimistic" in more[-1]
    middle = read("hydra.sweeper.n_trials=12", LR)
    assert not any("warning" in line for line in conclusion(middle, run(middle, InstantLauncher()), []))


def test_equal_errors_go_to_the_lower_loss_and_equal_settings_count_once() -> None:
    wanted = read("hydra.sweeper.n_trials=9", "batch.size=32,64", "seed=0,1", "optimizer=sgd")
    launcher = InstantLauncher(lambda spec: ("finished", 0.5))
    trials = run(wanted, launcher)
    assert len(launcher.trained) == 4
    for outcome in (o for t in trials if t.values["batch.size"] == "64" for o in t.outcomes):
        outcome.result["validation"]["base"]["loss"] = 0.5
    first, command, *_ = conclusion(wanted, trials, [])
    assert "best of 9 trials (2 different settings)" in first
    assert first.endswith("validation error 50.00 %, mean of 2 seeds")
    assert command == "  neumann train -m optimizer=sgd batch.size=64 seed=0,1"


def test_where_none_finished_nothing_is_best() -> None:
    wanted = read("hydra.sweeper.n_trials=3", LR)
    (line,) = conclusion(wanted, run(wanted, InstantLauncher(lambda spec: ("diverged", 0.1))), [])
    assert line == "none of 3 trials finished: 3 diverged"


def test_without_optuna_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs Optuna: pip install 'neumann\[optuna\]'"):
        run_search(read(LR), [], Console())


@pytest.mark.medium
def test_a_corner_that_does_not_compose_is_refused_before_anything_trains() -> None:
    for words, part in (
        (["optimizer=neumann,sgd", "optimizer.alpha=interval(0,1)"], "'alpha'"),
        (["batch.size=int(interval(8,100000))"], "batch.size=100000 does not fit"),
        (["recipe.label_smoothing=interval(0,1)"], "label_smoothing=1.0 is out of range"),
    ):
        console = Console(file=io.StringIO())
        with pytest.raises(UserError, match=part):
            run_search(read(*words), [], console)
        assert console.file.getvalue() == ""  # type: ignore[attr-defined]
        assert not Path("runs").exists()


WORDS = [
    *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", LR, "optimizer=sgd"),
    *("hydra.sweeper.sampler.n_startup_trials=2", "trainer.max_epochs=12", "batch.size=64", "+model.kwargs.width=8"),
    *("logger=none", "launch.parallel=2", "launch.threads=1"),
]


def folders(study: str) -> dict[str, RunFolder]:
    return {path.name: RunFolder(path) for path in Path("runs", study).glob("d*")}


@pytest.mark.timeout(600)  # four commands, each of which imports everything
@pytest.mark.slow
def test_kill_9_in_the_middle_and_once_more_ends_as_one_untouched(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neumann", "train", "-m", *WORDS]
    process = subprocess.Popen([*command, "study=killed"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: sum(f.result() is None and bool(f.read_measurements()) for f in folders("killed").values()) and
             sum(f.result() is not None for f in folders("killed").values()) >= 2)  # fmt: skip
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    wait_for(lambda: not left_over(f"NEUMANN_CACHE={tmp_path}"), 30)
    before = {name: folder.result() for name, folder in folders("killed").items()}
    assert 2 <= sum(result is not None for result in before.values()) < 4
    done = [
        subprocess.run([*command, f"study={s}"], capture_output=True, text=True, timeout=200)
        for s in ("killed", "whole")
    ]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    killed, whole = folders("killed"), folders("whole")
    assert sorted(killed) == sorted(whole)
    assert len(whole) == 4
    for name, folder in killed.items():
        result, other = folder.result(), whole[name].result()
        assert result is not None
        assert other is not None
        assert result["validation"] == other["validation"]
        if before.get(name) is not None:
            assert result == before[name]
            assert len(read_json(folder.provenance)["attempts"]) == 1
    ends = [[line.replace("killed", "whole") for line in d.stdout.splitlines()[-3:]] for d in done]
    assert ends[0] == ends[1]
    assert "test" not in json.dumps(done[1].stdout)  # which is not to choose anything here
    copied = shlex.split(next(line for line in done[1].stdout.splitlines() if line.startswith("  neumann train")))
    again = subprocess.run([sys.executable, "-m", "neumann", *copied[1:]], capture_output=True, text=True, timeout=60)
    assert "already there" in again.stdout
