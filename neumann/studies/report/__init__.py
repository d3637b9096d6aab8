"""The report of a study: its results as a page, tables, CSV files and figures."""

from importlib import import_module

DEAR = ("scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg")


def preload() -> None:
    """Import the packages that statistics and figures need, about two seconds, while another process works."""
    for name in DEAR:
        import_module(name)
