"""The files of `neumann evaluate`: the scores as JSON, tables as CSV, and the confusion matrix as a figure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neumann.store.code_digests import code_of
from neumann.store.files import plain
from neumann.store.new_folder import new_folder
from neumann.store.provenance import provenance
from neumann.studies.report.csv_files import as_csv
from neumann.studies.report.figures.confusion import confusion_figure
from neumann.studies.statistics import proportion_interval

CONFIDENCE, NORMAL = 0.95, 1.959963984540054  # and its quantile


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a run's weights on N images.

    Args:
        run: what was scored, as JSON types.
        data: on which images, as JSON types.
        machine: device and precision.
        class_names: by class index.
        images: paths, or numbers in the set, [N].
        labels: the right classes, int64 [N].
        predicted: the answers, int64 [N].
        losses: cross-entropy, float64 [N], in nats.
        confusion: counts, int64 [class, predicted].
    """

    run: Mapping[str, Any]
    data: Mapping[str, Any]
    machine: Mapping[str, Any]
    class_names: Sequence[str]
    images: Sequence[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]
    confusion: NDArray[np.int64]

    def summary(self) -> dict[str, Any]:
        """Return error and loss with their intervals; None where they are not known, as for a loss that is not finite.

        The error's is Wilson's, the loss's mean ± z s / √n: both cover the luck of the images, not that of the seed.
        """
        n = len(self.labels)
        error = proportion_interval(int((self.labels != self.predicted).sum()), n, CONFIDENCE)
        loss, half = float(self.losses.mean()), None
        if n > 1 and np.isfinite(self.losses).all():
            half = NORMAL * float(self.losses.std(ddof=1)) / n**0.5
        return {
            "n": n,
            "wrong": error.wrong,
            "error": error.rate,
            "error_low": error.low,
            "error_high": error.high,
            "loss": loss if np.isfinite(loss) else None,
            "loss_low": None if half is None else max(0.0, loss - half),
            "loss_high": None if half is None else loss + half,
        }

    def by_class(self) -> list[dict[str, Any]]:
        """Return name, images, errors and loss of every class; of one without images they are None."""
        rows = []
        for at, name in enumerate(self.class_names):
            n, right = int(self.confusion[at].sum()), int(self.confusion[at, at])
            error = proportion_interval(n - right, n, CONFIDENCE) if n else None
            losses = self.losses[self.labels == at]
            rows.append(
                {
                    "class": name,
                    "n": n,
                    "wrong": n - right,
                    "error": error.rate if error else None,
                    "error_low": error.low if error else None,
                    "error_high": error.high if error else None,
                    "loss": float(losses.mean()) if n else None,
                    "predicted": int(self.confusion[:, at].sum()),
                }
            )
        return rows


def write(evaluation: Evaluation, to: Path) -> None:
    """Write all files to the folder ``to``, which is there afterwards whole or not at all. Raises UserError."""
    names = list(evaluation.class_names)
    classes = evaluation.by_class()
    record = {
        **evaluation.summary(),
        "confidence": CONFIDENCE,
        "run": dict(evaluation.run),
        "data": dict(evaluation.data),
        **evaluation.machine,
        "classes": classes,
        "code": code_of([]),
        **provenance(),
        "time": time.time(),
    }
    answers = zip(evaluation.images, evaluation.labels, evaluation.predicted, evaluation.losses, strict=True)
    figure = confusion_figure(evaluation.confusion, names)
    counts = zip(names, evaluation.confusion.tolist(), strict=True)
    files = {
        "evaluation.json": (json.dumps(plain(record), indent=2, allow_nan=False) + "\n").encode(),
        "classes.csv": as_csv(list(classes[0]), ([one[key] for key in one] for one in classes)),
        "confusion.csv": as_csv(["class", *names], ([name, *row] for name, row in counts)),
        "images.csv": as_csv(
            ["image", "class", "predicted", "loss"],
            ([path, names[a], names[b], float(loss)] for path, a, b, loss in answers),
        ),
        "confusion.svg": figure.svg,
        "confusion.png": figure.png,
    }
    with new_folder(to) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
