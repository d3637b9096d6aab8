"""How a run is trained: model, optimizer, schedule, evaluation, checkpoints, and the run itself."""
