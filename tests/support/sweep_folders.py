"""Folders as the runs of a sweep leave them, written by hand: any settings, errors and records."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from neumann.config import RunSpec
from neumann.store import RunFolder
from neumann.store.files import write_json
from neumann.store.vouching import sealed, with_curve
from tests.support.study_folders import spec_of

COMMON = ("trainer.max_epochs=2", "logger=none", "study=mine")
POINTS = {"neumann": ("held", "base", "average"), "sgd": ("held",)}


def scores(error: float, n: int = 300) -> dict[str, float]:
    return {"loss": 10 * error, "error": error, "wrong": round(error * n), "n": n}


def put(
    *overrides: str,
    seed: int = 0,
    error: float | None = 0.1,
    test: float | None = None,
    status: str = "finished",
    extra: tuple[str, ...] = (),
    **attempt: Any,
) -> RunFolder:
    """Write what a run leaves in ./runs/mine: with ``status`` finished a result, diverged one without an error.

    ``extra`` are overrides behind all others, ``attempt`` is what provenance.json has beside the choices.
    """
    spec = run_of(*overrides, *extra, seed=seed)
    folder = RunFolder(spec.folder)
    folder.path.mkdir(parents=True)
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(spec.as_dict())))
    write_json(folder.signed, spec.signed())
    write_json(folder.provenance, {"attempts": [{"step": 0, "choices": spec.choices, **attempt}]})
    if status not in ("finished", "diverged"):
        folder.set_status(status, message="it broke" if status == "failed" else None)
        return folder
    points = POINTS.get(spec.choices["optimizer"], ("held",))
    at = "base" if "base" in points else "held"
    value = 0.9 if error is None or status == "diverged" else error
    measured = []
    for epoch in (1, 2):
        here = {p: scores(value if p == at else min(1.0, value + 0.05)) for p in points}
        line = {"step": 37 * epoch, "epoch": float(epoch), "validation": here, "train_loss": value / epoch}
        measured.append(line)
        folder.append_measurement(line)
    result = {
        "status": status,
        "signature": spec.signature,
        "eval_point": at,
        "step": 74,
        "validation": measured[-1]["validation"],
        "test": None if test is None or status == "diverged" else {p: scores(test) for p in points},
        "train_seconds": 1.5,
    }
    folder.write_result(sealed(with_curve(result, measured)))
    folder.set_status(status)
    return folder


def run_of(*overrides: str, seed: int = 0) -> RunSpec:
    return spec_of((*COMMON, *overrides, f"seed={seed}"))
