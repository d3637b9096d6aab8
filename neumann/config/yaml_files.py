"""YAML files as they are read here: UTF-8, one mapping each, no key twice, and only plain decimals are numbers.

YAML 1.1 makes numbers and truth values of words that no reader takes for any: 1:00:00 is 3600, 060 is 48, 1_0 is 10 and
no is false. Here such a word stays the text that it is, as in YAML 1.2: a setting that is a text keeps it, and one that
is a number refuses it. `StrictFiles` gives Hydra its files by the same reader.
"""

from __future__ import annotations

import builtins
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neumann.bounds import vanishes
from neumann.errors import UserError

LARGEST_FILE = 2**18  # bytes; a long file of settings has some 10,000, and PyYAML takes seconds for this many
MOST_VALUES = 10_000  # in one file; what an alias stands for is counted each time, and a few can stand for any number
WORDS = (  # (tag, the plain scalars that have it, their first characters)
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with `WORDS` as the only plain scalars that are not texts; it refuses a key given twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(problem="a key is not a word", problem_mark=key.start_mark)
            if not key.value or key.tag == "tag:yaml.org,2002:null":
                raise yaml.constructor.ConstructorError(problem="a key is empty", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value: float = super().construct_yaml_float(node)
        if value == 0 and vanishes(node.value):
            raise yaml.constructor.ConstructorError(
                problem=f"{node.value} is nearer to zero than a number can be here: write 0 if you mean it",
                problem_mark=node.start_mark,
            )
        return value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _tag, _pattern, _first in WORDS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return the mapping in ``path``. Raises UserError, one sentence that names the file and the line."""
    return _parsed(path, _text(path))


def _text(path: Path) -> str:
    """Return what is in ``path``, its lines ended by a line feed alone, as `load_config` looks for them."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path} cannot be read: it is not a regular file")
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} cannot be read: it is larger than {LARGEST_FILE:,} bytes, and no file of settings is")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 (line {line}): save it in that encoding") from error


def _parsed(path: Path, text: str) -> dict[Any, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)
        _count_values(content, {})
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{where} cannot be read: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if content is None:
        raise UserError(f"{path} is empty: write its settings in it, one KEY: VALUE a line")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "a single value"
        raise UserError(f"{path} holds {kind}, and a mapping belongs there: one KEY: VALUE a line")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path} cannot be read: its key {key} is not a word")
    return content


@lru_cache(maxsize=256)
def _parsed_once(path: Path, text: str) -> Any:
    """Return what `_parsed` does, to be read alone: each composition of a study reads the same dozen files."""
    return _parsed(path, text)


def _count_values(value: object, counted: dict[int, int]) -> int:
    """Return how many values ``value`` holds, what an alias stands for counted each time.

    ``counted`` has the number of each mapping and list by its id, 0 while it is being counted. Raises ValueError for
    too many, for a mapping or a list that holds itself, and for what is no plain value, such as a date.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return 1
    if not isinstance(value, dict | list):
        kind = {"date": "date", "datetime": "date", "bytes": "binary value"}.get(type(value).__name__, "tagged value")
        raise ValueError(f"it holds a {kind}, and a setting is a text, number, true, false, null, list or mapping")
    if id(value) not in counted:
        counted[id(value)] = 0
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count_values(part, counted) for part in parts)
    number = counted[id(value)]
    if not number:
        raise ValueError("an alias in it stands for what it is a part of")
    if number > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values, what its aliases stand for among them")
    return number


def _package(path: Path, text: str) -> str | None:
    """Return the section that the remark `@package` names, among those that open a file; None where none does.

    Raises UserError for one that cannot be meant: the settings would go elsewhere.
    """
    for number, line in enumerate(text.split("\n"), 1):
        remark = line.strip()
        if remark and not remark.startswith("#"):
            break
        if (found := re.match(r"#\s*@package\b(.*)", remark)) is not None:
            words = found[1].split()
            if len(words) != 1:
                raise UserError(
                    f"{path}, line {number} cannot be read: after '@package' stands one word alone, such as _global_"
                )
            return words[0]
    return None


def package_and_lines(path: Path) -> tuple[str | None, dict[str, int]]:
    """Return the section that the `@package` of a readable file names, and {dotted key: its line, from 1}."""
    text = _text(path)
    found: dict[str, int] = {}

    def look(node: yaml.Node, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            found[name] = key.start_mark.line + 1
            if isinstance(value, yaml.MappingNode):
                look(value, f"{name}.")

    if isinstance(whole := yaml.compose(text, Loader=_Loader), yaml.MappingNode):
        look(whole, "")
    found.pop("defaults", None)
    return _package(path, text), found


class StrictFiles(ConfigSource):
    """A folder of configuration files for Hydra, read by `read_yaml`."""

    @staticmethod
    def scheme() -> str:
        """Return the word before :// in Hydra's search path."""
        return "neumann"

    def _path(self, config_path: str) -> Path:
        return Path(self.path) / config_path

    def _file(self, config_path: str) -> Path:
        return self._path(config_path if config_path.endswith(".yaml") else f"{config_path}.yaml")

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the content of a file. Raises UserError where it cannot be read."""
        path = self._file(config_path)
        if not os.path.lexists(path):
            raise ConfigLoadError(f"there is no {path}")
        text = _text(path)
        parsed = _parsed_once(path, text)
        try:
            config = OmegaConf.create(parsed)  # a copy
        except OmegaConfBaseException as error:
            raise UserError(
                f"{path} cannot be read: an interpolation in it, written ${{...}}, does not close"
            ) from error
        package = _package(path, text)
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=config,
            header={"package": package},
        )

    def available(self) -> bool:
        """Return whether the folder is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Return whether there is a group of that name."""
        return self._path(config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Return whether there is anything of that name; what is no file is told by `load_config`."""
        return os.path.lexists(self._file(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        """Return the names of the files and groups in a group."""
        found: set[str] = set()
        if results_filter in (None, ObjectType.CONFIG):
            found |= {path.stem for path in self._path(config_path).glob("*.yaml")}
        if results_filter in (None, ObjectType.GROUP):
            found |= {path.name for path in self._path(config_path).iterdir() if path.is_dir()}
        return sorted(found)
