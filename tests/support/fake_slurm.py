"""A fake Slurm: its commands are scripts that record their arguments and answer as a test has set them."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

SCRIPTS = {
    "sbatch": """\
if [ -e {place}/refusal ]; then echo "sbatch: error: $(cat {place}/refusal)" >&2; exit 1; fi
env > {place}/environment
n=$(ls {place}/scripts | wc -l)
cp "$1" {place}/scripts/$n
echo "Submitted batch job $((7 + n))"
""",
    "squeue": """\
if [ ! -e {place}/queue ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
cat {place}/queue
""",
    "scontrol": 'echo "$@" >> {place}/scontrol; echo "MaxArraySize            = 3"',
    "srun": "exit 1",
}


class FakeSlurm:
    """Slurm's commands as scripts in the folder ``bin``, which a test puts first in PATH."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.bin = place / "bin"
        self.bin.mkdir(parents=True)
        (place / "scripts").mkdir()
        for name, text in SCRIPTS.items():
            path = self.bin / name
            path.write_text("#!/bin/sh\n" + text.replace("{place}", str(place)))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.queue({})

    def scripts(self) -> list[str]:
        """Return what was submitted, in order."""
        return [path.read_text() for path in sorted((self.place / "scripts").iterdir(), key=lambda p: int(p.name))]

    def queue(self, jobs: Mapping[str, str] | None) -> None:
        """Have squeue answer with ``jobs`` ({job: state}); with None it fails."""
        path = self.place / "queue"
        path.unlink(missing_ok=True)
        if jobs is not None:
            path.write_text("".join(f"{job}|{state}\n" for job, state in jobs.items()))

    def refuse(self, words: str) -> None:
        """Have sbatch refuse every job with ``words``."""
        (self.place / "refusal").write_text(words)

    def requeued(self) -> str:
        """Return the arguments of all calls of scontrol, a line each."""
        path = self.place / "scontrol"
        return path.read_text() if path.exists() else ""
