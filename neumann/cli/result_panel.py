"""The panel that ends a run: its errors, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if result.get("validation"):
        table.add_row("validation error", scores_line(result["validation"]))
    if result.get("test"):
        table.add_row("test error", scores_line(result["test"]))
    if result["status"] == "diverged":
        table.add_row(
            "diverged",
            f"{diverged_at(result)}: a lower optimizer.lr may help",
        )
    trained = [f"{result['step']} steps"]
    trained += [f"{result['examples']:,} examples"] if result.get("examples") is not None else []
    trained += [f"{result['train_seconds']:.1f} s training"] if result.get("train_seconds") is not None else []
    table.add_row("trained", ", ".join(trained))
    table.add_row("folder", Text(printable(folder)))
    kept = ["result.json", "measurements.jsonl", "config.yaml", "provenance.json", result.get("eval_weights")]
    table.add_row("in it", Text(printable("  ".join(str(name) for name in kept if name))))
    if result.get("wandb"):
        where = "online" if result["wandb"] == "online" else "offline, in wandb/ (wandb sync uploads it)"
        table.add_row("W&B", where)
    status = f"{result['status']}, already there" if returned else result["status"]
    console.print(
        Panel(
            table,
            title=Text(printable(f"{folder.name}: {status}")),
            border_style="red" if result["status"] == "diverged" else "green",
        )
    )
