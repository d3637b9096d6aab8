"""`python -m neumann`, the command `neumann` as a module: torchrun starts ranks with it."""

import os
import sys

# Python has put the working directory first, where a user's random.py would stand for Python's own.
# `locate` puts it last for a run that names code which lies there alone. It stays first where this package is found
# there and nowhere else.
if sys.path[:1] == [os.getcwd()] and os.path.dirname(os.path.dirname(os.path.abspath(__file__))) != sys.path[0]:
    del sys.path[0]

from neumann.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
