"""What a mirror shows of a run, under the same names live and replayed: its rows by step, its summary, its description.

Importing this module does not import torch, so a run that is over is mirrored at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neumann.config import RunSpec
from neumann.config.wandb_settings import TAG_LENGTH
from neumann.errors import UserError
from neumann.store import confusion, records
from neumann.store.folder import RunFolder
from neumann.store.scores import OBJECTIVE, is_number, objective

Row = dict[str, float]  # by name, with the axes step and examples
AXES = ("step", "examples")
LOSS, RATE = "train/loss", "train/lr"
SECONDS = "train/seconds"  # of training so far, without evaluations
BY_EXAMPLES = "by_examples/"  # of the names that are drawn against examples; all others are against steps
TAGGED = ("data", "model", "optimizer")  # groups whose choices are tags
_OF_LINES = {  # by key of a step line
    "train_loss": LOSS,
    **{key: f"train/{key.removeprefix('train_')}" for key in ("train_loss_main", "train_loss_auxiliary")},
    "lr": RATE,
    **{key: f"train/{key}" for key in ("momentum", "examples_per_second", "grad_norm", "update_norm")},
    "train_seconds": SECONDS,
    "epoch": "epoch",
}


_PLACES = ("step", "epoch", "examples", "optimizer_step")  # of every line
_OF_EITHER = ("train_loss", "train_loss_main", "train_loss_auxiliary", "lr")  # lines or evaluations, whose are denser


def row_of_line(line: Mapping[str, Any], *, by_step: bool = True) -> Row:
    """Return the row of a step line, without rate and loss where the evaluations have them (not ``by_step``)."""
    own = {key: name for key, name in _OF_LINES.items() if by_step or key not in _OF_EITHER}
    return _row(line, {name: line.get(key) for key, name in own.items()})


def row_of_measurement(measurement: Mapping[str, Any], *, by_step: bool) -> Row:
    """Return the row of an evaluation: scores against steps, and against examples as well.

    Where the run is not logged ``by_step``, its rate and its mean training loss since the evaluation before are here.
    """
    values: dict[str, Any] = {"epoch": measurement.get("epoch"), SECONDS: measurement.get("train_seconds")}
    for kind in ("validation", "validation_recalibrated"):
        for point, scores in (measurement.get(kind) or {}).items():
            for key in ("loss", "error"):
                name = score_name(kind, point, key)
                values[name] = values[f"{BY_EXAMPLES}{name}"] = scores.get(key)
    if not by_step:
        values |= {name: measurement[key] for key, name in _OF_LINES.items() if key in measurement}
    return _row(measurement, values)


def row_of_terms(line: Mapping[str, Any]) -> Row:
    """Return the row of a line of terms.jsonl: all its numbers but for where they were taken."""
    return _row(line, {f"terms/{key}": value for key, value in line.items() if key not in _PLACES})


def score_name(kind: str, point: str, key: str) -> str:
    """Return the name of a score: ``kind`` is "validation" and its like, ``key`` "loss" or "error"."""
    return f"{kind}/{point}/{key}"


def _row(record: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """Return the finite ones of ``values``, at the place of ``record``."""
    row = {name: value for name, value in values.items() if is_number(value) and math.isfinite(value)}
    places = {"step": int(record["optimizer_step"]), "examples": int(record["examples"])}
    if not all(0 <= place < 2**63 for place in places.values()):
        raise ValueError(f"it is at step {places['step']}, after {places['examples']} examples")
    return {**row, **places}


def place_of(name: str, row: Row) -> int:
    """Return where the value called ``name`` in ``row`` is drawn: examples seen, or optimizer steps."""
    return int(row["examples" if name.startswith(BY_EXAMPLES) else "step"])


def rows_of(
    lines: Iterable[Mapping[str, Any]],
    measurements: Iterable[Mapping[str, Any]],
    terms: Iterable[Mapping[str, Any]],
    *,
    by_step: bool,
) -> list[Row]:
    """Return all rows of a run in the order in which it made them: at one step the line, the scores, the terms."""
    made = [(line["step"], row_of_line(line, by_step=by_step)) for line in lines]
    made += [(one["step"], row_of_measurement(one, by_step=by_step)) for one in measurements]
    made += [(one["step"], row_of_terms(one)) for one in terms]
    return [row for _, row in sorted(made, key=lambda pair: pair[0])]


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a result, its objective included."""
    keys = ("status", "step", "examples", "epoch", "train_loss", "train_seconds", "best_validation_error")
    summary = {key: result[key] for key in keys if key in result}
    for split in ("validation", "test", "validation_recalibrated", "test_recalibrated"):
        for point, scores in (result.get(split) or {}).items():
            summary |= {f"final/{split}/{point}/{key}": scores.get(key) for key in ("loss", "error", "n")}
    return summary | {OBJECTIVE: objective(result)}


def mirror_id(signature: str, attempt: int) -> str:
    """Return what names an attempt at a run in a mirror, where an attempt that goes on is a run of its own."""
    return f"{signature}-{attempt}"


@dataclass(frozen=True)
class Described:
    """A run as a mirror names and describes it.

    Args:
        signature: the run's.
        attempt: the latest one's number, from 1.
        name: the run's.
        study: the folder it is filed under.
        config: its resolved configuration, as plain data.
        choices: {group: option}.
        provenance: the record of that attempt.
        began: when the first attempt did, in seconds since 1970, where that is known.
    """

    signature: str
    attempt: int
    name: str
    study: str
    config: dict[str, Any]
    choices: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    began: float | None = None

    @classmethod
    def of_spec(cls, spec: RunSpec, attempt: int, provenance: Mapping[str, Any]) -> Described:
        """Return the description of a run that this process trains."""
        study, choices = str(spec.config.study), dict(spec.choices)
        return cls(spec.signature, attempt, spec.name, study, spec.as_dict(), choices, provenance)

    @classmethod
    def of_folder(cls, folder: RunFolder) -> Described:
        """Return the description of the run in ``folder``, from its files alone; nothing of it is executed.

        Raises UserError where it is not a run's folder, or its configuration is damaged.
        """
        record, attempts = records.read_record(folder.path), folder.attempts()
        match = records.RUN.fullmatch(folder.path.resolve().name)
        assert match is not None  # else read_record raises
        choices = {str(group): str(option) for group, option in record["choices"].items()}
        latest = attempts[-1] if attempts else {}
        counted = ((folder.result() or {}).get("attempts"), folder.status().get("attempt"), latest.get("attempt"))
        attempt = next((number for number in counted if isinstance(number, int) and number > 0), 1)
        study = folder.path.resolve().parent.name
        began = attempts[0].get("time") if attempts else None
        time = float(began) if isinstance(began, int | float) and is_number(began) else None
        return cls(record["signature"], attempt, match[1], study, record["config"], choices, latest, time)

    @property
    def id(self) -> str:
        """Return what names this attempt at this run in a mirror."""
        return mirror_id(self.signature, self.attempt)

    @property
    def tags(self) -> list[str]:
        """Return the user's tags, and those of the data, the model and the optimizer."""
        logger = self.config.get("logger")
        given = logger.get("tags") if isinstance(logger, Mapping) else None
        own = [str(tag) for tag in given] if isinstance(given, list | tuple) else []
        return [tag[:TAG_LENGTH] for tag in (*own, *(f"{g}:{self.choices[g]}" for g in TAGGED if g in self.choices))]

    @property
    def is_logged_by_step(self) -> bool:
        """Return whether the run has a step line for every evaluation; those of earlier versions have none."""
        every, evaluated = (
            section.get(key) if isinstance(section := self.config.get(name), Mapping) else None
            for name, key in (("trainer", "log_every_n_steps"), ("derived", "eval_every_steps"))
        )
        return isinstance(every, int) and every > 0 and not (isinstance(evaluated, int) and 0 < evaluated < every)

    def as_config(self) -> dict[str, Any]:
        """Return the configuration, with what identifies the run."""
        about = {"signature": self.signature, "attempt": self.attempt, "provenance": dict(self.provenance)}
        return {**self.config, **about}

    def command(self) -> str | None:
        """Return the command that trains the run again, None where it is not known (see `neumann.config.repeat`)."""
        import shlex

        from neumann.config.from_record import refuse_foreign_code
        from neumann.config.repeat import words_of

        try:
            refuse_foreign_code(self.config)
        except UserError:
            return None
        try:
            words = words_of({"config": self.config, "choices": self.choices, "signature": self.signature})
        except Exception:  # noqa: BLE001 - whatever composing it again may raise, the mirror goes on without it
            return None
        return None if words is None else shlex.join(["neumann", "train", *words])


@dataclass(frozen=True, eq=False)
class Confused:
    """The confusion counts of a run's test, to be drawn.

    Args:
        class_names: by class index.
        pairs: int64 [pairs, (class, answer, images)].
        point: the evaluation point.
        step: optimizer steps of the run.
        examples: examples that it saw.
    """

    class_names: Sequence[str]
    pairs: confusion.Pairs
    point: str
    step: int
    examples: int

    @classmethod
    def read(
        cls, folder: Path, result: Mapping[str, Any], described: Described, last: Mapping[str, Any]
    ) -> Confused | None:
        """Return the counts in a run's ``folder``, at the place of its ``last`` row; None where it has none.

        Raises UserError where they are not what the run wrote.
        """
        pairs = confusion.read(folder, result)
        if pairs is None:
            return None
        data = described.provenance.get("data")
        names = data.get("class_names") if isinstance(data, Mapping) else None
        named = [str(name) for name in names] if isinstance(names, list | tuple) else []
        count = int(pairs[:, :2].max()) + 1
        if len(named) < count:  # a provenance.json that was lost or edited
            named = [str(number) for number in range(count)]
        return cls(named, pairs, str(result.get("eval_point")), int(last["step"]), int(last["examples"]))


@dataclass(frozen=True)
class Recorded:
    """A run to be replayed, read from its files.

    Args:
        folder: where it lies.
        described: what names and describes it.
        status: one of `neumann.store.folder.STATUSES`.
        rows: all of them, in order.
        summary: of its result; only its status where it is not over.
        result: its result, None where it is not over.
        confused: the confusion counts of its test, None where there are none.
    """

    folder: RunFolder
    described: Described
    status: str
    rows: list[Row]
    summary: dict[str, Any]
    result: dict[str, Any] | None
    confused: Confused | None

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """Read the run in ``path``.

        Raises UserError where a process trains it at this moment, where it has nothing to show, and where its files are
        not what it wrote.
        """
        from neumann.store.steps import TERMS, read_lines
        from neumann.store.vouching import is_edited

        folder = RunFolder(path)
        described, status, result = Described.of_folder(folder), folder.status()["status"], folder.result()
        if status == "running":
            raise UserError(f"{path} is being trained: its mirror would lack the rest; mirror it when it is over")
        if result is not None and is_edited(result):
            raise UserError(f"{path / 'result.json'} is not what the run wrote: put back what it wrote")
        lines, terms = read_lines(path, result), read_lines(path, result, TERMS)
        measured = folder.read_measurements() if result is None else folder.curve(result)
        if not (lines or measured):
            raise UserError(f"{path} has nothing to mirror: no step of it is recorded")
        summary = summary_of(result) if result is not None else {"status": status}
        try:
            rows = rows_of(lines, measured, terms, by_step=described.is_logged_by_step)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{path} has a line that no run writes ({type(error).__name__}: {error})") from error
        confused = Confused.read(path, result, described, rows[-1]) if result is not None else None
        return cls(folder, described, status, rows, summary, result, confused)
