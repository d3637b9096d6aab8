"""YAML files as they are read here: UTF-8, one mapping each, no key twice, and only plain decimals are numbers.

YAML 1.1 makes numbers and truth values of words that no reader takes for any: 1:00:00 is 3600, 060 is 48, 1_0 is 10 and
no is false. Here such a word stays the text that it is, as in YAML 1.2: a setting that is a text keeps it, and one that
is a number refuses it. `StrictFiles` gives Hydra its files by the same reader.
"""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from neumann.errors import UserError

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
        if value == 0 and any(digit in "123456789" for digit in re.split("[eE]", node.value)[0]):
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
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 (line {line}): save it in that encoding") from error


def _parsed(path: Path, text: str) -> dict[Any, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)
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
    return content


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
        if not path.is_file():
            raise ConfigLoadError(f"there is no {path}")
        text = _text(path)
        package = re.match(r"\s*#\s*@package\s+(\S+)[ \t]*$", text, re.MULTILINE)
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create(_parsed(path, text)),
            header={"package": package[1] if package else None},
        )

    def available(self) -> bool:
        """Return whether the folder is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Return whether there is a group of that name."""
        return self._path(config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Return whether there is a file of that name."""
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        """Return the names of the files and groups in a group."""
        found: set[str] = set()
        if results_filter in (None, ObjectType.CONFIG):
            found |= {path.stem for path in self._path(config_path).glob("*.yaml")}
        if results_filter in (None, ObjectType.GROUP):
            found |= {path.name for path in self._path(config_path).iterdir() if path.is_dir()}
        return sorted(found)
