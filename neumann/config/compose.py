"""The composition of a configuration: overrides go in, one strictly checked configuration comes out.

A misspelt key must never train silently, so three checks of our own (`neumann.config.keys`) stand around Hydra. The
choices of groups are checked, then Hydra composes the chosen files. Each override of a value is checked against them
before it is set, so `+optimizer.alpha=0` is refused for an optimizer without α. At last the keys of the result are
checked against the schema, which catches a misspelt key in a file, such as an experiment's.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from neumann import compat
from neumann.config.hydra_words import composition
from neumann.config.keys import Chosen, MissingSetting, check_key, check_keys, check_option, refuse_hydra
from neumann.config.override_text import as_meant, parse_override
from neumann.config.schema import CHOSEN_SECTIONS, SECTIONS, structured
from neumann.config.time_scales import register_resolvers
from neumann.config.yaml_files import StrictFiles, read_yaml
from neumann.errors import UserError
from neumann.folders import folder_of

CONF = Path(__file__).resolve().parents[1] / "conf"
SWEEPS = "sweeps"  # the group whose files are grids of runs, see neumann.search.grid
EXPERIMENT = "experiment"  # the group whose options may lie in folders of it, as experiment=table2/resnet50_neumann


class Composer:
    """Composes any number of runs and reads each configuration file once; made by `composing`."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}  # by the groups' overrides
        self._pickled: dict[tuple[str, ...], bytes] = {}  # the same, of which a copy is made in a fifth of the time
        self._schemas: dict[tuple[str, ...], DictConfig] = {}

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """{group: its options}, the user's folders included."""
        found: dict[str, set[str]] = {}
        for folder in self.folders:
            for path in _option_files(folder):
                group, _, option = path.relative_to(folder).with_suffix("").as_posix().partition("/")
                found.setdefault(group, set()).add(option)
        found.pop("hydra", None)
        return {group: sorted(options) for group, options in sorted(found.items())}

    def compose(self, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
        """Compose a run from Hydra overrides; interpolations are left in place.

        Returns the configuration and the option chosen in each group. Raises UserError naming the nearest valid
        spelling of an unknown group, option or key.
        """
        groups = self.groups
        # +experiment=NAME, as where a template has no such group; here it has, and Hydra adds none twice
        added = tuple(f"+{group}=" for group in groups if group not in SECTIONS)
        given = (text.removeprefix("+") if text.startswith(added) else text for text in overrides)
        parsed = [self._parse(text) for text in given]
        for override in parsed:
            refuse_hydra(override)
            if override.key_or_group == SWEEPS:
                raise UserError(f"'{override.input_line}' is a sweep, which is several runs: add -m to the command")
            if override.is_sweep_override():
                raise UserError(
                    f"'{override.input_line}' names several values, and this command trains one run: give one value, "
                    "or add -m to train one run for each"
                )
        # ablation=null chooses nothing, as the default does; Hydra refuses it, so it is left out
        parsed = [
            o for o in parsed if o.key_or_group not in groups or o.key_or_group in SECTIONS or o.value() is not None
        ]
        options = [o for o in parsed if o.key_or_group in groups]
        for override in options:
            check_option(override, groups)
        files = tuple(str(o.input_line) for o in options)
        baseline, choices = self._files(files)
        _check_packages(baseline, choices)
        values = [o for o in parsed if o.key_or_group not in groups]
        chosen = Chosen(baseline, choices, groups, self._having)
        for override in values:
            check_key(override, chosen)
        config = self._with_values(files, [self._parse(as_meant(o)) for o in values])
        if _written(config.launch, "kind") != _written(baseline.launch, "kind"):
            raise UserError(f"launch.kind is set by launch={choices['launch']}: choose another file of that group")
        extra = [f"{group}={option}" for group, option in choices.items() if group not in SECTIONS]
        if extra:  # an ablation or an experiment file, whose keys are to be checked as well
            files = tuple(f"{group}={choices[group]}" for group in (*CHOSEN_SECTIONS, "launch"))
        try:
            check_keys(config, self._schema(files), choices)
        except MissingSetting:
            raise
        except UserError as error:
            raise (UserError(f"{', '.join(extra)} does not fit: {error}") if extra else error) from None
        return config, dict(choices)

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = parse_override(self._parser, text)
        return self._parsed[text]

    def _files(self, overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
        """Return the configuration that the chosen files make, shared between calls, and {group: chosen option}."""
        if overrides not in self._composed:
            try:
                config = hydra_compose("train", list(overrides), return_hydra_config=True)
            except RecursionError as error:
                raise UserError(f"{', '.join(overrides)}: a defaults list leads back to its own file") from error
            except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
                raise UserError(composition(error, overrides, self.groups)) from error
            choices = {
                str(k): str(v)
                for k, v in config.hydra.runtime.choices.items()
                if v is not None and not str(k).startswith("hydra")
            }
            with open_dict(config):
                del config["hydra"]
            self._composed[overrides] = config, choices
        return self._composed[overrides]

    def _having(self, group: str, key: str) -> list[str]:
        """Return the options of ``group`` whose files have the setting ``key``."""
        return [
            option for option in self.groups.get(group, []) if group in SECTIONS and key in self._keys(group, option)
        ]

    def _keys(self, group: str, option: str) -> set[str]:
        """Return the keys of an option's file and of those that it builds on; of one that cannot be read, none."""
        keys: set[str] = set()
        for path in (folder / group / f"{option}.yaml" for folder in self.folders):
            try:
                content = read_yaml(path) if path.is_file() else {}
            except UserError:
                continue
            bases = content.pop("defaults", None) or []
            keys |= {str(key) for key in content}
            for base in bases if isinstance(bases, list) else []:
                if isinstance(base, str) and base not in ("_self_", option):
                    keys |= self._keys(group, base)
        return keys

    def _with_values(self, files: tuple[str, ...], values: list[Override]) -> DictConfig:
        """Return a copy of what ``files`` make, with ``values`` set as Hydra sets them after merging the files."""
        if files not in self._pickled:
            self._pickled[files] = pickle.dumps(self._files(files)[0])
        config: DictConfig = pickle.loads(self._pickled[files])
        with sentences("the configuration does not compose"):
            compat.set_values(values, config)
        return config

    def _schema(self, files: tuple[str, ...]) -> DictConfig:
        """Return every valid key with an example: the chosen files are the schema of data, optimizer and schedule."""
        if files not in self._schemas:
            chosen, _ = self._files(files)
            schema: Any = structured(OmegaConf.to_container(chosen.launch))
            for section in CHOSEN_SECTIONS:
                schema[section] = OmegaConf.to_container(chosen[section], resolve=False)
            self._schemas[files] = schema
        return self._schemas[files]


def _check_packages(config: DictConfig, choices: dict[str, str]) -> None:
    """Refuse a chosen file whose `# @package` line puts its settings where no run reads them. Raises UserError."""
    for group, option in choices.items():
        if group in SECTIONS and group not in config:
            raise UserError(f"{group}={option}: its file has a '# @package' line, which only ablations and such have")
        if group not in SECTIONS and group in config:
            package = "_global_" if group == EXPERIMENT else "optimizer"
            raise UserError(
                f"{group}={option}: its file needs the first line '# @package {package}', which says whose settings "
                "it changes"
            )


def _written(section: DictConfig, key: str) -> Any:
    """Return a setting as it is written, an interpolation as its text."""
    return OmegaConf.to_container(section, resolve=False).get(key)  # type: ignore[union-attr]


@contextmanager
def sentences(what: str) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf within the block into one UserError, which opens with ``what``."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(line for line in lines[:2] if not line.endswith("search path:"))
        raise UserError(f"{what}: {text}") from error


@contextmanager
def composing(config_dirs: Sequence[str] = ()) -> Iterator[Composer]:
    """Hold a composer over our files and the user's ``config_dirs``. Raises UserError as `search_path` does."""
    register_resolvers()
    compat.keep_parsed()
    folders = search_path(config_dirs)
    composer = _over_ours(CONF) if folders == [CONF] else Composer(folders)
    with compat.hydra_over(StrictFiles, composer.folders):
        yield composer


@cache
def _over_ours(ours: Path) -> Composer:
    """Return the composer over our files alone, which like our modules do not change while a process runs."""
    return Composer([ours])


def search_path(config_dirs: Sequence[str]) -> list[Path]:
    """Return our folder of files and the user's ``config_dirs``, each once.

    Raises UserError where one is missing, and where two have a file of one name: whichever was taken, the other would
    be ignored, and an option of that name would mean two things.
    """
    if "" in config_dirs:  # as from a variable of the shell that is not set; it would be the working directory
        raise UserError("--config-dir is empty: name a folder, or . for the working directory")
    own = (Path(folder_of("--config-dir", folder)).resolve() for folder in config_dirs)
    folders = [CONF, *(folder for folder in dict.fromkeys(own) if folder != CONF.resolve())]
    known: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
        for file in sorted([*folder.glob("*.yaml"), *_option_files(folder)]):
            name = file.relative_to(folder)
            other = known.setdefault(name, file)
            if other is not file and (name.parent.name or name.stem == "train"):
                raise UserError(
                    f"{file} has the name of {other}, and {_asked(name)} cannot mean both: rename yours, such as to "
                    f"my_{name.name}"
                )
    return folders


def _option_files(folder: Path) -> list[Path]:
    """Return the files of all groups below ``folder``: <group>/<option>.yaml, of experiments also one folder deeper."""
    return [*folder.glob("*/*.yaml"), *folder.glob(f"{EXPERIMENT}/*/*.yaml")]


def list_groups(config_dirs: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return {group: its options}, the user's folders included."""
    with composing(config_dirs) as composer:
        return composer.groups


def _asked(name: Path) -> str:
    """Return how a configuration file is asked for."""
    group, _, option = name.with_suffix("").as_posix().partition("/")
    return f"{group}={option}" if option else "the command"
