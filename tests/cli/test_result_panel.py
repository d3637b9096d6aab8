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
