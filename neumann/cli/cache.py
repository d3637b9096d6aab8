"""`neumann cache`: what the cache folder holds, and its removal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from neumann.cache_folder import cache_folder
from neumann.cli.arguments import Parser, parsed
from neumann.errors import EXIT_FAILED, printable

# What it holds, as globs of its files. The folder may be one that holds other things too, so nothing else is touched.
KINDS = {
    "decoded images": ("decoded/*.pt",),
    "scans of image folders": ("scans/*.json",),
    "digests of weights": ("weights/*.json",),
    "compiled kernels": ("fused_step-*.so",),
    "locks and remains": (
        *("decoded/*.lock", "scans/*.lock", "weights/*.lock"),
        *("decoded/.*.pt-*", "scans/.*.json-*", "weights/.*.json-*", ".fused_step-*"),
    ),
}
ABANDONED_S = 3600  # a temporary file of this age is nobody's any more
HELP = """\
Lists what is kept to save time: decoded images, the scans of image folders, digests of files of weights and compiled
kernels. It lies in $NEUMANN_CACHE, else in your user cache folder, and is computed again where it is missing.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="neumann cache", description=HELP)
    parser.take_help()
    parser.add_argument("--clear", action="store_true", help="remove it all; runs that are using it go on")
    given = parsed(parser, words)
    if given is None:
        return 0
    folder = cache_folder()
    found = {kind: _files(folder, patterns) for kind, patterns in KINDS.items()}
    total = sum(size for files in found.values() for size in files.values())
    if given.clear:
        return _clear(folder, [file for files in found.values() for file in files], total)
    print(f"{printable(folder)}: {_size(total)}")
    for kind, files in found.items():
        if files:
            print(f"  {_size(sum(files.values())):>9}  {kind} ({len(files)})")
    return 0


def _files(folder: Path, patterns: Sequence[str]) -> dict[Path, int]:
    """Return {file: its size in bytes}, temporary files only where they are abandoned."""
    found = {}
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            try:
                stat = file.lstat()
            except OSError:  # gone meanwhile
                continue
            if not file.name.startswith(".") or time.time() - stat.st_mtime > ABANDONED_S:
                found[file] = stat.st_size
    return found


def _clear(folder: Path, files: Sequence[Path], total: int) -> int:
    kept = []
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            kept.append(f"{file.name} cannot be removed ({error.strerror or error})")
    for message in kept:
        print(printable(message))
    if not kept:
        print(f"{printable(folder)}: {len(files)} files removed, {_size(total)}")
    return EXIT_FAILED if kept else 0


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
