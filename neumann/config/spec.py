"""Which run is this? A resolved configuration, the facts of its data, and the signature that names its results."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from neumann.config.compose import CONF, composing
from neumann.config.keys import CHOSEN_SECTIONS
from neumann.config.schema import RunConfig, check_values, structured
from neumann.data import DataFacts, facts
from neumann.errors import UserError

RESULTS_VERSION = 1  # raise it when a change of the code changes what the same configuration yields

# What may differ between two requests for the same result, and why it cannot change that result. Everything else is
# signed.
NOT_SIGNED: dict[str, str] = {
    "output": "where results are written",
    "study": "the folder they are filed under",
    "name": "what the run is called",
    "logger": "a mirror is only written to",
    "checkpoint": "what is kept afterwards",
    "launch": "where it trains, beside how many; threads change rounding at most, and provenance.json records them",
    "data.root": "where the images lie; what they are is signed by the fingerprint",
    "data.workers": "order and augmentation are keyed by sample, not by worker",
}

TYPED_SECTIONS = ("batch", "trainer", "recipe", "checkpoint", "logger", "launch", "timing", "model")


@dataclass(frozen=True)
class RunSpec:
    """One run, fully determined: its configuration, its data and its signature."""

    config: RunConfig
    facts: DataFacts
    signature: str
    choices: dict[str, str]

    @property
    def name(self) -> str:
        """Return what the run is called, from the choices where the user gave no name."""
        if self.config.name:
            return self.config.name
        parts = [self.choices.get(group, group) for group in ("data", "model", "optimizer")]
        for i, (section, key) in enumerate((("data", "root"), ("model", "name"), ("optimizer", "name"))):
            value = self.section(section).get(key)
            if value:  # image_folder, timm and torch say little: the folder's or the model's own name says more
                parts[i] = Path(str(value)).name if key == "root" else str(value).replace("/", "_")
        if "ablation" in self.choices:
            parts.append(self.choices["ablation"])
        return "-".join([*parts, f"s{self.config.seed}"])

    def section(self, name: str) -> dict[str, Any]:
        """Return one section of the resolved configuration as a plain dict."""
        return dict(self.as_dict()[name])

    @property
    def folder(self) -> Path:
        """Return the run's folder, <output>/<study>/<name>-<signature>."""
        return Path(self.config.output) / self.config.study / f"{self.name}-{self.signature}"

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data."""
        return asdict(self.config)

    def signed(self) -> dict[str, Any]:
        """Return exactly what the signature covers."""
        return signed_part(self.as_dict(), self.facts)

    def as_record(self) -> dict[str, Any]:
        """Return what `load_spec` makes the run from again, as JSON types. The data stays where it is."""
        return {"config": self.as_dict(), "choices": dict(self.choices), "signature": self.signature}


def signed_part(config: Mapping[str, Any], data: DataFacts) -> dict[str, Any]:
    """Return ``config`` without `NOT_SIGNED`, with the data's fingerprint and splits and the version of the results."""
    part = copy.deepcopy(dict(config))
    for dotted in NOT_SIGNED:
        *path, last = dotted.split(".")
        node: Any = part
        for key in path:
            node = node.get(key, {})
        node.pop(last, None)
    identity = {"fingerprint": data.fingerprint, "splits": data.split_digest}
    return {"config": part, "data": identity, "results_version": RESULTS_VERSION}


def sign(part: Mapping[str, Any]) -> str:
    """Return the signature: 12 hex digits over the canonical JSON of ``part``."""
    text = json.dumps(_canonical(part), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    """Write whole numbers one way, so that ``lr=1`` and ``lr=1.0`` are one run."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


MakeSpecs = Callable[[Sequence[Sequence[str]]], list[RunSpec]]


def make_spec(overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> RunSpec:
    """Compose, check, resolve and sign one run.

    ``overrides`` are Hydra's (``optimizer=sgd``, ``seed=3``), ``config_dirs`` folders with groups of the user's own.
    Raises UserError with one sentence for anything that is wrong with the configuration or the data. Nothing is written
    and torch is not imported.
    """
    return make_specs([overrides], config_dirs)[0]


def make_specs(jobs: Sequence[Sequence[str]], config_dirs: Sequence[str] = ()) -> list[RunSpec]:
    """Return what `make_spec` returns for each list of overrides, reading the files and the data once for all.

    Raises UserError for the first job that has something wrong, and names the job where there are several.
    """
    with making_specs(config_dirs) as make:
        return make(jobs)


@contextmanager
def making_specs(config_dirs: Sequence[str] = ()) -> Iterator[MakeSpecs]:
    """Yield a `make_specs` that may be called several times in the block and reads files and data once for all."""
    with composing(config_dirs) as composer:
        resolver = _Resolver()
        known: dict[
            tuple[str, ...], RunSpec | None
        ] = {}  # by the overrides but the seed; None: it moves other settings

        def spec(overrides: Sequence[str]) -> RunSpec:
            rest, seed = _without_seed(overrides)
            if seed is not None and (other := known.get(rest)) is not None:
                return _at_seed(other, seed)
            composed, choices = composer.compose(overrides)
            free = seed is not None and not SEED_IS_READ.search(_text(OmegaConf.to_container(composed)))
            made = resolver.spec(composed, choices)
            known[rest] = made if free else None
            return made

        def make(jobs: Sequence[Sequence[str]]) -> list[RunSpec]:
            specs = []
            for overrides in jobs:
                try:
                    specs.append(spec(overrides))
                except UserError as error:
                    if len(jobs) == 1:
                        raise
                    raise UserError(f"{error} (in the run '{' '.join(overrides)}')") from error
            return specs

        yield make


SEED_IS_READ = re.compile(r"\$\{[^}]*\bseed\b")  # an interpolation that follows the seed


def _without_seed(overrides: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Return the overrides but the seed, and the seed where it is plainly set once."""
    seeds = [word for word in overrides if word.startswith("seed=")]
    value = seeds[0].removeprefix("seed=") if len(seeds) == 1 else ""
    if not (value.isascii() and value.isdigit() and str(int(value)) == value):
        return tuple(overrides), None
    return tuple(word for word in overrides if word is not seeds[0]), int(value)


def _at_seed(spec: RunSpec, seed: int) -> RunSpec:
    """Return the same run at another seed. A study asks for little else, and composing takes ten times as long."""
    config = replace(copy.deepcopy(spec.config), seed=seed)
    return replace(spec, config=config, signature=sign(signed_part(asdict(config), spec.facts)))


# What a record may name unasked: a class straight in one of these packages, or what our own files name. A longer path
# would lead from a module to whatever that has imported (torch.optim.optimizer.functools.partial).
TRUSTED = re.compile(r"(neumann|torch|timm)\.optim\.[A-Z]\w*")


@cache
def _own_targets() -> frozenset[str]:
    texts = (file.read_text() for file in CONF.rglob("*.yaml"))
    return frozenset(target for text in texts for target in re.findall(r"^_target_: *(\S+)", text, re.MULTILINE))


def load_spec(record: Mapping[str, Any], *, trust: bool = False) -> RunSpec:
    """Return the run that `RunSpec.as_record` has described, on another day or another machine.

    A record is data, whoever wrote it: nothing is interpolated, and a ``_target_`` that is not `TRUSTED` is refused
    unless ``trust``. Raises UserError for that, for what is no record of a run, and where data or code have changed.
    """
    match record:
        case {"config": dict() as config, "choices": dict() as choices, "signature": str() as signature}:
            pass
        case _:
            raise UserError("this is no record of a run: it needs a config, its choices and a signature")
    for key, text in _texts(config):
        if "${" in text or text == "???":
            raise UserError(f"{key}={text}: the record of a run has no interpolations, every value stands as it is")
        known = TRUSTED.fullmatch(text) or text in _own_targets()
        if key.endswith("._target_") and not trust and not known:
            raise UserError(
                f"{key}={text} would run code that is neither ours nor an optimizer of torch.optim or timm.optim: "
                "add --trust to allow it"
            )
    try:
        loaded = OmegaConf.to_object(OmegaConf.merge(structured(config.get("launch")), config))
    except OmegaConfBaseException as error:
        raise UserError(f"the record of run {signature} does not fit this version: {_sentence(error)}") from error
    assert isinstance(loaded, RunConfig)
    check_values(loaded)
    spec = RunSpec(loaded, facts(loaded.data), "", {str(k): str(v) for k, v in choices.items()})
    spec = replace(spec, signature=sign(spec.signed()))
    if spec.signature != signature:
        raise UserError(
            f"the record of run {signature} now gives run {spec.signature}: its data or the code has changed"
        )
    return spec


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for every text in ``value``."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _texts(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child, key)
    elif isinstance(value, str):
        yield key, value


class _Resolver:
    """Makes composed configurations into specifications; what is slow is done once per distinct section."""

    def __init__(self) -> None:
        self._facts: dict[str, DataFacts] = {}
        self._typed: dict[tuple[str, str], Any] = {}
        self._steps: dict[str, tuple[float, float, int]] = {}
        self._schema = structured()

    def spec(self, composed: DictConfig, choices: dict[str, str]) -> RunSpec:
        """Return the specification of one composed configuration, which is changed by it."""
        try:
            data = OmegaConf.to_container(composed.data, resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(f"data: {_sentence(error)}") from error
        key = _text(data)
        if key not in self._facts:
            self._facts[key] = facts(data)  # type: ignore[arg-type]
        data_facts = self._facts[key]
        config = self._config(composed, data_facts)
        signature = sign(signed_part(asdict(config), data_facts))
        return RunSpec(config=config, facts=data_facts, signature=signature, choices=choices)

    def _config(self, composed: DictConfig, data_facts: DataFacts) -> RunConfig:
        """Fill in what follows from the data, then replace every interpolation and check every value."""
        try:
            with open_dict(composed):
                composed["derived"] = self._derived(composed, data_facts.train_count)
            # checked before anything is computed from them
            values = {section: self._value(section, composed) for section in TYPED_SECTIONS}
            check_values(RunConfig(**values))
            values |= {str(key): self._value(str(key), composed) for key in composed if key not in values}
        except OmegaConfBaseException as error:
            raise UserError(_sentence(error)) from error
        for section in CHOSEN_SECTIONS:
            _check_finite(section, values[section])
        config = RunConfig(**values)
        check_values(config)
        return config

    def _derived(self, composed: DictConfig, train_count: int) -> dict[str, int]:
        asked = {
            "trainer": {key: composed.trainer[key] for key in ("max_epochs", "check_val_every_n_epoch")},
            "batch": {"size": composed.batch.size},
        }
        known = _text(asked)
        if known not in self._steps:
            trainer, batch = (OmegaConf.merge(self._schema[section], asked[section]) for section in asked)
            self._steps[known] = trainer.max_epochs, trainer.check_val_every_n_epoch, batch.size
        epochs, every, size = self._steps[known]
        steps_per_epoch = train_count // size if size > 0 else 0
        if steps_per_epoch < 1:
            raise UserError(
                f"batch.size={size} does not fit the {train_count} training images: choose from 1 to {train_count}"
            )
        return {
            "train_examples": train_count,
            "steps_per_epoch": steps_per_epoch,
            "total_steps": _at_least_one(epochs * steps_per_epoch, "trainer.max_epochs"),
            "eval_every_steps": _at_least_one(every * steps_per_epoch, "trainer.check_val_every_n_epoch"),
        }

    def _value(self, key: str, composed: DictConfig) -> Any:
        """Return a section or a setting with its interpolations replaced and its types those of the schema."""
        value = composed[key]
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        known = key, _text(plain)
        if known not in self._typed:
            if OmegaConf.is_config(self._schema[key]):
                schema = structured(plain) if key == "launch" else self._schema
                self._typed[known] = OmegaConf.to_object(OmegaConf.merge(schema[key], plain))
            else:
                self._schema[key] = plain
                self._typed[known] = self._schema[key]
        return copy.deepcopy(self._typed[known])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=False, default=repr)


def _at_least_one(steps: float, key: str) -> int:
    if not math.isfinite(steps) or steps <= 0:
        raise UserError(f"{key} is out of range: it must be a number above 0")
    return max(1, round(steps))


def _check_finite(where: str, value: Any) -> None:
    """Refuse nan and inf: they have no place in a signature, and none of these settings means anything at them."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            _check_finite(f"{where}.{key}", child)
    elif isinstance(value, list | tuple):
        for child in value:
            _check_finite(where, child)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value} is not a finite number")


def _sentence(error: OmegaConfBaseException) -> str:
    """Turn OmegaConf's message into one sentence that names the key."""
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    text = str(error).splitlines()[0].strip().split("raised while resolving interpolation: ")[-1]
    key = getattr(error, "full_key", None)
    return f"{key}: {text[0].lower()}{text[1:]}" if key else text
