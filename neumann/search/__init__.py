"""Many runs from one command: grids of overrides, and searches by Optuna or W&B. Never imports torch."""
