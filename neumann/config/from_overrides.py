"""Specifications of runs from overrides, as the command line gives them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from omegaconf import OmegaConf

from neumann.config.compose import composing
from neumann.config.origins import with_origin
from neumann.config.override_text import FOLLOWS, key_of
from neumann.config.resolution import Resolver, as_text
from neumann.config.spec import RunSpec
from neumann.config.spectral import follows_spectrum, refuse_given
from neumann.errors import UserError

MakeSpecs = Callable[[Sequence[Sequence[str]]], list[RunSpec]]
SEED_IS_READ = re.compile(r"\$\{[^}]*\bseed\b")  # an interpolation that follows the seed


def make_spec(overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> RunSpec:
    """Compose, check, resolve and sign one run.

    ``overrides`` are Hydra's (``optimizer=sgd``, ``seed=3``), ``config_dirs`` folders with groups of the user's own.
    Raises UserError with one sentence for anything that is wrong with the configuration or the data. Nothing is written
    and torch is not imported.
    """
    return make_specs([overrides], config_dirs)[0]


def make_specs(jobs: Sequence[Sequence[str]], config_dirs: Sequence[str] = ()) -> list[RunSpec]:
    """Return what `make_spec` returns for each list of overrides, reading the files and the data once for all.

    Raises UserError for the first run that has something wrong, and names the run where there are several.
    """
    with making_specs(config_dirs) as make:
        return make(jobs)


@contextmanager
def making_specs(config_dirs: Sequence[str] = ()) -> Iterator[MakeSpecs]:
    """Yield a `make_specs` that may be called several times in the block and reads files and data once for all."""
    with composing(config_dirs) as composer:
        resolver = Resolver()
        # by the overrides without the seed; None where another setting follows the seed
        known: dict[tuple[str, ...], RunSpec | None] = {}

        def spec(overrides: Sequence[str]) -> RunSpec:
            rest, seed = without_seed(overrides)
            if seed is not None and (other := known.get(rest)) is not None:
                return other.at_seed(seed)
            composed, choices = composer.compose(overrides)
            free = seed is not None and not SEED_IS_READ.search(as_text(OmegaConf.to_container(composed)))
            made = resolver.spec(composed, choices)
            if follows_spectrum(made.config.schedule):
                refuse_given(made.config.optimizer, overrides)
            known[rest] = made if free else None
            return made

        def make(jobs: Sequence[Sequence[str]]) -> list[RunSpec]:
            specs = []
            for overrides in jobs:
                try:
                    specs.append(spec(overrides))
                except UserError as error:
                    said = with_origin(str(error), overrides, composer.folders[1:], composer.groups)
                    if len(jobs) > 1:
                        said = f"{said} (in the run '{' '.join(overrides)}')"
                    if said == str(error):
                        raise
                    raise UserError(said) from error
            return specs

        yield make


def unread_scales(jobs: Sequence[Sequence[str]], config_dirs: Sequence[str] = ()) -> list[str]:
    """Return the time scales that runs are given and that no setting of any of them reads, each as it was written.

    So is timing.ramp with a schedule that has no warm-up. Runs of several optimizers may share what some of them read.
    """
    unread: dict[str, bool] = {}
    texts: dict[tuple[str, ...], str] = {}  # by the words that may decide what is read
    with composing(config_dirs) as composer:
        followed = {*composer.groups, *FOLLOWS.values()}
        for overrides in jobs:
            given = [word for word in overrides if key_of(word) in FOLLOWS]
            if any(unread.get(word, True) for word in given):
                deciding = tuple(w for w in overrides if key_of(w) in followed or "${" in w)
                if deciding not in texts:
                    texts[deciding] = as_text(OmegaConf.to_container(composer.compose(overrides)[0]))
                for word in given:
                    is_read = re.search(rf"\$\{{[^}}]*\b{re.escape(key_of(word))}\b", texts[deciding])
                    unread[word] = unread.get(word, True) and not is_read
    return [word for word, alone in unread.items() if alone]


def without_seed(overrides: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Return the overrides without the seed, and the seed, None unless it is set once to a plain whole number."""
    seeds = [word for word in overrides if word.startswith("seed=")]
    value = seeds[0].removeprefix("seed=") if len(seeds) == 1 else ""
    if not (value.isascii() and value.isdigit() and len(value) < 309 and str(int(value)) == value):
        return tuple(overrides), None
    return tuple(word for word in overrides if word is not seeds[0]), int(value)
