"""The file and the line of a value that a sentence refuses, where it stands in a file of the user's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neumann.config.override_text import key_of
from neumann.config.yaml_files import package_and_lines, read_yaml
from neumann.errors import UserError

NO_SETTING = re.compile(r"has no setting '(\w+)'")


def with_origin(sentence: str, overrides: Sequence[str], folders: Sequence[Path], groups: Mapping[str, Any]) -> str:
    """Return ``sentence`` with the file and line before it of the first key in it that such a file sets.

    A key that the command sets as well is the command's, and a sentence that names the file is left as it is.

    Args:
        sentence: says what is wrong with a configuration.
        overrides: compose it.
        folders: those of the user's own files.
        groups: {group: its options}.
    """
    given = {key_of(text) for text in overrides}
    unknown = NO_SETTING.search(sentence)
    best: tuple[int, int, str] | None = None
    for path, group in _files(overrides, folders, groups):
        package, lines = package_and_lines(path)
        prefix = "" if package == "_global_" else f"{package or group}."
        for name, line in lines.items():
            key = f"{prefix}{name}"
            if key in given:
                continue
            if unknown is not None:
                at = 0 if name.rpartition(".")[2] == unknown[1] else -1
            else:
                found = re.search(rf"(?<![\w.]){re.escape(key)}(?![\w]|\.\w)", sentence)
                at = found.start() if found else -1
            if at >= 0 and (best is None or (at, -len(key)) < best[:2]):
                best = at, -len(key), f"{path}, line {line}"
    return sentence if best is None or best[2].partition(", line ")[0] in sentence else f"{best[2]}: {sentence}"


def _files(overrides: Sequence[str], folders: Sequence[Path], groups: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield (file, group) of each file of the user's own that ``overrides`` choose, and of those that it builds on."""
    asked = [(key_of(text), text.partition("=")[2].strip("'\"")) for text in overrides if key_of(text) in groups]
    seen: set[Path] = set()
    while asked:
        group, option = asked.pop(0)
        for path in (folder / group / f"{option}.yaml" for folder in folders):
            if path in seen or not path.is_file():
                continue
            seen.add(path)
            try:
                bases = read_yaml(path).get("defaults")
            except UserError:  # which is the sentence itself
                continue
            yield path, group
            for base in bases if isinstance(bases, list) else []:
                if isinstance(base, str):
                    asked.append((group, base))
                elif isinstance(base, dict):
                    asked += [
                        (str(key).rpartition("/")[2].rpartition(" ")[2], str(value)) for key, value in base.items()
                    ]
