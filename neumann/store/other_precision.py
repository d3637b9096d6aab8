"""The same run as a device of another kind would train it: what leaves trainer.precision open is another run there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neumann.config.precision import of_other_devices
from neumann.store.lookup import Places, find, finished_result

if TYPE_CHECKING:
    from neumann.config import RunSpec
    from neumann.store.archive import Archive


def finished_elsewhere(spec: RunSpec, archive: Archive | None = None, places: Places | None = None) -> RunSpec | None:
    """Return the run that is over and differs from ``spec`` in an open trainer.precision alone, None without one.

    It is over in its folder, or in ``archive``; ``places`` is as in `find`.
    """
    if not spec.precision_left_open:
        return None
    others = (spec.at_precision(other) for other in of_other_devices(spec.config.trainer.precision))
    archived = archive.runs if archive is not None else {}
    return next((one for one in others if one.signature in archived or finished_result(one, places) is not None), None)


def said_of_others(specs: Sequence[RunSpec]) -> str | None:
    """Return a sentence where ``specs`` would be trained that are over in the precision of another device."""
    missing = (spec for spec in specs if spec.precision_left_open and finished_result(spec) is None)
    found = [(spec, other) for spec in missing if (other := finished_elsewhere(spec)) is not None]
    if not found:
        return None
    spec, other = found[0]
    own, its = (one.config.trainer.precision for one in (spec, other))
    which = (
        f"{'this run' if len(specs) == 1 else 'one of the runs'} is trained at {own}, this"
        if len(found) == 1
        else f"{len(found)} runs are trained at {own}, this"
    )
    there = f"it is over at {its} in" if len(found) == 1 else f"they are over at {its}, the first in"
    return (
        f"{which} machine's own precision, and {there} {find(other).path}: trainer.precision={its} takes "
        f"{'that result' if len(found) == 1 else 'those results'}"
    )
