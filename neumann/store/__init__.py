"""A run as files: its folder, its claim, its status and where it came from. Never imports torch."""

from neumann.store.folder import OVER, STATUSES, RunFolder
from neumann.store.lookup import find, finished_result

__all__ = ["OVER", "STATUSES", "RunFolder", "find", "finished_result"]
