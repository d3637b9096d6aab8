"""`python -m neumann`, the command `neumann` as a module: torchrun starts ranks with it."""

import sys

from neumann.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
