"""Which images does a run train on, choose by, and report on? Three splits, fixed per data set.

This package's front door is torch-free: `facts` describes a data set (fingerprint, classes, sizes, split rule) in
milliseconds, so that a run can be signed before torch is imported. `neumann.data.module.build` makes the batches.
"""

from neumann.data.facts import DataFacts, facts

__all__ = ["DataFacts", "facts"]
