"""How do runs look beside each other? Figures drawn from plain measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, told apart by colour-blind readers, and a line style each for print
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def learning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str, paths: Sequence[Path]) -> None:
    """Draw validation error (at the eval point) and training loss by epoch, a line a run, into each of ``paths``.

    ``runs`` maps a label to the run's measurements.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from neumann.runs.panel import headline

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, (label, measurements) in enumerate(runs.items()):
        epochs = [m["epoch"] for m in measurements]
        line = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": STYLES[i % len(STYLES)],
            "linewidth": 1.8,
            "label": label,
        }
        left.plot(epochs, [100 * headline(m["validation"])["error"] for m in measurements], **line)
        right.plot(epochs, [m["train_loss"] for m in measurements], **line)
    left.set(xlabel="epoch", ylabel="validation error (%)")
    left.set_ylim(bottom=0)
    right.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
