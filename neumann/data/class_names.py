"""The names of a data set's classes, by which sets are matched and answers are told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neumann.errors import UserError


def refuse_equal_names(names: Sequence[str], where: Path) -> None:
    """Raise UserError where two classes of the set ``where`` have one name: an answer would say neither."""
    seen: dict[str, int] = {}
    for label, name in enumerate(names):
        if (other := seen.setdefault(name, label)) != label:
            raise UserError(
                f"'{where}' calls both class {other} and class {label} '{name}': each needs a name of its own"
            )
