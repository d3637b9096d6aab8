"""The folder of one launch, which its jobs share: the launch's settings, its runs, and a journal of each job.

launch.json       settings, limits, the working directory and sys.path of the command, the number of submissions, what
                  each job of the last one is for, and which jobs have ended
runs.jsonl        a line for each run that was not over when jobs were last submitted
journal-*.jsonl   what one job has done, written by that job alone, so that no two machines append to one file
slurm/            what submitit keeps: scripts, logs
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from neumann.bounds import check_fields
from neumann.config import RunSpec, SlurmLaunchConfig, load_spec
from neumann.config.from_record import refuse_foreign_code
from neumann.errors import UserError, first_line
from neumann.store.files import opened, plain, read_file, read_json, replace_file, to_append, write_json
from neumann.store.folder import RunFolder, make_folder

LAUNCHES = ".launches"  # in the output folder
LARGEST = 2**28  # bytes of the list of runs; 10,000 take about 30 million
LIMITS = ("max_attempts", "stop_after_failures", "gpu_hours")  # settings that may change while jobs are in the queue


@dataclass(frozen=True)
class ListedRun:
    """One run of a launch, as a line of runs.jsonl.

    signature   of the run
    study       the folder that the results of its study lie in, as a path
    name        the name of its run folder, without the signature
    ranks       processes on each node, and nodes
    record      what `load_spec` makes its specification from
    """

    signature: str
    study: str
    name: str
    ranks: tuple[int, int]
    record: dict[str, Any]

    @classmethod
    def of(cls, spec: RunSpec) -> ListedRun:
        """Return the line of ``spec``."""
        folder = spec.folder
        name = folder.name.removesuffix(f"-{spec.signature}")
        return cls(spec.signature, str(folder.parent), name, ranks_of(spec), spec.as_record())

    @property
    def alone(self) -> bool:
        """Return whether a single process trains it."""
        return self.ranks == (1, 1)

    def is_over(self) -> bool:
        """Return whether the run has the result that is asked for."""
        trainer = self.record["config"]["trainer"]
        return self.folder().result(tested=trainer.get("test", True)) is not None

    def refuse_foreign(self, output: Path) -> None:
        """Raise UserError where the run would do what only its launcher may ask for, see `LaunchFolder.refuse_foreign`.

        ``output`` is the results folder that the launch lies in.
        """
        config = self.record.get("config")
        config = config if isinstance(config, Mapping) else {}
        refuse_foreign_code(config)
        logger = config.get("logger")
        if isinstance(logger, Mapping) and logger.get("kind") != "none" and logger.get("mode") != "offline":
            raise UserError(
                f"logger.mode={logger.get('mode')} of the launch would send its runs to a server in your name: add "
                "--trust to allow it"
            )
        for folder in (self.study, f"{config.get('output')}/{config.get('study')}"):
            if Path(os.path.realpath(folder)).parent != Path(os.path.realpath(output)):
                raise UserError(
                    f"the launch would write to {folder}, which is not in {output}, where it lies: add --trust to "
                    "allow it"
                )

    def spec(self, *, trust: bool) -> RunSpec:
        """Return its specification. Raises UserError as `load_spec` does."""
        return load_spec(self.record, trust=trust)

    def folder(self) -> RunFolder:
        """Return its folder, which need not exist yet. It reads no specification: other workers train most runs."""
        path = Path(self.study) / f"{self.name}-{self.signature}"
        if not path.exists():  # it may have been trained under another name before
            path = next(iter(sorted(Path(self.study).glob(f"*-{self.signature}"))), path)
        return RunFolder(path)


def ranks_of(spec: RunSpec) -> tuple[int, int]:
    """Return (processes on each node, nodes) of a run."""
    trainer = spec.config.trainer
    return trainer.devices, trainer.num_nodes


class LaunchFolder:
    """Files of one launch, which is identified by its runs and their folders, not by its settings."""

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
        """Return the name of its jobs in the queue. It follows from the runs, so the same command finds its jobs."""
        return f"neumann-{self.path.name}"

    def make(self) -> None:
        """Create the folder. Raises UserError where it cannot be written."""
        make_folder(self.path)

    def settings(self) -> dict[str, Any]:
        """Return the content of launch.json. Raises UserError where there is none or it is damaged."""
        settings = self.known_settings()
        if settings is None:
            raise UserError(f"{self.path} is not a folder of a launch: it has no launch.json")
        try:
            if not all(isinstance(settings[key], kind) for key, kind in (("cwd", str), ("submission", int))):
                raise TypeError("cwd is a text and submission a number")
            check_fields(SlurmLaunchConfig(**settings["launch"]), "launch.")
        except (KeyError, TypeError, UserError) as error:
            raise UserError(f"{self.path / 'launch.json'} is damaged or of another version: {error}") from error
        return settings

    def known_settings(self) -> dict[str, Any] | None:
        """Return the content of launch.json, or None where it is missing or damaged."""
        settings = read_json(self.path / "launch.json")
        return settings if isinstance(settings, dict) and "launch" in settings else None

    def refuse_foreign(self) -> None:
        """Raise UserError where a run would execute code of its author's, feed a server, or write elsewhere.

        The folder may be another user's, and only who launched the runs may ask for that.
        """
        for run in self.runs():
            run.refuse_foreign(self.path.parent.parent)

    def write(self, launch: SlurmLaunchConfig, specs: Sequence[RunSpec], submission: int) -> None:
        """Write the settings and the runs of the jobs that will be submitted next; ``submission`` counts from 1."""
        self._list(ListedRun.of(spec) for spec in specs)
        place = {"cwd": os.getcwd(), "path": [os.path.abspath(folder) for folder in sys.path]}
        write_json(
            self.path / "launch.json",
            {"launch": asdict(launch), "submission": submission, "jobs": {}, "gone": []}
            | {"asked": time.time(), **place},
        )

    def add_runs(self, specs: Sequence[RunSpec]) -> None:
        """Add those of ``specs`` that are not among the runs: they were over when jobs were last submitted."""
        there = self.runs()
        listed = {run.signature for run in there}
        if new := [ListedRun.of(spec) for spec in specs if spec.signature not in listed]:
            self._list([*there, *new])

    def _list(self, runs: Iterable[ListedRun]) -> None:
        lines = [json.dumps(plain(vars(run))) + "\n" for run in runs]
        replace_file(self.path / "runs.jsonl", "".join(lines).encode())

    def set_limits(self, launch: SlurmLaunchConfig) -> None:
        """Change the limits, which jobs read while they wait and while they run."""
        known = self.settings()
        asked = asdict(launch)
        write_json(self.path / "launch.json", {**known, "launch": {**known["launch"], **{k: asked[k] for k in LIMITS}}})

    def set_gone(self, jobs: Iterable[str]) -> None:
        """Tell the other jobs that ``jobs`` have ended, whatever their journals say."""
        write_json(self.path / "launch.json", {**self.settings(), "gone": sorted(jobs)})

    def add_jobs(self, purposes: Mapping[str, str]) -> None:
        """Record what jobs are for that have just been submitted, for other launchers of the same runs."""
        known = self.settings()
        write_json(self.path / "launch.json", {**known, "jobs": {**known.get("jobs", {}), **purposes}})

    def jobs(self) -> dict[str, str]:
        """Return what the recorded jobs of the last submission are for; empty where launch.json cannot be read."""
        return dict((self.known_settings() or {}).get("jobs", {}))

    def runs(self) -> list[ListedRun]:
        """Return the runs. Raises UserError where runs.jsonl is not a list of runs."""
        try:
            lines = read_file(self.path / "runs.jsonl", LARGEST).decode().splitlines()
            read = [json.loads(line) for line in lines]
            listed = [ListedRun(**{**line, "ranks": tuple(line["ranks"])}) for line in read]
            if not all(isinstance(v, str) for run in listed for v in (run.signature, run.study, run.name)):
                raise TypeError("signature, study and name are texts")
            return listed
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path / 'runs.jsonl'} is not a list of runs: {first_line(error)}") from error


@dataclass(frozen=True)
class JournalEntry:
    """One line of a journal.

    job          the job that wrote it
    submission   which submission that job belongs to, from 1
    what         began, start, end, left or beat (the heartbeat)
    at           seconds since 1970
    said         the other fields

    A job writes began(gpus, host), then start(run) and end(run, status, message, step, seconds) for each run, a
    heartbeat every `retry_rules.HEARTBEAT_S` seconds, and left(why, requeued) at its end.
    """

    job: str
    submission: int
    what: str
    at: float
    said: dict[str, Any]


class JournalWriter:
    """The journal that this process writes, as job ``job`` of submission ``submission``."""

    def __init__(self, folder: LaunchFolder, job: str, submission: int) -> None:
        self.job = job
        self._path = folder.path / f"journal-{submission:03d}-{job}.jsonl"

    def write(self, what: str, **said: Any) -> None:
        """Append a line. A full disk costs a line of bookkeeping, never a run."""
        line = json.dumps(plain({"what": what, "at": time.time(), **said}), allow_nan=False) + "\n"
        try:
            with open(to_append(self._path), "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            print(f"the journal {self._path} cannot be written: {error}", file=sys.stderr, flush=True)


class JournalReader:
    """All journals of a launch. `read_on` reads what was written since its last call."""

    def __init__(self, folder: LaunchFolder) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}  # bytes
        self.entries: list[JournalEntry] = []  # each job's in their order; between jobs in the order of the calls

    def read_on(self) -> list[JournalEntry]:
        """Read what is new and return it."""
        new: list[JournalEntry] = []
        for path in sorted(self._folder.path.glob("journal-*.jsonl")):
            new.extend(self._rest(path))
        self.entries.extend(new)
        return new

    def _rest(self, path: Path) -> Iterator[JournalEntry]:
        _, number, job = path.stem.split("-", 2)
        try:
            with opened(path) as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]  # a line that is being written comes with the next call
        self._read[path] = self._read.get(path, 0) + len(whole)
        for line in whole.splitlines():
            try:
                said = json.loads(line)
                entry = JournalEntry(job, int(number), str(said.pop("what")), float(said.pop("at")), said)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            yield entry


def this_job() -> str:
    """Return the name of this job in journals: Slurm's number, or host and process id of a worker started by hand."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID") or f"{socket.gethostname()}-{os.getpid()}"
