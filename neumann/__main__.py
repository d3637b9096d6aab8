"""`python -m neumann`, the command `neumann` as a module: torchrun starts ranks with it."""

import os
import sys


def _elsewhere() -> str | None:
    """Return the folder of the package `neumann` that Python finds without the working directory."""
    for finder in sys.meta_path:
        spec = finder.find_spec("neumann", None)
        if spec is not None and spec.origin is not None:
            return os.path.dirname(spec.origin)
    return None


# Python has put the working directory first, where a user's random.py would stand for Python's own.
# `locate` puts it last for a run that names code which lies there alone. It stays first where this package is found
# there, which is what Python has taken for `-m neumann`.
if sys.path[:1] == [here := os.getcwd()]:
    del sys.path[0]
    package = os.path.dirname(os.path.abspath(__file__))
    if os.path.dirname(package) == here:
        installed = _elsewhere()
        sys.path.insert(0, here)
        if installed is not None and not os.path.samefile(installed, package) and os.environ.get("RANK", "0") == "0":
            print(
                f"warning: python -m takes the package neumann of the working directory, {package}, and not the one "
                f"that is installed, {installed}: for that one use the command neumann, or python -P -m neumann",
                file=sys.stderr,
            )

from neumann.cli.main import main  # noqa: E402 - the path comes first

if __name__ == "__main__":
    sys.exit(main())
