"""The reading of every kind of data that is one array, by its settings."""

from __future__ import annotations

from neumann.data import embedded, settings, torchvision_sets
from neumann.data.array_set import ArraySet


def read(wanted: settings.Settings) -> ArraySet:
    """Return the images, labels and splits that ``wanted`` names. Raises UserError for files that cannot be read."""
    match wanted:
        case settings.Digits():
            return embedded.digits(wanted.split_seed)
        case settings.Fashion14():
            return embedded.fashion14(wanted.split_seed)
        case settings.TorchvisionSet():
            return torchvision_sets.read(wanted)
    raise TypeError(f"{type(wanted).__name__} is not read as one array")
