"""What does this project do, in a minute? Neumann beside Nesterov and SGD on real digits, with a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from neumann.config import RunSpec, make_spec
from neumann.runs import find
from neumann.runs.files import replace_file
from neumann.runs.folder import make_folder
from neumann.runs.panel import headline
from neumann.studies.figures import learning_curves

STUDY = "demo"
ROWS = {"Neumann": "neumann", "Nesterov": "nesterov", "SGD, momentum": "sgd"}
CAVEAT = (
    "One seed each and one rate for all, so this shows how runs are made, recorded and drawn, not which optimizer is "
    "better: on 300 test images a single image is 0.33 %."
)


def demo(console: Console) -> int:
    """Train the three runs that are not finished yet, print the table, draw the figure; return the exit code."""
    specs = {label: make_spec([f"optimizer={option}", f"study={STUDY}"]) for label, option in ROWS.items()}
    folder = next(iter(specs.values())).folder.parent
    make_folder(folder)
    results: dict[str, Mapping[str, Any]] = {}
    for number, (label, spec) in enumerate(specs.items(), start=1):
        size = f"{spec.facts.train_count} training images, {spec.config.derived.total_steps} steps"
        console.print(f"[bold]{number}/{len(specs)} {label}[/]: {size} of {spec.config.batch.size}", highlight=False)
        results[label] = _train(spec, console)
    rows = [_row(label, specs[label], results[label]) for label in specs]
    header = ["optimizer", "rate", "validation error", "test error", "test loss", "seeds", "seconds"]
    text = folder / "table.md"
    replace_file(text, _markdown(header, rows).encode())
    figures = [folder / "learning-curves.png", folder / "learning-curves.svg"]
    curves = {label: find(spec).read_measurements() for label, spec in specs.items()}
    facts = next(iter(specs.values())).facts
    title = f"Digits: {facts.train_count} training and {facts.validation_count} validation images, one seed each"
    learning_curves(curves, title, figures)
    console.print(_table(header, rows))
    console.print(CAVEAT, highlight=False)
    for name, path in (("table", text), ("figure", figures[0]), ("runs", folder)):
        console.print(f"{name:>7}: {path}", highlight=False, soft_wrap=True)
    return 0


def _train(spec: RunSpec, console: Console) -> Mapping[str, Any]:
    result = find(spec).result()
    if result is None:
        from neumann.training.run import run  # torch is imported only where something is left to train

        result = run(spec, console)
    return result


def _row(label: str, spec: RunSpec, result: Mapping[str, Any]) -> list[str]:
    rate = f"{spec.config.optimizer['lr']:g}"
    seconds = f"{result['train_seconds']:.1f}"
    validation = headline(result["validation"])
    if result["test"] is None:
        return [label, rate, result["status"], result["status"], "", "1", seconds]
    test = headline(result["test"])
    errors = [f"{100 * s['error']:.2f} % ({s['wrong']}/{s['n']})" for s in (validation, test)]
    return [label, rate, *errors, f"{test['loss']:.4f}", "1", seconds]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{CAVEAT}\n"


def _table(header: list[str], rows: list[list[str]]) -> Table:
    table = Table(title="Digits, at each optimizer's eval point, after the last step")
    for name in header:
        table.add_column(name, justify="left" if name == "optimizer" else "right")
    for row in rows:
        table.add_row(*row)
    return table
