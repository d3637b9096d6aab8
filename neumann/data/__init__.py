"""Data sets and their three fixed splits: training, validation (chosen by) and test (reported on).

Importing this package imports no torch: `facts` describes a data set (fingerprint, classes, sizes, split rule) in
milliseconds, so that a run can be signed before torch is imported. `neumann.data.module.build` makes the batches.
"""

from neumann.data.facts import DataFacts, facts

__all__ = ["DataFacts", "facts"]
