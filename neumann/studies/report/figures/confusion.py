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
        names = [short(name, 18) for name in class_names]
        margin = 0.5 + 0.08 * (max(map(len, names)) if count <= NAMED else 0)  # inches, for the names
        side = min(WIDTH - margin - 1.0, max(2.4, 0.32 * count))
        width, height = margin + side + 1.0, margin + side + 0.15  # beside it stands the bar of colours
        figure = sheet(height)
        figure.set_figwidth(width)
        axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
        colours = LinearSegmentedColormap.from_list("shares", [PAPER, BLUE])
        picture = axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(xlabel="predicted", ylabel="class")
        places = range(count) if count <= NAMED else ()
        axes.set_xticks(places, names if count <= NAMED else (), rotation=90)
        axes.set_yticks(places, names if count <= NAMED else ())
        for row, column in np.argwhere(confusion > 0) if count <= COUNTED else ():
            colour = PAPER if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=7, color=colour)
        beside = ((margin + side + 0.15) / width, margin / height, 0.13 / width, side / height)
        bar = figure.colorbar(picture, cax=figure.add_axes(beside))
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
