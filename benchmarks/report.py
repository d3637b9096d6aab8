"""Seconds and memory of `neumann report`, for 100 and 2,000 runs: the first time, unchanged, and after one more run.

    python benchmarks/report.py [--runs 100 2000] [--repeat 3] [--write]

The runs are those of experiments/regularizers/results/full/runs.jsonl.gz, copied to further seeds: what a copy signs is
what a run at its seed signs, so the command finds it as it finds any run, and its errors are the original's, moved by a
few images so that no two seeds are alike. Each number is that of a whole process, wall time beside processor time,
which a loaded machine moves less. A study's report is rendered from run folders and from a packed archive, and
`neumann report --runs` from the folders. Python's compiled files are there, as after an installation.
"""

from __future__ import annotations

import argparse
import compileall
import copy
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

import neumann
from neumann.config import RunSpec, make_specs
from neumann.store.archive import Archive, ArchivedRun
from neumann.store.provenance import provenance
from neumann.store.vouching import sealed, with_curve
from neumann.studies.plan import load_study

RESULTS = Path(__file__).parent / "results"
POOL = Path(__file__).parents[1] / "experiments" / "regularizers"
ROWS, RATES = 8, 4  # of that study
GOALS = {("unchanged", 100): "1 s", ("unchanged", 2000): "1 s", ("first", 100): "5 s", ("first", 2000): "15 s, 1 GB"}
NAME = "bench"


def make(count: int) -> list[Path]:
    """Write a study of about ``count`` runs into ./experiments and their folders into ./runs; return the folders."""
    content = yaml.safe_load((POOL / "study.yaml").read_text())
    seeds = max(1, count // (ROWS * RATES))
    target = max(1, (count - seeds * ROWS * RATES) // RATES)  # seeds of the target's row alone
    content["seeds"] = {"evaluation": list(range(seeds)), "tuning": list(range(10_000, 10_000 + target))}
    file = Path("experiments", NAME, "study.yaml")
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    jobs = dict.fromkeys(planned.overrides for planned in load_study(NAME).tuning())
    pool: dict[str, list[ArchivedRun]] = {}
    for run in Archive.read(POOL / "results" / "full" / "runs.jsonl.gz").runs.values():
        pool.setdefault(_but_seed(run.signed), []).append(run)
    return [_write(spec, pool[_but_seed(spec.signed())]) for spec in make_specs([list(job) for job in jobs])]


def _but_seed(signed: Mapping[str, Any]) -> str:
    config = {key: value for key, value in signed["config"].items() if key != "seed"}
    return json.dumps(json.loads(json.dumps({**signed, "config": config})), sort_keys=True)


def _write(spec: RunSpec, donors: Sequence[ArchivedRun]) -> Path:
    """Write the files of the run of ``spec`` that a report reads, its numbers after one of ``donors``."""
    chance = random.Random(spec.signature)
    donor = donors[spec.config.seed % len(donors)]
    result, measurements = copy.deepcopy(dict(donor.result)), copy.deepcopy(list(donor.measurements))
    if result["test"] is None:  # its seed chose another rate: the validation images stand in
        result["test"] = copy.deepcopy(result["validation"])
    images = chance.randint(-20, 20)
    for scores in (result["validation"], result["test"], *(line["validation"] for line in measurements)):
        for point in scores.values():
            point["wrong"] = max(0, point["wrong"] + images)
            point["error"] = point["wrong"] / point["n"]
    result |= {"signature": spec.signature, "name": spec.name, "study": NAME}
    del result["digest"]
    folder = spec.folder
    folder.mkdir(parents=True)
    (folder / "signed.json").write_text(json.dumps(spec.signed(), indent=2))
    (folder / "provenance.json").write_text(json.dumps({"attempts": donor.records}, indent=2))
    (folder / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measurements))
    (folder / "status.json").write_text(json.dumps({"status": "finished", "time": time.time(), "step": result["step"]}))
    (folder / "result.json").write_text(json.dumps(sealed(with_curve(result, measurements)), indent=2))
    return folder


def timed(words: Sequence[str]) -> dict[str, float]:
    """Return wall and processor seconds and the largest memory (GB) of ``neumann`` with ``words``, a whole process."""
    begun = time.perf_counter()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.execv(sys.executable, [sys.executable, "-m", "neumann", *words])
    _, status, used = os.wait4(child, 0)
    assert status == 0, f"neumann {' '.join(words)} ended with {status}"
    wall = time.perf_counter() - begun
    return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "gb": used.ru_maxrss / 1e6}


def repeated(repeat: int, words: Sequence[str], before: Callable[[], object]) -> dict[str, Any]:
    """Return what `timed` says of ``repeat`` calls, ``before`` each of which something is changed."""
    every = []
    for _ in range(repeat):
        before()
        every.append(timed(words))
    return {
        "n": repeat,
        "command": " ".join(["neumann", *words]),
        **{key: [one[key] for one in every] for key in every[0]},
    }


def measure(count: int, repeat: int) -> list[dict[str, Any]]:
    """Return the measurements of about ``count`` runs, made in the working directory."""
    folders = make(count)
    found: list[dict[str, Any]] = []
    latest = folders[0] / "result.json"
    last = latest.read_text()

    def forget() -> None:
        for page in Path("runs", NAME).glob("*report*"):
            shutil.rmtree(page)

    def one_more() -> None:
        """Let a run end anew, by the same bytes: whoever looks at the file finds another one."""
        latest.unlink()
        latest.write_text(last)

    def add(source: str, what: str, words: Sequence[str], before: Callable[[], object]) -> None:
        found.append({"runs": len(folders), "source": source, "what": what, **repeated(repeat, words, before)})

    for source, words in (
        ("run folders", ["report", NAME]),
        ("--runs", ["report", "--runs", f"runs/{NAME}"]),
    ):
        add(source, "first", words, forget)
        add(source, "one more run", words, one_more)
        add(source, "unchanged", words, lambda: None)
    timed(["runs", "pack", NAME])
    shutil.rmtree("runs")
    add("archive", "first", ["report", NAME], forget)
    add("archive", "unchanged", ["report", NAME], lambda: None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/report.json and report.md")
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(Path(neumann.__file__).parent, quiet=1)
    measured, load = [], os.getloadavg()[0]
    home = Path.cwd()
    for count in given.runs:
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            measured += measure(count, given.repeat)
            os.chdir(home)
    lines = table(measured)
    print("\n".join(lines))
    if given.write:
        RESULTS.mkdir(exist_ok=True)
        where = provenance()
        loads = [load, os.getloadavg()[0]]
        told = {"load": loads, "host": where["host"], "packages": where["packages"], "git": where["git"]}
        (RESULTS / "report.json").write_text(json.dumps({"reports": measured, **told}, indent=2) + "\n")
        host = where["host"]
        about = f"{host['cores']} cores, {host['processor']}, load {loads[0]:.1f} before and {loads[1]:.1f} after"
        (RESULTS / "report.md").write_text("\n".join(["# make bench-report", "", about, "", *lines]) + "\n")


def table(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the measurements as a Markdown table: medians, with the least and the most."""

    def said(values: Sequence[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    lines = [
        "| runs | from | | wall (s) | processor (s) | memory (GB) | n | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in measured:
        near = min((100, 2000), key=lambda count: abs(count - one["runs"]))
        cells = [said(one["wall_s"], 2), said(one["cpu_s"], 2), said(one["gb"], 2), one["n"]]
        cells.append(GOALS.get((one["what"], near), ""))
        lines.append(f"| {one['runs']:,} | {one['source']} | {one['what']} | {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    main()
