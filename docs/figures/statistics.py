"""Figure for the page on statistics: how small a difference a number of seeds can show."""

from __future__ import annotations

from docs.figures.plot import LINES, figure, svg
from neumann.studies.statistics import smallest_detectable_effect


def detectable() -> str:
    """Draw the smallest true difference that the paired t test finds 8 times in 10, by the number of seeds."""
    drawn, (axes,) = figure(height=3.0)
    seeds = range(2, 31)
    for sd, colour in zip((0.2, 0.4, 0.8), LINES, strict=False):
        effects = [smallest_detectable_effect(sd, n) for n in seeds]
        axes.plot(seeds, effects, color=colour, label=f"{sd} points")
    axes.set_ylim(0, 2)
    axes.set_xlim(2, 30)
    axes.set_xlabel("paired evaluation seeds")
    axes.set_ylabel("smallest difference, points")
    axes.legend(title="standard deviation of the differences", fontsize=9)
    return svg(drawn, "The smallest detectable difference by the number of seeds")
