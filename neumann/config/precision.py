"""The precision of a run that leaves it open: autocast to bf16 on a GPU, float32 on a CPU.

It is chosen when the run is composed, so that it is signed and recorded: a GPU and a CPU train different runs by one
command, and a run goes on in the precision that it began in, wherever it goes on.
"""

from __future__ import annotations

from typing import Any

from neumann.config.launch_settings import LaunchConfig, SlurmLaunchConfig
from neumann.visible_gpus import torch_has_gpu

OPEN = "auto"
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


def _job_has_gpu(launch: SlurmLaunchConfig) -> bool:
    """Return whether the jobs of ``launch`` ask for GPUs."""
    asked: dict[str, Any] = {key.replace("-", "_"): value for key, value in launch.sbatch.items()}
    return (
        launch.gpus_per_node is not None
        or any(asked.get(key) for key in ("gpus", "gpus_per_task", "gpus_per_socket"))
        or "gpu" in str(asked.get("gres", ""))
    )
