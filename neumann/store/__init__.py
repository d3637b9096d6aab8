"""A run as files: its folder, its claim, its status and where it came from. Never imports torch."""

from neumann.runs.folder import OVER, STATUSES, RunFolder
from neumann.runs.reuse import find, finished_result

__all__ = ["OVER", "STATUSES", "RunFolder", "find", "finished_result"]
