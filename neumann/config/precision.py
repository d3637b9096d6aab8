"""The precision of a run that leaves it open: autocast to bf16 on a GPU, float32 on a CPU.

It is chosen when the run is composed, so that it is signed and recorded: a GPU and a CPU train different runs by one
command, and a run goes on in the precision that it began in, wherever it goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from neumann.config.launch_settings import LaunchConfig, SlurmLaunchConfig
from neumann.visible_gpus import torch_has_gpu

OPEN = "auto"
# sbatch's parameters for GPUs, and those for resources of any name, gres/gpu among them
OF_GPUS = ("gpus", "gpus_per_task", "gpus_per_socket")
OF_ANYTHING = ("gres", "tres_per_task", "tres_per_node", "tres_per_socket", "tres_per_job")
ON_GPU, ON_CPU = "bf16-mixed", "32-true"


def precision_of(precision: str, accelerator: str, launch: LaunchConfig) -> str:
    """Return ``trainer.precision`` where it says one, else that of the device which trainer.accelerator means.

    Under Slurm that is a device of the job, not of this machine.
    """
    if precision != OPEN:
        return precision
    if accelerator != "auto":
        return ON_CPU if accelerator == "cpu" else ON_GPU
    return ON_GPU if (_job_has_gpu(launch) if isinstance(launch, SlurmLaunchConfig) else torch_has_gpu()) else ON_CPU


def of_other_devices(precision: str) -> list[str]:
    """Return what a device of another kind makes of an open precision, of which this one has made ``precision``."""
    return [other for other in (ON_GPU, ON_CPU) if other != precision]


def _job_has_gpu(launch: SlurmLaunchConfig) -> bool:
    """Return whether the jobs of ``launch`` ask for GPUs, by any of sbatch's parameters for them.

    What a partition gives unasked is not known here.
    """
    asked = {key.replace("-", "_"): str(value) for key, value in launch.sbatch.items() if value not in (None, False)}
    return (
        launch.gpus_per_node is not None
        or any(_counts(asked[key].split(",")) for key in OF_GPUS if key in asked)
        or any(_counts(_gpus_among(asked[key])) for key in OF_ANYTHING if key in asked)
    )


def _gpus_among(resources: str) -> list[str]:
    """Return what follows the name of each kind of GPU in a list such as ``gpu:a100:2,license:1``."""
    parts = (re.sub(r"^gres[/:]", "", part.strip()) for part in resources.split(","))
    named = (re.fullmatch(r"(?:gpu|mps|shard)(?:[:=](.*))?", part) for part in parts)
    return [found[1] or "1" for found in named if found is not None]


def _counts(gpus: Iterable[str]) -> bool:
    """Return whether any of ``gpus``, each ``count``, ``type:count`` or ``type``, is not zero."""
    return any(not re.fullmatch("0+", re.split("[:=]", one.partition("(")[0].strip())[-1]) for one in gpus)
