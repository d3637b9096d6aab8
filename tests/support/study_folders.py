"""A study of three rows and the folders that its runs would leave, written by hand, damaged where a test wants it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import yaml

from neumann.config import RunSpec, make_spec
from neumann.config.from_overrides import without_seed
from neumann.store import RunFolder, find
from neumann.studies.plan import PlannedRun

STUDY: dict[str, Any] = {
    "title": "A test",
    "question": "Is Neumann better than SGD here?",
    "overrides": ["trainer.max_epochs=2", "batch.size=64", "+model.kwargs.width=8", "recipe.weight_average=0.99"],
    "rows": {
        "sgd": {"label": "SGD", "overrides": ["optimizer=sgd"]},
        "averaged": {"label": "SGD, averaged", "overrides": ["optimizer=sgd"], "point": "average"},
        "neumann": {"label": "Neumann", "overrides": ["optimizer=neumann"]},
    },
    "space": {"optimizer.lr": [0.1, 0.3, 1.0]},
    "seeds": {"tuning": [100, 101, 102], "evaluation": [0, 1, 2]},
    "comparisons": {"primary": "neumann", "reference": "sgd", "smallest_effect": 1.0},
    "paper": {"source": "a paper", "measure": "its error (%)", "rows": {"sgd": 24.3, "neumann": 23.0}},
    "limits": ["It is a test."],
}


def write_study(content: dict[str, Any] | None = None, name: str = "mine") -> Path:
    folder = Path("experiments", name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(content or STUDY, sort_keys=False, allow_unicode=True))
    return folder / "study.yaml"


def spec_of(overrides: tuple[str, ...]) -> RunSpec:
    rest, seed = without_seed(overrides)
    return _spec_of(overrides) if seed is None else _spec_of(rest).at_seed(seed)


@functools.cache  # a fifth of a second each
def _spec_of(overrides: tuple[str, ...]) -> RunSpec:
    return make_spec(overrides)


def scores(error: float, loss: float = 0.1, n: int = 300) -> dict[str, float]:
    return {"loss": loss, "error": error, "wrong": round(error * n), "n": n}


def finish(
    planned: PlannedRun,
    error: float,
    *,
    average: float | None = None,
    test: float | None = None,
    loss: float = 0.1,
    tested: bool = True,
    first: float | None = None,
    spec: RunSpec | None = None,
) -> RunFolder:
    """Write what a finished run leaves: ``error`` at its eval point on validation, ``test`` on the test images.

    ``first`` is the validation error after the first of two epochs; a run that is not ``tested`` has no test scores.
    ``spec`` is the run's where it is made already, as while others are.
    """
    spec = spec or spec_of(tuple(planned.overrides))
    folder = find(spec)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.signed.write_text(json.dumps(spec.signed()))
    own = {"held": scores(error, loss), "average": scores(error if average is None else average, loss)}
    seen = {"held": scores(error if test is None else test, loss), "average": scores(error, loss)}
    before = {"held": scores(error if first is None else first, loss), "average": own["average"]}
    point = "held"
    if planned.row == "neumann":
        point = "base"
        own, seen, before = ({"base": side["held"], **side} for side in (own, seen, before))
    folder.measurements.unlink(missing_ok=True)
    for epoch, measured in ((1, before), (2, own)):
        costs = {"examples": 18 * 64 * epoch, "gradient_evaluations": 18 * epoch, "train_seconds": 0.75 * epoch}
        line = {"step": 18 * epoch, "epoch": float(epoch), "train_loss": 1 / epoch, **costs, "validation": measured}
        folder.append_measurement(line)
    folder.write_result(
        {
            "status": "finished",
            "signature": spec.signature,
            "eval_point": point,
            "step": 36,
            "world_size": 1,
            "validation": own,
            "test": seen if tested else None,
            "train_seconds": 1.5,
        }
    )
    folder.set_status("finished")
    return folder


def diverge(planned: PlannedRun) -> None:
    spec = spec_of(tuple(planned.overrides))
    folder = find(spec)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.signed.write_text(json.dumps(spec.signed()))
    nothing = {"held": {"loss": None, "error": 0.9, "wrong": 270, "n": 300}}
    folder.append_measurement({"step": 3, "epoch": 0.2, "train_loss": None, "validation": nothing})
    folder.write_result(
        {
            "status": "diverged",
            "signature": spec.signature,
            "eval_point": "base" if planned.row == "neumann" else "held",
            "step": 3,
            "validation": nothing,
            "test": None,
            "train_seconds": 0.5,
        }
    )
    folder.set_status("diverged")
