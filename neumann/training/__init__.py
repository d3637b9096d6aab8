"""Training of one run: its parts, its ranks, evaluation, checkpoints and how it is stopped."""
