"""`python -m neumann` is the command `neumann`; torchrun starts ranks by it."""

import sys

from neumann.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
