"""Diagram of the packages of `neumann` and of the imports between them, from the import graph and pyproject.toml.

An arrow means "imports". One that follows from others (cli → launch → config says cli → config) is left out.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

ROOT = Path(__file__).resolve().parents[2]
WIDTH, GAP, ROW_GAP, LINE, PAD = 760, 24, 30, 17, 12  # in CSS pixels
CHARACTER = 7.0  # mean width of one at 13 px


def layers() -> list[list[str]]:
    """Return the rooms from the command line down, those of one layer together, as import-linter holds them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    rows = [[name.strip() for name in layer.replace(":", "|").split("|")] for layer in contract["layers"]]
    return [row for row in rows if row != ["__main__"]]


def imports(rooms: set[str]) -> set[tuple[str, str]]:
    """Return (room, a room that it imports from), less those that follow from others."""
    graph = grimp.build_graph("neumann", exclude_type_checking_imports=True, cache_dir=None)
    direct = {room: set[str]() for room in rooms}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            here, there = (name.split(".")[1] if "." in name else "" for name in (module, imported))
            if here != there and {here, there} <= rooms:
                direct[here].add(there)

    def reached(room: str) -> set[str]:
        return direct[room] | {far for near in direct[room] for far in reached(near)}

    return {
        (room, other)
        for room, others in direct.items()
        for other in others
        if not any(other in reached(near) for near in others - {other})
    }


def sentence(room: str) -> str:
    """Return the first sentence of the room's docstring."""
    path = ROOT / "neumann" / room
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    end = min((text.find(mark) for mark in (". ", "? ") if mark in text), default=len(text))
    return text[:end].rstrip(".").replace("`", "")


def svg() -> str:
    """Return the diagram as SVG for a page: in the page's own colours, no blank line in it."""
    rows = layers()
    boxes: dict[str, tuple[float, float, float, float]] = {}
    drawn, top = [], 4.0
    for row in rows:
        width = (WIDTH - GAP * (len(row) - 1) - 8) / len(row) if len(row) > 1 else 460
        left = (WIDTH - width * len(row) - GAP * (len(row) - 1)) / 2
        lines = {room: textwrap.wrap(sentence(room), int((width - 2 * PAD) / CHARACTER)) for room in row}
        height = 2 * PAD + LINE * (1 + max(map(len, lines.values())))
        for room in row:
            boxes[room] = (left, top, width, height)
            text = [f'<tspan x="{left + width / 2:.0f}" class="name">{escape(room)}</tspan>']
            text += [f'<tspan x="{left + width / 2:.0f}" dy="{LINE}">{escape(line)}</tspan>' for line in lines[room]]
            drawn.append(
                f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6"/>'
                f'<text y="{top + PAD + 13:.0f}">{"".join(text)}</text>'
            )
            left += width + GAP
        top += height + ROW_GAP
    arrows = [_arrow(boxes[room], boxes[other]) for room, other in sorted(imports(set(boxes)))]
    return (
        f'<svg class="diagram" viewBox="0 0 {WIDTH} {top - ROW_GAP + 4:.0f}" role="img" '
        'aria-label="The rooms of neumann and the imports between them">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>' + "".join([*arrows, *drawn]) + "</svg>"
    )


def _arrow(upper: tuple[float, float, float, float], lower: tuple[float, float, float, float]) -> str:
    """Return a curve from the bottom of one box to the top of another, which lies below."""
    x, y = upper[0] + upper[2] / 2, upper[1] + upper[3]
    to_x, to_y = lower[0] + lower[2] / 2, lower[1] - 2
    bend = min(40.0, (to_y - y) / 2)
    curve = f"M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"
    return f'<path class="arrow" d="{curve}"/>'
