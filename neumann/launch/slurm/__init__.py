"""Runs on a Slurm cluster: the launcher on the login node, and the workers in the jobs. Never imports torch."""
