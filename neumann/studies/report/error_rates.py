"""How often studies of a report's design err: the sentences of its footer, from `neumann.studies.calibration`."""

from __future__ import annotations

from neumann.studies.calibration import DESIGNS, Rates, rates_of
from neumann.studies.numbers import measure
from neumann.studies.results import StudyResults

POOL = "Nesterov on small images of clothes"
WIDE = 0.07  # of false positives at 0.05, from which an interval is said to leave something out


def error_rates(results: StudyResults) -> str:
    """Return how often the primary comparison's design finds what is not there, and what is."""
    primary = next((c for c in results.comparisons if c.primary), None)
    design = "equal" if primary is not None and primary.settings else "grid" if results.grid else "tuned"
    n = primary.effect.n if primary is not None and primary.effect is not None else 0
    known = rates_of(design, results.outcome, n or len(results.evaluation_seeds))
    how = f"{DESIGNS[design]}, {measure(results.outcome)}, n = {n or len(results.evaluation_seeds)}"
    if known is None:
        return f"How often a study of this kind errs ({how}) has not been measured."
    said = (
        f"Studies of this kind ({how}) were resampled from {known.seeds * known.settings} runs of {POOL} "
        f"({known.seeds} seeds at each of {known.settings} rates, in experiments/calibration). Of {known.studies:,} "
        f"in which the two rows do not differ, {_share(known, known.false_positives)} told them apart at p ≤ 0.05. Of "
        f"as many with a true difference of {100 * known.planted:.1f} %, which should be found in "
        f"{100 * known.nominal:.0f} %, {_share(known, known.found)} found it."
    )
    if known.n != n:
        said += f" They were resampled with n = {known.n}, the nearest below."
    if known.false_positives > WIDE:
        said += " That is more than 5 %: the luck of tuning is not in the interval."
    return f"{said} Other tasks and optimizers may have other rates."


def _share(known: Rates, share: float) -> str:
    return f"{100 * share:.1f} % (Monte-Carlo error {100 * known.error_of(share):.1f})"
