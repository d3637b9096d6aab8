"""Rank and stop signals of this process. Never imports torch."""
