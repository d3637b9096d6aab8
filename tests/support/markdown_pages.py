"""Runs the code blocks of a documentation page, in order, in the working directory.

A block that is named by ``title="FILE"`` is written to that file. Of the others:

- ``python`` is executed; all blocks of a page share their names.
- ``sh`` is run line by line, and every command must exit with 0.
- ``console`` holds commands after ``$`` and the output that each must give: ``...`` stands for anything, white space
  counts as a space, and a command whose output begins with ``error:`` must exit with 2.

Blocks in another language are not run. One that cannot be run says why in a comment before it:
``<!-- not run: needs a cluster -->``. Commands of a page that is marked ``<!-- slow -->`` run as a user runs them, those
of the others within this process, where PyTorch is imported already.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from neumann.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
RUN = ("python", "sh", "console")
NOT_RUN = re.compile(r"<!-- not run: .+ -->")
AS_ONE_THREAD = {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its file's name if it is one, its code, and the line that it begins at."""

    language: str
    title: str | None
    code: str
    line: int


@dataclass
class PageRun:
    """The result of a page's blocks: their names, and everything that they printed."""

    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "example"})
    out: str = ""


def blocks(page: Path) -> list[Block]:
    """Return the blocks of ``page`` that are to be written or run."""
    found, skip = [], False
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "html_block" and "not run" in token.content:
            assert NOT_RUN.fullmatch(token.content.strip()), f"{page.name}: {token.content} gives no reason"
            skip = True
        elif token.type == "fence":
            words = token.info.split(maxsplit=1)
            title = re.search(r'title="([^"]+)"', token.info)
            if words and not skip and (words[0] in RUN or title):
                assert token.map is not None
                found.append(Block(words[0], title and title[1], token.content, token.map[0] + 1))
            skip = False
    return found


def is_slow(page: Path) -> bool:
    """Return whether ``page`` is marked as one that starts processes or trains for long."""
    return page.read_text().startswith("<!-- slow -->")


def run_page(page: Path, only: list[Block] | None = None) -> PageRun:
    """Run the blocks of ``page``, or ``only`` some of them, and return what they left."""
    run = PageRun()
    for block in blocks(page) if only is None else only:
        where = f"{page.name}:{block.line}"
        if block.title:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
            sys.modules.pop(path.stem, None)  # another page's module of that name, which this process has imported
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * block.line + block.code, str(page), "exec"), run.names)
            run.out += out.getvalue()
        else:
            for command, expected in _commands(block):
                code, out = _run(command, here=not is_slow(page))
                run.out += out
                wanted = 2 if expected is not None and expected.startswith("error:") else 0
                assert code == wanted, f"{where}: {command}\nexited with {code}:\n{out}"
                if expected is not None:
                    assert _fits(out, expected), f"{where}: {command}\nprinted:\n{out}\nnot:\n{expected}"
    return run


def _commands(block: Block) -> list[tuple[str, str | None]]:
    """Return (command, the output that it must give, or None where that is not said)."""
    code = block.code.replace("\\\n", " ")
    if block.language == "sh":
        return [(line, None) for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert code.startswith("$ "), f"a console block begins with a command, not with {code[:20]!r}"
    pairs = [part.partition("\n") for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]]
    return [(command, expected) for command, _, expected in pairs]


def _run(command: str, *, here: bool) -> tuple[int, str]:
    """Return a command's exit code and what it printed; ``here`` is within this process, if it is one of ours."""
    words = shlex.split(command, comments=True)
    if here and words[0].removeprefix(".venv/bin/") == "neumann":
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            return main(words[1:]), out.getvalue()
    environment = os.environ | AS_ONE_THREAD
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c", command.replace(".venv/bin/", "")]
    done = subprocess.run(
        shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=280
    )
    return done.returncode, done.stdout


def _fits(out: str, expected: str) -> bool:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(expected.strip(), out.strip(), flags)
