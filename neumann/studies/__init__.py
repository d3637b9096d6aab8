"""Studies: comparisons of optimizers that are tuned alike and judged on seeds no choice has seen, to their report.

The story goes one way: `definition` (study.yaml), `plan` (the runs it asks for), `run` (the commands, which train),
`collect` (what the run folders say), `analysis` and `answer` (comparisons and sentences), `report`. Nothing here
imports torch.
"""
