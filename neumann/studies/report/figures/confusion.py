"""The figure of a confusion matrix: of the images of each class, the share that was taken for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neumann.studies.numbers import percent
from neumann.studies.report.figures.parts import WIDTH, sheet, short
from neumann.studies.report.figures.svg import BLUE, INK, PAPER, Drawing, save, style

NAMED = 40  # classes whose names have room
COUNTED = 16  # classes whose cells have room for a number
WORST = 3  # confusions that are told in words


def confusion_figure(confusion: NDArray[np.int64], class_names: Sequence[str]) -> Drawing:
    """Return the figure of ``confusion`` [true, predicted], counts of images. A class without images has no colour."""
    from matplotlib.colors import LinearSegmentedColormap

    count = len(class_names)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)
    with style():
        height = min(WIDTH, 2.4 + 0.22 * count)
        figure = sheet(height)
        axes = figure.add_axes((0.24, 1.35 / height, 0.6, 1 - 1.6 / height))
        colours = LinearSegmentedColormap.from_list("shares", [PAPER, BLUE])
        picture = axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(xlabel="predicted", ylabel="class")
        names = [short(name, 18) for name in class_names]
        places = range(count) if count <= NAMED else ()
        axes.set_xticks(places, names if count <= NAMED else (), rotation=90)
        axes.set_yticks(places, names if count <= NAMED else ())
        for row, column in np.argwhere(confusion > 0) if count <= COUNTED else ():
            colour = PAPER if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=7, color=colour)
        bar = figure.colorbar(picture, cax=figure.add_axes((0.87, 1.35 / height, 0.02, 1 - 1.6 / height)))
        bar.set_label("share of the class")
        right = int(np.trace(confusion))
        said = "; ".join(f"{names[a]} taken for {names[b]} {n} times" for a, b, n in worst(confusion)[:WORST])
        wrong = percent(1 - right / max(1, int(confusion.sum())))
        alt = f"Confusion matrix of {int(confusion.sum())} images: {wrong} % wrong. Most often: {said or 'none'}."
        return save(figure, alt)


def worst(confusion: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return (class, predicted, count) of every confusion, the most frequent first."""
    found = [(int(a), int(b), int(confusion[a, b])) for a, b in np.argwhere(confusion > 0) if a != b]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))
