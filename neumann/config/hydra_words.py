"""Errors of Hydra and OmegaConf in the words of the files and commands that a user writes.

Their own messages name packages, search paths and nodes. A message that is not known here is told as it is, on one
line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from omegaconf.errors import OmegaConfBaseException

from neumann.errors import UserError, did_you_mean

LIST = "its defaults list"
RESOLVERS = ("steps", "share", "unit", "decay", "oc.env")  # that a file may use
_IN = r"(?:In '(?P<file>[^']+)': )?"
_NOT_FOUND = re.compile(rf"{_IN}Could not (?:find|load) '(?P<path>[^']+)'")
_TWICE = re.compile(
    r"Multiple values for (?P<group>[^\s@]+)\S*\. To override a value use 'override [^:]+: (?P<option>.+)'"
)
_NO_MATCH = re.compile(rf"{_IN}Could not override '(?P<key>[^'@]+)")


def composition(error: Exception, words: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    """Return what is wrong where Hydra cannot compose the choices ``words``; ``groups`` is {group: its options}."""
    lines = [line.strip() for line in str(error).partition("Config search path")[0].splitlines() if line.strip()]
    text = " ".join(lines[:2])
    asked = ", ".join(words) or "the configuration"
    if found := _NOT_FOUND.match(text):
        file, (group, _, option) = found["file"], found["path"].rpartition("/")
        where = asked if file in (None, "train") else f"{file}.yaml"
        if group in groups:
            return f"{where}: there is no {group} '{option}': {did_you_mean(option, groups[group])}"
        inner = group.rpartition("/")[2]
        if inner in groups:
            return f"{where}: write 'override /{inner}: {option}' in {LIST}"
        return f"{where}: there is no group '{group}': {did_you_mean(group, groups)}"
    if found := _TWICE.match(text):
        group = found["group"].rpartition("/")[2]
        return f"{asked}: {group} has a choice already, which a file changes by 'override /{group}: {found['option']}'"
    if found := _NO_MATCH.match(text):
        where, group = f"{found['file']}.yaml" if found["file"] else asked, found["key"].rpartition("/")[2]
        if group not in groups:
            return f"{where}: there is no group '{group}': {did_you_mean(group, groups)}"
        return f"{where}: 'override /{group}: OPTION' stands in files of experiment/ alone, with the slash"
    return f"{asked} cannot be composed: {text or type(error.__cause__ or error).__name__}"


def interpolation(error: OmegaConfBaseException) -> str:
    """Return OmegaConf's message as one sentence that names the key and, of our own resolvers, what they take."""
    if isinstance(error.__cause__, UserError):
        return str(error.__cause__)
    key = getattr(error, "full_key", None)
    text = str(error).partition("\n")[0].strip().split("raised while resolving interpolation: ")[-1].strip("\"'")
    where = f"{key}: " if key else ""
    if found := re.match(r"Interpolation key '(.+)' not found", text):
        return f"{where}${{{found[1]}}} stands for a setting that is not there"
    if found := re.match(r"Unsupported interpolation type (.+)", text):
        return f"{where}${{{found[1]}:...}} is not known: {did_you_mean(found[1], RESOLVERS)}"
    if text.startswith("Recursive interpolation"):
        return f"{where}the value stands for itself"
    if found := re.match(r"Environment variable '(.+)' not found", text):
        return f"{where}the environment variable {found[1]} is not set"
    if found := re.match(r"(\w+)\(\) (?:missing|takes)", text):
        return f"{where}${{{found[1]}:...}} has too few or too many arguments"
    return f"{where}{text[:1].lower()}{text[1:]}" if key else text
