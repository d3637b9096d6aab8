"""Seconds to list 5,000 runs, the first time and with the index.

python benchmarks/listing_runs.py [RUNS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from neumann.config import make_spec
from neumann.store.listing import Filters, list_runs


def make(output: Path, many: int) -> None:
    """Write the folders of ``many`` runs, of which one in ten has failed."""
    spec = make_spec(["optimizer=neumann"])
    signed = spec.signed()
    scores = {"held": {"loss": 0.3, "error": 0.1, "wrong": 30, "n": 300}}
    for i in range(many):
        folder = output / f"study{i % 5}" / f"digits-small_cnn-neumann-s{i}-{i:012x}"
        folder.mkdir(parents=True)
        signed["config"]["seed"] = i
        (folder / "signed.json").write_text(json.dumps(signed, indent=2))
        lines = [json.dumps({"step": 37 * (k + 1), "validation": scores, "train_loss": 0.5}) for k in range(20)]
        (folder / "measurements.jsonl").write_text("\n".join(lines) + "\n")
        failed = i % 10 == 0
        if not failed:
            result = {"status": "finished", "step": 740, "validation": scores, "test": scores}
            (folder / "result.json").write_text(json.dumps(result, indent=2))
        status = {"status": "failed" if failed else "finished", "time": time.time(), "step": 740}
        (folder / "status.json").write_text(json.dumps(status, indent=2))


def main() -> None:
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as place:
        output = Path(place)
        make(output, many)
        questions = {
            "first time": Filters(),
            "second time": Filters(),
            "third time": Filters(),
            "--status failed": Filters(statuses=["failed"]),
            "--where optimizer.lr=0.1": Filters(where=[("optimizer.lr", "0.1")]),
        }
        for name, filters in questions.items():
            begun = time.perf_counter()
            rows = list_runs(output, filters)
            print(f"{name:<28}{len(rows):>6} runs  {time.perf_counter() - begun:6.3f} s")
        size = (output / ".runs-index.json").stat().st_size
        print(f"{'index':<28}{size / 1e6:>6.1f} MB")
        for words in (["--status", "failed"], []):
            begun = time.perf_counter()
            command = [sys.executable, "-m", "neumann", "runs", place, *words]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("\n")
            name = " ".join(["neumann runs", *words])
            print(f"{name:<28}{lines - 1:>6} lines {time.perf_counter() - begun:6.3f} s, the whole process")


if __name__ == "__main__":
    main()
