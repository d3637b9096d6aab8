"""What do the workers of one launch share? A folder with the launch's settings, its runs, and a journal of each job.

launch.json    settings, limits, the place it was asked for in, and how often jobs were submitted for it
runs.jsonl     a line for each run that was not over when jobs were last submitted
journal-*.jsonl   what one job has done, written by that job alone, so that no two machines append to one file
slurm/         what submitit keeps: scripts, logs
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from neumann.config import RunSpec, SlurmLaunchConfig, load_spec
from neumann.errors import UserError
from neumann.store.files import plain, read_json, replace_file, write_json
from neumann.store.folder import RunFolder, make_folder

LAUNCHES = ".launches"  # in the output folder
LIMITS = ("max_attempts", "stop_after_failures", "gpu_hours")  # what may change while jobs are in the queue


@dataclass(frozen=True)
class ListedRun:
    """One run of a launch, as a line of runs.jsonl. ``record`` makes its specification."""

    signature: str
    study: str  # the folder that the results of its study lie in
    name: str
    ranks: tuple[int, int]  # processes on each node, nodes
    record: dict[str, Any]

    @classmethod
    def of(cls, spec: RunSpec) -> ListedRun:
        """Return the line of ``spec``."""
        folder = spec.folder
        name = folder.name.removesuffix(f"-{spec.signature}")
        return cls(spec.signature, str(folder.parent), name, ranks_of(spec), spec.as_record())

    @property
    def alone(self) -> bool:
        """Return whether one process trains it."""
        return self.ranks == (1, 1)

    def spec(self, *, trust: bool) -> RunSpec:
        """Return its specification. Raises UserError as `load_spec` does."""
        return load_spec(self.record, trust=trust)

    def folder(self) -> RunFolder:
        """Return where it lies, or would: found without its specification, since most runs are somebody else's."""
        path = Path(self.study) / f"{self.name}-{self.signature}"
        if not path.exists():  # it may have been trained under another name
            path = next(iter(sorted(Path(self.study).glob(f"*-{self.signature}"))), path)
        return RunFolder(path)


def ranks_of(spec: RunSpec) -> tuple[int, int]:
    """Return (processes on each node, nodes) of a run."""
    trainer = spec.config.trainer
    return trainer.devices, trainer.num_nodes


class LaunchFolder:
    """The files of one launch. The same runs at the same place are the same launch, whatever it is asked for with."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def of(cls, specs: Sequence[RunSpec]) -> LaunchFolder:
        """Return the folder of a launch of ``specs``, which need not exist yet."""
        runs = sorted(f"{spec.folder.parent.absolute()}:{spec.signature}" for spec in specs)
        name = sha256("\n".join(runs).encode()).hexdigest()[:10]
        return cls(Path(specs[0].config.output) / LAUNCHES / name)

    @property
    def job_name(self) -> str:
        """Return what its jobs are called in the queue: whoever knows the runs finds them there."""
        return f"neumann-{self.path.name}"

    def make(self) -> None:
        """Create the folder. Raises UserError where it cannot be written."""
        make_folder(self.path)

    def settings(self) -> dict[str, Any]:
        """Return the content of launch.json. Raises UserError where there is none."""
        settings = read_json(self.path / "launch.json")
        if not isinstance(settings, dict) or "launch" not in settings:
            raise UserError(f"{self.path} is no folder of a launch: it has no launch.json")
        return settings

    def known(self) -> dict[str, Any] | None:
        """Return the content of launch.json, or None."""
        settings = read_json(self.path / "launch.json")
        return settings if isinstance(settings, dict) and "launch" in settings else None

    def write(self, launch: SlurmLaunchConfig, specs: Sequence[RunSpec], submission: int) -> None:
        """Write what jobs submitted from now on do; ``submission`` counts from 1."""
        lines = [json.dumps(plain(vars(ListedRun.of(spec)))) + "\n" for spec in specs]
        replace_file(self.path / "runs.jsonl", "".join(lines).encode())
        place = {"cwd": os.getcwd(), "path": [os.path.abspath(folder) for folder in sys.path]}
        write_json(
            self.path / "launch.json",
            {"launch": asdict(launch), "submission": submission, "gone": [], "asked": time.time(), **place},
        )

    def set_limits(self, launch: SlurmLaunchConfig) -> None:
        """Change the limits, which jobs in the queue and running ones read."""
        known = self.settings()
        asked = asdict(launch)
        write_json(self.path / "launch.json", {**known, "launch": {**known["launch"], **{k: asked[k] for k in LIMITS}}})

    def set_gone(self, jobs: Iterable[str]) -> None:
        """Tell the jobs to come which of the earlier ones have ended without a word, whatever their journals say."""
        write_json(self.path / "launch.json", {**self.settings(), "gone": sorted(jobs)})

    def runs(self) -> list[ListedRun]:
        """Return the runs. Raises UserError where the file is not a list of them."""
        try:
            lines = (self.path / "runs.jsonl").read_text().splitlines()
            read = [json.loads(line) for line in lines]
            return [ListedRun(**{**line, "ranks": tuple(line["ranks"])}) for line in read]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path / 'runs.jsonl'} is no list of runs: {error}") from error


@dataclass(frozen=True)
class Event:
    """One line of a journal. ``job`` and ``submission`` say whose; ``at`` is seconds since 1970.

    began(gpus, host) ... start(run) ... end(run, status, message, step, seconds) ... left(why), with a beat in between.
    """

    job: str
    submission: int
    what: str
    at: float
    said: dict[str, Any]


class Journal:
    """The journal that this process writes, as the job ``job`` of the ``submission``-th submission."""

    def __init__(self, folder: LaunchFolder, job: str, submission: int) -> None:
        self.job = job
        self._path = folder.path / f"journal-{submission:03d}-{job}.jsonl"

    def write(self, what: str, **said: Any) -> None:
        """Append a line. A full disk costs a line of bookkeeping, never a run."""
        line = json.dumps(plain({"what": what, "at": time.time(), **said}), allow_nan=False) + "\n"
        try:
            with open(self._path, "a") as file:
                file.write(line)
        except OSError as error:
            print(f"the journal {self._path} cannot be written: {error}", file=sys.stderr, flush=True)


class Journals:
    """All journals of a launch, read on from where the last look ended."""

    def __init__(self, folder: LaunchFolder) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}  # bytes
        self.events: list[Event] = []  # of one job in order; between jobs in the order of the looks

    def look(self) -> list[Event]:
        """Read what is new and return it."""
        new: list[Event] = []
        for path in sorted(self._folder.path.glob("journal-*.jsonl")):
            new.extend(self._rest(path))
        self.events.extend(new)
        return new

    def _rest(self, path: Path) -> Iterator[Event]:
        _, number, job = path.stem.split("-", 2)
        try:
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]  # a line that is being written comes with the next look
        self._read[path] = self._read.get(path, 0) + len(whole)
        for line in whole.splitlines():
            try:
                said = json.loads(line)
                event = Event(job, int(number), str(said.pop("what")), float(said.pop("at")), said)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            yield event


def this_job() -> str:
    """Return what this process is called in journals: Slurm's number of the job, or the host and the process."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID") or f"{socket.gethostname()}-{os.getpid()}"
