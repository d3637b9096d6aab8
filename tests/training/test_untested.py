"""A run with trainer.test=false has no test scores anywhere, and goes on to them when it is asked for with them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from neumann.launch.slurm.folder import ListedRun
from neumann.store import find, finished_result
from neumann.store.listing import Filters, list_runs
from neumann.store.steps import STEPS
from neumann.store.vouching import CURVE, DIGEST
from neumann.training.mirror_rows import summary_of
from neumann.training.stopping import Stop
from tests.support.quick_runs import Train, quick

pytestmark = pytest.mark.medium

CLOCKS = ("train_seconds", "eval_seconds", "time", "first_step_at", "attempts", DIGEST, CURVE, STEPS.key)


def plain(result: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({key: value for key, value in result.items() if key not in CLOCKS}))


def test_a_run_that_is_not_tested_has_no_test_scores_anywhere(train: Train) -> None:
    result, folder = train("optimizer=neumann", "trainer.test=false")
    assert (result["status"], result["test"], result["distinct_examples"]["test"]) == ("finished", None, None)
    assert not [path.name for path in folder.path.iterdir() if "test" in path.name]
    assert not [key for key in summary_of(result) if "test" in key]
    (row,) = list_runs(folder.path.parent.parent, Filters())
    assert (row.status, row.test) == ("finished", None)
    again, _ = train("optimizer=neumann", "trainer.test=false")
    assert again == json.loads(json.dumps(result))


def test_a_run_that_kept_its_state_goes_on_to_the_test_alone(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = train("optimizer=neumann", "study=whole")
    first, folder = train("optimizer=neumann", "trainer.test=false", "checkpoint=last")
    spec = quick("optimizer=neumann")
    assert find(spec).path == folder.path
    assert finished_result(spec) is None
    assert finished_result(quick("optimizer=neumann", "trainer.test=false")) is not None
    assert [ListedRun.of(quick("optimizer=neumann", f"trainer.test={v}")).is_over() for v in ("true", "false")] == [False, True]  # fmt: skip
    measured = folder.read_measurements()
    monkeypatch.setattr(Stop, "on_train_batch_end", None)  # no step may be taken again
    result, _ = train("optimizer=neumann")
    assert result["attempts"] == 2
    assert plain(result) == {**plain(whole), "study": "default"}
    assert result["validation"] == first["validation"]
    assert folder.read_measurements() == measured
    assert (folder.path / "test-correct.bin").exists()
    assert not folder.last.exists()
    for asked in ("true", "false"):
        assert finished_result(quick("optimizer=neumann", f"trainer.test={asked}")) is not None


def test_without_its_state_it_is_trained_again_and_says_so(train: Train) -> None:
    first, folder = train("trainer.test=false")
    with pytest.warns(
        UserWarning, match=r"has no test scores, and its last state was not kept \(checkpoint=last keeps"
    ):
        result, _ = train()
    assert result["test"] is not None
    assert result["validation"] == first["validation"]
    assert [m["step"] for m in folder.curve(result)] == [18, 36]


def test_a_diverged_run_needs_no_test(train: Train) -> None:
    result, folder = train("optimizer=sgd", "optimizer.lr=1e30", "trainer.test=false")
    assert result["status"] == "diverged"
    written = (folder.path / "result.json").read_bytes()
    train("optimizer=sgd", "optimizer.lr=1e30")
    assert (folder.path / "result.json").read_bytes() == written


def test_the_gradients_that_an_optimizer_asks_for_are_counted(train: Train, own_group: Any) -> None:
    _, folder = train("optimizer=sgd", "batch.max_per_device=32")
    assert [m["gradient_evaluations"] for m in folder.read_measurements()] == [18, 36]  # micro-batches make one
    text = "# SAM: neumann train optimizer=sharp\n_target_: tests.support.sharpness.SAM\nbase: sgd # inside\nlr: 0.1 # its\n"
    _, folder = train("optimizer=sharp", dirs=(own_group("optimizer", "sharp", text),))
    assert [m["gradient_evaluations"] for m in folder.read_measurements()] == [36, 72]
