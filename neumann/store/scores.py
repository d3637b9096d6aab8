"""What does a search minimise, ours or W&B's? One number of a run's result, always validation and never test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumann.runs.panel import headline

OBJECTIVE = "objective"  # its name on W&B, in a run's summary alone: W&B's search takes the best of a whole history
WORST = 1.0  # the error of a model that is always wrong: no run that finished can be worse


def objective(result: Mapping[str, Any]) -> float:
    """Return the validation error (a fraction) at the eval point after the fixed last step; `WORST` where it diverged.

    It is never the best of the curve, which would favour whatever is measured often or noisily.
    """
    return WORST if result["status"] == "diverged" else float(headline(result["validation"])["error"])
