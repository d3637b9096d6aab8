"""The panel that ends a run never folds a path or a signature, however narrow the terminal is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from neumann.cli.result_panel import result_panel

RESULT = {
    "status": "finished",
    "eval_point": "base",
    "step": 74,
    "examples": 2368,
    "train_seconds": 1.5,
    "wandb": "offline",
    "validation": {"base": {"loss": 0.1, "error": 0.02, "wrong": 6, "n": 300}},
    "test": {"base": {"loss": 0.1, "error": 0.03, "wrong": 9, "n": 300}},
}


@pytest.mark.parametrize("width", [40, 80, 250])
def test_a_path_is_one_piece_and_the_upload_names_where_the_files_are(width: int) -> None:
    folder = Path("runs/a_study_with_a_long_name/image_folder-a_long_model_name-neumann-s0-0123456789ab")
    out = io.StringIO()
    result_panel(Console(file=out, width=width, force_terminal=True, color_system=None), folder, RESULT)
    said = out.getvalue()
    assert f"{folder.name}: finished" in said
    assert f"wandb sync {folder}/wandb/offline-run-*" in said
    assert any(str(folder) in line and "wandb" not in line for line in said.splitlines())
    assert ("╭" in said) == (width == 250)


def test_a_name_in_wide_letters_leaves_the_frame_for_what_does_not_fit() -> None:
    folder = Path("runs/default/日本日本日本日本日本日本日本-s0-0123456789ab")
    out = io.StringIO()
    result = {key: value for key, value in RESULT.items() if key != "wandb"}
    result_panel(Console(file=out, width=70, force_terminal=True, color_system=None), folder, result)
    assert any(line.endswith(str(folder)) for line in out.getvalue().splitlines())


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((1008, 1009, 252, 4, 1, 252), "1,008 = 252 × 4 micro-batches × 1 device, rounded from 1,009"),
        ((32_000, 32_000, 160, 25, 8, 32), "32,000 = 160 × 25 micro-batches × 8 devices, ghost batches of 32"),
        ((64, 64, 32, 1, 2, 32), "64 = 32 × 1 micro-batch × 2 devices"),
        ((64, 64, 64, 1, 1, 64), None),
        (None, None),
    ],
)
def test_a_batch_that_was_split_says_how(batch: tuple[int, ...] | None, words: str | None) -> None:
    keys = ("size", "asked", "micro_batch", "accumulation", "devices", "norm_size")
    result = {**RESULT, **({"batch": dict(zip(keys, batch, strict=True))} if batch else {})}
    out = io.StringIO()
    result_panel(Console(file=out, width=200, color_system=None), Path("runs/default/x"), result)
    said = out.getvalue()
    assert (f"batch             {words}" in said) if words else ("micro-batches" not in said)
