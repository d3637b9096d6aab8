"""The commands: `neumann train`, `study`, `report`, `runs`, `wandb-sweep` and `worker`."""
