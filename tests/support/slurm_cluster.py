"""A real Slurm of one machine for tests: slurmctld, slurmd and munged on loopback, with all files in one folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,requeue_setup_env_fail
MaxArraySize=4
KillWait=5
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=300
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@dataclass
class Cluster:
    """A running cluster; ``env`` is the environment in which Slurm's commands reach it."""

    folder: Path
    env: dict[str, str]

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def jobs(self, states: str = "all") -> dict[str, str]:
        out = self.ask("squeue", "--noheader", "--array", f"--states={states}", "--format=%i|%T")
        return dict(line.strip().split("|") for line in out.splitlines() if line.strip())

    def kill(self, job: str) -> None:
        """Kill every process of a job at once, as a machine does that loses its power."""
        parents: dict[int, int] = {}
        roots = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                mine = f"SLURM_JOB_ID={job}\0SLURM_CONF={self.env['SLURM_CONF']}".split("\0")
                environ = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                if set(mine) <= set(environ) and b"submitit.core._submit" in (path / "cmdline").read_bytes():
                    roots.append(int(path.name))
        assert roots, f"job {job} has no process"
        doomed = set(roots)
        while grown := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
            doomed |= grown
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none can react to another's end
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def logs(self) -> str:
        """Return the ends of what the daemons wrote, for the message of a test that fails."""
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in self.folder.glob("*.log"))


def missing() -> str | None:
    """Return why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    lacking = [name for name in NEEDED if shutil.which(name, path=search_path()) is None]
    return f"{', '.join(lacking)} not installed: apt-get install slurm-wlm munge" if lacking else None


def search_path() -> str:
    """Return PATH with the folders of daemons."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@contextlib.contextmanager
def running(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Hold a cluster whose files are in ``folder``; every daemon and every job is gone afterwards."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    plugins = next(iter(Path("/usr/lib").glob("*/slurm-wlm")), Path("/usr/lib/slurm"))
    text = CONF.format(
        folder=folder, host=socket.gethostname().split(".")[0], port=_port(), node_port=_port(), plugins=plugins
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    bins = f"{Path(sys.executable).parent}{os.pathsep}{search_path()}"
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": bins, **(more or {})}
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        with open(folder / f"{words[0]}.log", "ab") as log:
            started.append(subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True))

    cluster = Cluster(folder, env)
    try:
        place = [f"--{name}={folder}/munge.{end}" for name, end in (("socket", "socket"), ("pid-file", "pid"))]
        files = [f"--key-file={key}", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munged.log"]
        start("munged", "--foreground", "--force", *place, *files)
        _wait(lambda: (folder / "munge.socket").exists(), cluster)
        start("slurmctld", "-D", "-c", "-f", str(folder / "slurm.conf"))
        start("slurmd", "-D", "-c", "-f", str(folder / "slurm.conf"))
        _wait(lambda: "idle" in _try(env, "sinfo", "--noheader", "--format=%T"), cluster)
        yield cluster
    finally:
        _try(env, "scancel", "--user=root", "--signal=KILL", "--full")
        _try(env, "scancel", "--user=root")
        deadline = time.monotonic() + 20
        while _try(env, "squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        for pid in _steps(folder):  # a step's daemon outlives slurmd
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _steps(folder: Path) -> list[int]:
    """Return the processes that still run with this cluster's configuration."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURM_CONF={folder}".encode() in (path / "environ").read_bytes() and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def _try(env: Mapping[str, str], *words: str) -> str:
    done = subprocess.run(words, env=dict(env), capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def _wait(condition: object, cluster: Cluster, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"the cluster did not start:\n{cluster.logs()}"
        time.sleep(0.2)


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
