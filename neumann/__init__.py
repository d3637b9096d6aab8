"""Honest optimizer research on image classifiers. The optimizer itself is `neumann.optim.Neumann`."""
