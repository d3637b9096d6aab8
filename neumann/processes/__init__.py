"""One process: its place among its run's ranks, and the signals that ask it to stop. Never imports torch."""
