"""What one process knows of its place among its run's ranks, and of how it is asked to stop. Never imports torch."""
