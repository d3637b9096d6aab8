"""Figures as bytes: matplotlib's output as SVG, PNG and PDF that are the same every time, and as a part of a page.

Inside a page, ids must not meet those of another figure, colours follow the reader's light or dark theme, and text has
the page's font. Figures are laid out in DejaVu Sans, which comes with matplotlib and is wider than the fonts that
readers have, so a label that fits here fits there.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is drawn in these colours takes the page's own, which differ between light and dark (report.css)
INK, SOFT, MUTE, FAINT, PAPER = "#1c1c1e", "#6b6b70", "#b4b4bc", "#dedee2", "#fefefe"
# Okabe and Ito's palette, told apart by colour-blind readers; the first is the page's accent
BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7"
THEME = {
    INK: "ink", SOFT: "soft", MUTE: "mute", FAINT: "faint", PAPER: "paper",
    BLUE: "blue", VERMILION: "vermilion", GREEN: "green", ORANGE: "orange", PURPLE: "purple",
}  # fmt: skip
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.facecolor": "none",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: smaller, searchable, in the reader's font
    "svg.hashsalt": "neumann",
    "pdf.fonttype": 42,  # TrueType: text stays text, as journals ask
}
NAMESPACE = re.compile(r"\{[^}]*\}")
REFERENCE = re.compile(r"url\(#([^)]*)\)")
HEX = re.compile("|".join(THEME))
FAMILY = re.compile(r"font-family: *[^;]*;? *")
FONT = re.compile(r"font: *([^;]*?)(\d+(?:\.\d+)?)px [^;]*")  # the shorthand, which names the family too


@dataclass(frozen=True)
class Drawing:
    """One figure in every format and in words (``alt``); ``empty`` where it only says why nothing is drawn."""

    svg: bytes
    png: bytes
    pdf: bytes
    alt: str
    empty: bool = False


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of a study's figures, whatever the caller's matplotlib is set to."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a label may be in any script
        matplotlib.rcdefaults()  # undoes the caller's matplotlibrc
        matplotlib.rcParams.update(STYLE)
        yield


def save(figure: Figure, alt: str, *, empty: bool = False) -> Drawing:
    """Return the figure in every format, without a date; call it inside `style`."""
    vector, raster, paper = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(vector, format="svg", facecolor="white", metadata={"Date": None})
    figure.savefig(raster, format="png", facecolor="white", dpi=160, metadata={"Software": None})
    figure.savefig(paper, format="pdf", metadata={"CreationDate": None})
    return Drawing(vector.getvalue(), raster.getvalue(), paper.getvalue(), alt, empty)


def inline(drawing: Drawing, prefix: str) -> str:
    """Return the SVG as an element of an HTML page, every id opened by ``prefix``.

    The SVG is parsed, not searched, so that no label can pass for markup.
    """
    root = ElementTree.fromstring(drawing.svg)
    used = {id for node in root.iter() for id in _references(node)}
    _walk(root, lambda node: _rewrite(node, prefix, used))
    background = next((g for g in root.iter("g") if g.find("path") is not None), None)
    if background is not None:  # the figure's own white sheet: the page has a colour
        background.remove(background[0])
    width, height = (float(root.get(side, "0").removesuffix("pt")) for side in ("width", "height"))
    root.attrib.update({"role": "img", "aria-label": drawing.alt, "focusable": "false"})
    root.attrib.update({"width": f"{width * 4 / 3:.0f}", "height": f"{height * 4 / 3:.0f}"})
    return ElementTree.tostring(root, encoding="unicode")


def _references(node: ElementTree.Element) -> Iterator[str]:
    for name, value in node.attrib.items():
        if NAMESPACE.sub("", name) == "href":
            yield value.removeprefix("#")
        yield from REFERENCE.findall(value)


def _walk(node: ElementTree.Element, change: Callable[[ElementTree.Element], None]) -> None:
    for child in list(node):
        # Metadata holds addresses and style would apply to the whole page
        if NAMESPACE.sub("", str(child.tag)) in ("metadata", "style"):
            node.remove(child)
        else:
            _walk(child, change)
    change(node)


def _rewrite(node: ElementTree.Element, prefix: str, used: set[str]) -> None:
    node.tag = NAMESPACE.sub("", node.tag)
    old = {NAMESPACE.sub("", name): value for name, value in node.attrib.items()}
    node.attrib.clear()
    for name, value in old.items():
        if name == "id":
            if value not in used:
                continue
            value = f"{prefix}-{value}"
        elif name == "href":
            value = f"#{prefix}-{value.removeprefix('#')}"
        elif name == "style":
            value = HEX.sub(lambda found: f"var(--fig-{THEME[found[0]]})", value)
            value = FONT.sub(lambda found: f"font-size: {found[2]}px{_weight(found[1])}", FAMILY.sub("", value))
        node.set(name, REFERENCE.sub(lambda found: f"url(#{prefix}-{found[1]})", value))


def _weight(words: str) -> str:
    return "; font-weight: 600" if re.search(r"bold|[6-9]00", words) else ""
