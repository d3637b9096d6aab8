"""Slurm's queue: jobs are submitted through submitit, and squeue is asked for their states, never sacct.

sacct needs accounting, which many clusters lack; submitit's own watcher would wait for ever there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import neumann
from neumann.config import SlurmLaunchConfig
from neumann.errors import UserError, first_line
from neumann.launch.slurm.folder import LaunchFolder

PACKAGE = Path(neumann.__file__).resolve().parent
ANSWER_S = 60.0
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)


class Refused(UserError):  # noqa: N818 - it names what happened, as Interrupted does
    """Slurm takes no further job; ``ids`` are those of the same call that are in the queue already."""

    def __init__(self, sentence: str, ids: Sequence[str]) -> None:
        super().__init__(sentence)
        self.ids = list(ids)


def check() -> None:
    """Raise UserError where no job can be submitted from this machine."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("launch=slurm needs submitit: pip install 'neumann[slurm]'") from None
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("launch=slurm: there is no sbatch here, so start it on a login node of the cluster")


def parameters(launch: SlurmLaunchConfig, job_name: str, ranks: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """Return the parameters of submitit's SlurmExecutor for jobs of ``ranks`` (processes on each node, nodes)."""
    processes, nodes = ranks
    gpus = launch.gpus_per_node
    asked = {
        "job_name": job_name,
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "time": launch.time,
        "mem": launch.mem,
        "nodes": nodes,
        "ntasks_per_node": processes,
        "cpus_per_task": launch.cpus_per_task,
        "gpus_per_node": processes if gpus and ranks != (1, 1) else gpus,
        "signal_delay_s": launch.grace,
        "array_parallelism": launch.workers,
        "setup": [*_safe_path(), *launch.setup] or None,
        "stderr_to_stdout": True,
        # since Slurm 22.05 srun does not ask sbatch; and a rank that dies takes the others with it
        "srun_args": [f"--cpus-per-task={launch.cpus_per_task}", "--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **launch.sbatch},
    }
    return {key: value for key, value in asked.items() if value is not None}


def _safe_path() -> list[str]:
    """Return the lines of shell by which a job's Python leaves the working directory out of its path.

    submitit starts it with -m, which puts that folder first: a neumann/ or a random.py there would be executed. Where
    this package itself is found there alone, it stays.
    """
    return [] if PACKAGE.parent == Path.cwd() else ["export PYTHONSAFEPATH=1"]


def submit(
    folder: LaunchFolder,
    launch: SlurmLaunchConfig,
    functions: Sequence[Callable[[], Any]],
    ranks: tuple[int, int] = (1, 1),
) -> list[str]:
    """Submit a job for each function, as arrays no longer than the cluster allows, and return the jobs' numbers.

    folder      of the launch, for submitit's scripts and logs
    launch      what each job asks for
    functions   what each job calls, pickled
    ranks       of each job: processes on each node, and nodes

    Raises Refused with sbatch's sentence where Slurm refuses.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    longest = max_array_size()
    executor = submitit.SlurmExecutor(folder.path / "slurm")
    executor.update_parameters(**parameters(launch, folder.job_name, ranks))
    ids: list[str] = []
    try:
        with without_slurm():
            for i in range(0, len(functions), longest):
                ids += [job.job_id for job in executor.submit_array(functions[i : i + longest])]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise Refused(f"Slurm takes no job: {_words(error)}", ids) from error
    finally:
        for link in (folder.path / "slurm").glob(".submission_file_*.sh"):
            link.unlink(missing_ok=True)  # beside the script itself
    return ids


@contextlib.contextmanager
def without_slurm() -> Iterator[None]:
    """Hide Slurm's variables of the job that this process is in: Lightning would requeue that job, sbatch copy it."""
    hidden = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("SLURM_") and key != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _words(error: BaseException) -> str:
    """Return sbatch's own sentence out of submitit's report of it."""
    for line in str(error).splitlines():
        if "sbatch: error:" in line:
            return line.split("sbatch: error:", 1)[1].strip()
    return first_line(error)


def max_array_size() -> int:
    """Return how many jobs one array may have on this cluster."""
    done = _ask("scontrol", "show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE) if done else None
    return max(1, int(found.group(1))) if found else 1001  # Slurm's default


def jobs(job_name: str) -> dict[str, str] | None:
    """Return {job: state} of the jobs of a name in the queue, those that have just ended included; None: no answer."""
    done = _ask("squeue", "--me", "--noheader", "--array", "--states=all", f"--name={job_name}", "--format=%i|%T")
    if done is None or done.returncode != 0:
        return None
    return dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)


def alive(known: Mapping[str, str]) -> list[str]:
    """Return the jobs that have not ended."""
    return [job for job, state in known.items() if state not in ENDED]


def short(ids: Sequence[str]) -> list[str]:
    """Return the numbers without the index in the array, each once, as scancel takes them."""
    return list(dict.fromkeys(job.split("_")[0] for job in ids))


def _ask(*words: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, start_new_session=True)
    except (OSError, subprocess.TimeoutExpired):
        return None
