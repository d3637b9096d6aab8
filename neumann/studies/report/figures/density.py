"""The figure of a spectral density: the share of eigenvalues by their size, and both ends of the spectrum."""

from __future__ import annotations

from collections.abc import Sequence

from neumann.studies.report.figures.parts import WIDTH, plain_log, sheet
from neumann.studies.report.figures.svg import BLUE, INK, VERMILION, Drawing, save, style

HEIGHT = 2.6  # inches


def density_figure(
    grid: Sequence[float], density: Sequence[float], ends: tuple[float, float], parameters: int
) -> Drawing:
    """Return the figure of ``density`` at ``grid``, eigenvalues in ascending order, on a logarithmic axis.

    Args:
        grid: eigenvalues, [points].
        density: the share of all eigenvalues by unit of eigenvalue, [points].
        ends: λ_min and λ_max.
        parameters: the number of eigenvalues; the axis ends where a tenth of one would peak.
    """
    with style():
        figure = sheet(HEIGHT)
        axes = figure.add_axes((0.75 / WIDTH, 0.5 / HEIGHT, 1 - 0.95 / WIDTH, 1 - 0.8 / HEIGHT))
        low, high = max(density) / parameters / 10, 3 * max(density)
        axes.set(yscale="log", ylim=(low, high), xlim=(grid[0], grid[-1]))
        plain_log(axes.yaxis, low, high)
        axes.set(xlabel="eigenvalue", ylabel="density")
        axes.plot(grid, density, color=BLUE, linewidth=1.2)
        for name, value in (("λ_min", ends[0]), ("λ_max", ends[1])):
            axes.axvline(value, color=VERMILION, linewidth=0.8, linestyle=(0, (3, 2)))
            text = f"{name} = {value:.3g}".replace("-", "−")
            side = "right" if value > (grid[0] + grid[-1]) / 2 else "left"
            gap = -4 if side == "right" else 4
            axes.annotate(
                text,
                (value, 1.0),
                (gap, 6),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha=side,
                color=INK,
                fontsize=8,
            )
        alt = f"Spectral density of {parameters:,} eigenvalues between {ends[0]:.3g} and {ends[1]:.3g}."
        return save(figure, alt)
