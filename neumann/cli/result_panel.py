"""The panel that ends a run: its errors, and where its files are."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from neumann.errors import printable
from neumann.store.scores import diverged_at, scores_line


def result_panel(console: Console, folder: Path, result: Mapping[str, Any], *, returned: bool = False) -> None:
    """Print the errors of a run and where its files are.

    console    where it is printed
    folder     the run folder
    result     the content of its result.json
    returned   True where the run was over already and was not trained now
    """
    rows: list[tuple[str, str]] = []
    if result.get("validation"):
        rows.append(("validation error", scores_line(result["validation"])))
    if result.get("test"):
        rows.append(("test error", scores_line(result["test"])))
    if result["status"] == "diverged":
        rows.append(("diverged", f"{diverged_at(result)}: a lower optimizer.lr may help"))
    trained = [f"{result['step']} steps"]
    trained += [f"{result['examples']:,} examples"] if result.get("examples") is not None else []
    trained += [f"{result['train_seconds']:.1f} s training"] if result.get("train_seconds") is not None else []
    rows.append(("trained", ", ".join(trained)))
    if batch := _batch(result):
        rows.append(("batch", batch))
    rows.append(("folder", str(folder)))
    kept = ["result.json", "measurements.jsonl", "config.yaml", "provenance.json", result.get("eval_weights")]
    rows.append(("in it", "  ".join(str(name) for name in kept if name)))
    if result.get("wandb"):
        upload = f"offline: wandb sync {shlex.quote(f'{folder}/wandb')}/offline-run-* uploads it"
        rows.append(("W&B", "online" if result["wandb"] == "online" else upload))
    title = Text(printable(f"{folder.name}: {result['status']}{', already there' if returned else ''}"))
    rows = [(label, printable(value)) for label, value in rows]
    wide = max(len(label) for label, _ in rows)
    style = "red" if result["status"] == "diverged" else "green"
    whole = [wide + 2 + cell_len(value) for label, value in rows if label in ("folder", "W&B")]
    if max(cell_len(title.plain), *whole) + 4 > console.width:
        # A frame would fold a path or a signature, which could not be copied then
        title.stylize(style)
        console.print(title, soft_wrap=True)
        for label, value in rows:
            console.print(Text.assemble((f"{label:<{wide}}  ", "bold"), value), soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for label, value in rows:
        table.add_row(label, Text(value))
    console.print(Panel(table, title=title, border_style=style))


def _batch(result: Mapping[str, Any]) -> str | None:
    """Return how the global batch was split, None where it was not, or where an earlier version recorded nothing."""
    batch = result.get("batch")
    keys = ("size", "asked", "micro_batch", "accumulation", "devices", "norm_size")
    if not isinstance(batch, Mapping) or not all(isinstance(batch.get(key), int) for key in keys):
        return None
    size, asked, micro, accumulation, devices, norm = (batch[key] for key in keys)
    if size == asked == micro == norm:
        return None
    on = "1 device" if devices == 1 else f"{devices} devices"
    words = [f"{size:,} = {micro:,} × {accumulation} micro-batch{'es' * (accumulation > 1)} × {on}"]
    words += [f"rounded from {asked:,}"] if asked != size else []
    words += [f"ghost batches of {norm:,}"] if norm != micro else []
    return ", ".join(words)
