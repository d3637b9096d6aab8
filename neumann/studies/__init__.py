"""Studies: optimizers tuned alike and compared on seeds not used for tuning, from study.yaml to the report.

The modules follow each other: `definition` (study.yaml), `plan` (the runs it asks for), `run` (the commands, which
train), `collect` (the contents of the run folders), `analysis` and `answer` (comparisons and sentences), `report`.
Nothing here imports torch.
"""
