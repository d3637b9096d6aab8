"""The precision of a study that leaves it open and whose runs were trained on a device of another kind.

An open precision is the device's (`neumann.config.precision`) and is signed, so a laptop would look for other runs than
the cluster has trained. The study goes on, and is reported, at the precision that its runs have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neumann.errors import UserError
from neumann.store.lookup import Places
from neumann.store.other_precision import finished_elsewhere

if TYPE_CHECKING:
    from neumann.store.archive import Archive
    from neumann.studies.study_run import StudyRun


def recorded_precision(runs: Sequence[StudyRun], archive: Archive) -> str | None:
    """Return the precision that finished runs of the study have, None where it is this device's or none is finished.

    ``runs`` are the study's first phase as this device would train it, ``archive`` has runs of it too. Raises UserError
    where some are finished at this device's precision and some at another one.
    """
    opened = {run.spec.signature: run for run in runs if run.spec.precision_left_open}
    elsewhere: Counter[str] = Counter()
    here: Counter[str] = Counter()
    places = Places()
    for run in opened.values():
        own = run.spec.config.trainer.precision
        here[own] += run.over
        if (other := finished_elsewhere(run.spec, archive, places)) is not None:
            elsewhere[other.config.trainer.precision] += 1
    found = +elsewhere
    if not found:
        return None
    if +here:
        told = " and ".join(f"{count} at {precision}" for precision, count in (+(here + elsewhere)).items())
        raise UserError(
            f"the study leaves trainer.precision open, and of its runs {told} are finished: name one of the two "
            "precisions in its overrides"
        )
    return next(iter(found))
