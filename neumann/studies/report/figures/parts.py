"""The parts that figures share: a grid of small panels, their titles, legend, ranges and plain log ticks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neumann.studies.numbers import printable
from neumann.studies.report.figures.svg import SOFT, Drawing, save
from neumann.studies.results import RowResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.4  # inches
WIDE = 4  # largest over smallest value from which an axis is logarithmic
LEFT, GAP = 0.4, 0.26  # inches


def sheet(height: float) -> Figure:
    """Return an empty figure of the common width, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height))


def nothing(sentence: str) -> Drawing:
    """Return a figure that says why it is empty."""
    figure = sheet(0.8)
    figure.text(0.5, 0.5, sentence, ha="center", va="center", color=SOFT)
    return save(figure, sentence, empty=True)


def none_finished(rows: Sequence[RowResult], so: str) -> str:
    """Return the sentence of a figure without a finished evaluation run; ``so`` says what there is not, therefore."""
    lost = sum(len(row.diverged) for row in rows)
    return (
        f"No evaluation run finished, {lost} diverged: {so}." if lost else f"No evaluation run is finished yet: {so}."
    )


def wrapped(label: str, width: int) -> str:
    """Return a row's label on at most two lines."""
    text = printable(label).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(text, width, max_lines=2, placeholder=" …", break_on_hyphens=False)
    return "\n".join(lines)


def short(label: str, width: int) -> str:
    """Return a row's label on one line."""
    label = printable(label)
    return label if len(label) <= width else label[: width - 1].rstrip() + "…"


class Grid:
    """Small panels, ``n`` in all, in the number of columns that leaves the fewest lines and then the fewest holes.

    ``step`` is the height of a line and ``panel`` that of a panel in it, both in inches; ``letters`` is how many fit
    above a panel.
    """

    def __init__(self, n: int, step: float, panel: float) -> None:
        self.n, self.step, self.panel = n, step, panel
        self.columns = min((3, 4, 5), key=lambda c: (math.ceil(n / c), -n % c))
        self.height = step * math.ceil(n / self.columns)
        self.letters = {3: 34, 4: 25, 5: 19}[self.columns]

    def axes(self, figure: Figure, top: float) -> list[Axes]:
        """Return the panels, the first ``top`` inches above the bottom of the figure."""
        width = (WIDTH - LEFT - 0.1 - GAP * (self.columns - 1)) / self.columns
        height = figure.get_figheight()
        panels = []
        for k in range(self.n):
            line, column = divmod(k, self.columns)
            low = top - (line + 1) * self.step + (self.step - self.panel) / 2
            box = ((LEFT + column * (width + GAP)) / WIDTH, low / height, width / WIDTH, self.panel / height)
            axes = figure.add_axes(box)
            axes.grid(axis="y")
            axes.tick_params(labelsize=7.5, pad=2)
            # Given places need not be sought at every drawing, which takes longer than the lines themselves
            axes.xaxis.set_label_coords(0.5, -0.2)
            axes.yaxis.set_label_coords(-0.2, 0.5)
            if column:
                axes.tick_params("y", left=False, labelleft=False)
            panels.append(axes)
        return panels

    def lowest(self, k: int) -> bool:
        """Return whether no panel lies below panel ``k``."""
        return k + self.columns >= self.n

    def title(self, axes: Axes, row: RowResult) -> None:
        """Name the panel."""
        axes.set_title(wrapped(row.label, self.letters), fontsize=8, y=1.0, pad=4, linespacing=1.05)


def heading(figure: Figure, text: str, top: float) -> None:
    """Write what every panel below measures, ``top`` inches above the bottom of the figure."""
    figure.text(0.008, top / figure.get_figheight(), text, fontsize=9, fontweight="bold", va="top")


def legend(figure: Figure, entries: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    """Explain the marks in one line at the top; an entry is (matplotlib's look of the mark, its meaning)."""
    from matplotlib.lines import Line2D

    figure.legend(
        [Line2D([], [], **look) for look, _ in entries], [label for _, label in entries], loc="upper left",
        bbox_to_anchor=(0.0, 1.0), ncols=len(entries), fontsize=8, handlelength=2.2, borderaxespad=0.2,
        columnspacing=1.6,
    )  # fmt: skip


def finite(values: Iterable[float | None], scale: float = 1.0) -> list[float]:
    """Return the values that are numbers, scaled."""
    return [scale * v for v in values if v is not None and math.isfinite(v)]


def fit_y(axes: Axes, values: Sequence[float]) -> None:
    """Give y the range of ``values``, logarithmic where they span much; zeros then lie below it."""
    above = [v for v in values if v > 0]
    if not values:
        axes.set_yticks([])
    elif above and max(above) > WIDE * min(above):
        low, high = min(above) / 1.4, max(above) * 1.4
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(low, high)
        plain_log(axes.yaxis, low, high)
    else:
        low, high = min(values), max(values)
        pad = 0.15 * (high - low) or 0.1 * abs(high) or 0.1
        axes.set_ylim(max(low - pad, 0) if low >= 0 else low - pad, high + pad)


def shown(axes: Axes, y: float) -> float:
    """Return where ``y`` is drawn: on a logarithmic axis, which has no zero, at its lower end where it lies below."""
    return max(y, axes.get_ylim()[0]) if axes.get_yscale() == "log" else y


def plain_log(axis: Any, low: float, high: float, tried: Sequence[float] = ()) -> None:
    """Write 0.1, 1, 10 instead of powers: decades, or steps between them where there are not three."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [t for e in exponents for m in steps if low <= (t := float(f"{m}e{e}")) <= high]
        if len(ticks) >= 3:
            break
    if len(ticks) < 2:
        ticks = list(tried[:: math.ceil(len(tried) / 4)]) if tried else [low, high]
    axis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / 6)]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(FixedLocator([]))
