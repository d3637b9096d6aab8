"""Diagram of a run's life: the statuses that status.json takes, and what leads from one to the next."""

from __future__ import annotations

import textwrap
from xml.sax.saxutils import escape

from neumann.store import OVER, STATUSES

# status: (left, top, what it says)
PLACES = {
    "pending": (290, 4, "composed, resolved and signed; no folder, or one without a status"),
    "running": (290, 150, "claimed; every evaluation is a line in measurements.jsonl, and last.ckpt follows"),
    "interrupted": (4, 150, "stopped by a signal, or its process is gone"),
    "failed": (576, 150, "an exception; error.txt has its traceback"),
    "finished": (120, 310, "result.json is written, last and atomically"),
    "diverged": (460, 310, "the loss was no longer finite: a result as well"),
}
ARROWS = (
    ("pending", "running", "a process claims the folder"),
    ("running", "interrupted", "signal, kill"),
    ("interrupted", "running", "same command"),
    ("running", "failed", "error"),
    ("failed", "running", "same command"),
    ("running", "finished", "the last step"),
    ("running", "diverged", "nan or inf"),
)
WIDTH, HEIGHT, WIDE, HIGH, LINE = 760, 400, 180, 84, 15  # in CSS pixels


def svg() -> str:
    """Return the diagram as SVG for a page: in the page's own colours, no blank line in it."""
    assert set(PLACES) == set(STATUSES), "the statuses have changed"
    boxes, arrows = [], []
    for status, (x, y, meaning) in PLACES.items():
        lines = textwrap.wrap(meaning, 25)
        text = f'<tspan x="{x + WIDE / 2:.0f}" class="name">{status}</tspan>'
        text += "".join(f'<tspan x="{x + WIDE / 2:.0f}" dy="{LINE}">{escape(line)}</tspan>' for line in lines)
        kind = ' class="over"' if status in OVER else ""
        boxes.append(
            f'<rect{kind} x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="6"/><text y="{y + 20}">{text}</text>'
        )
    for here, there, why in ARROWS:
        arrows.append(_arrow(here, there, why))
    return (
        f'<svg class="diagram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="The life of a run">'
        '<defs><marker id="tip2" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>' + "".join([*arrows, *boxes]) + "</svg>"
    )


def _arrow(here: str, there: str, why: str) -> str:
    (x, y, _), (to_x, to_y, _) = PLACES[here], PLACES[there]
    if y == to_y:  # side by side: the way back runs below the way there
        back = here != "running"
        level = y + HIGH * (0.72 if back else 0.28)
        start, end = (x + WIDE, to_x - 2) if x < to_x else (x, to_x + WIDE + 2)
        line = f"M{start} {level:.0f}L{end} {level:.0f}"
        left, top, anchor = (start + end) / 2, level + (16 if back else -6), "middle"
    else:
        start, end = x + WIDE / 2 + (to_x - x) * 0.15, to_x + WIDE / 2
        line = f"M{start:.0f} {y + HIGH}L{end:.0f} {to_y - 2}"
        left, top = (start + end) / 2, (y + HIGH + to_y) / 2 + 4
        left, anchor = (left + 8, "start") if to_x == x else (left + (50 if to_x > x else -50), "middle")
    label = f'<text class="why" style="text-anchor:{anchor}" x="{left:.0f}" y="{top:.0f}">{escape(why)}</text>'
    return f'<path class="arrow two" d="{line}"/>{label}'
