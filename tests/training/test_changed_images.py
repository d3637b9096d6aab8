"""Images that are edited while a run streams them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from neumann.config import make_spec
from neumann.data.batches import StreamBatches
from neumann.errors import UserError
from neumann.store import find
from neumann.training.run import run


@pytest.mark.medium
def test_a_stream_that_changes_under_a_run_ends_it_and_goes_on_once_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, random = tmp_path / "set", np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    words = ["data=image_folder", f"data.root={root}", "data.in_memory=false", "data.workers=0", "batch.size=4"]
    spec = make_spec([*words, "trainer.max_epochs=2", "+model.kwargs.width=8", "logger=none"])
    edited = root / "cat" / "3.png"
    content = edited.read_bytes()
    load, epochs = StreamBatches._load, []

    def load_and_edit(self: StreamBatches, batches: Any) -> Any:
        if self.plan.seed is not None:
            epochs.append(self.epoch)
            if epochs == [0, 1]:
                Image.new("RGB", (8, 8)).save(edited)
        yield from load(self, batches)

    monkeypatch.setattr(StreamBatches, "_load", load_and_edit)
    with pytest.raises(UserError, match="have changed since the command began"):
        run(spec, Console(file=io.StringIO()))
    folder = find(spec)
    assert len(folder.measurements.read_text(encoding="utf-8").splitlines()) == 1  # of the first epoch
    edited.write_bytes(content)
    result = run(spec, Console(file=io.StringIO()))
    assert epochs == [0, 1, 1]
    assert (result["status"], result["attempts"]) == ("finished", 2)
