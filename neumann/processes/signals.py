"""By which signals is a run, or a launch of many, asked to stop where it can go on later?

Ctrl-C, what kill sends, and what clusters send before they take the machine away.
"""

import signal

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
