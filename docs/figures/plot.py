"""Matplotlib figures as SVG for a page: text as text, in the page's own colours, the same bytes every time."""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's own colour of text
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito 2008: told apart by the colour-blind
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "neumann",
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
}


def figure(columns: int = 1, *, width: float = 8.6, height: float = 3.6, sharey: bool = False) -> tuple[Figure, list]:
    """Return an empty figure, sizes in inches, and its axes from left to right."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        axes = drawn.subplots(1, columns, squeeze=False, sharey=sharey)[0]
    return drawn, list(axes)


def svg(drawn: Figure, label: str) -> str:
    """Return ``drawn`` as SVG without a blank line; ``label`` is read to those who cannot see it."""
    for axes in drawn.axes:
        if (legend := axes.get_legend()) is not None:
            legend.set_frame_on(False)
            for words in (*legend.get_texts(), legend.get_title()):
                words.set_color(INK)
    with matplotlib.rc_context(STYLE):
        file = io.StringIO()
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    for number, colour in enumerate(LINES):  # docs/style.css has a lighter one for dark pages
        text = text.replace(colour, f"var(--line-{number})")
    # ids are the document's: two figures of one page must not share them
    mark = re.sub(r"\W+", "-", label.lower())[:24]
    text = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'url\(#([^)]+)\)|href="#([^"]+)"', lambda m: m[0].replace("#", f"#{mark}-"), text)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{label}"', text, count=1)
    return "\n".join(line for line in text.replace("<svg ", '<svg class="plot" ', 1).splitlines() if line.strip())
