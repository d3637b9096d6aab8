"""The private names of other projects that neumann rests on, outside `neumann.optim`, which keeps its own.

Each function hides the private names of one purpose, and says in which version they were read and why there is no
public way. `tests/test_compat.py` fails with one clear sentence when a new version moves one, and when another file of
neumann reaches for a private name. Everything is imported within the functions, so importing this module imports
neither torch nor Hydra.
"""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from hydra.plugins.config_source import ConfigSource
    from omegaconf import DictConfig, ListConfig
    from pytorch_lightning import Trainer
    from torch.optim import Optimizer

# Hydra -------------------------------------------------------------------------------------------------------------


@contextmanager
def hydra_over(source: type[ConfigSource], folders: Sequence[Path]) -> Iterator[None]:
    """Initialise Hydra with ``folders`` as its search path, the first of a name counts, each read by ``source``.

    Hydra 1.3.8: create_config_search_path and Hydra.create_main_hydra2, as hydra.initialize_config_dir calls them. That
    function reads files by Hydra's own source alone, and a further folder would have to be written as an override,
    whose grammar takes few paths.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins

    Plugins.instance().register(source)
    version.setbase("1.3")
    path = create_config_search_path(None)
    for folder in folders:
        path.prepend("main", f"{source.scheme()}://{folder}", anchor="schema")
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("neumann", path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def set_values(overrides: Sequence[Override], config: DictConfig) -> None:
    """Set values in a composed configuration exactly as Hydra sets those of a command line.

    Hydra 1.3.8: ConfigLoaderImpl._apply_overrides_to_config. `hydra.compose` would read and merge the files again for
    every run of a sweep.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)


def as_override(value: Any) -> str:
    """Return ``value`` in the syntax of overrides, so that Hydra's parser reads the same value again.

    Hydra 1.3.8: Override._get_value_element_as_str, which quotes and nests as the parser expects.
    """
    from hydra.core.override_parser.types import Override

    return Override._get_value_element_as_str(value)


# OmegaConf ---------------------------------------------------------------------------------------------------------
# OmegaConf 2.3.1 keeps nodes private: indexing a DictConfig resolves interpolations, and a missing value raises.


def keep_parsed() -> None:
    """Have OmegaConf parse a text with interpolations once in this process, not whenever it is resolved.

    OmegaConf 2.3.1: omegaconf.base.parse, whose tree is read by whoever resolves it, and not changed. It takes half a
    millisecond, of which a run's configuration needs sixteen, and the runs of a study share their texts.
    """
    base: Any = import_module("omegaconf.base")
    if not hasattr(base.parse, "cache_info"):
        base.parse = lru_cache(maxsize=4096)(base.parse)


def child(node: DictConfig | ListConfig, key: Any) -> Any:
    """Return the node at ``key``, neither resolved nor raised where it is missing. OmegaConf 2.3.1: _get_node."""
    return node._get_node(key)


def is_missing(node: Any) -> bool:
    """Return whether a node's value is still to be given (``???``). OmegaConf 2.3.1: Node._is_missing."""
    return bool(node._is_missing())


def is_null(node: Any) -> bool:
    """Return whether a node's value is null. OmegaConf 2.3.1: Node._is_none."""
    return bool(node._is_none())


def is_plain(node: Any) -> bool:
    """Return whether a node has a value of its own: not null, not missing, no interpolation.

    OmegaConf 2.3.1: Node._is_none, _is_missing and _is_interpolation.
    """
    return not (node._is_none() or node._is_missing() or node._is_interpolation())


def value_of(node: Any) -> Any:
    """Return the value in a node, unresolved. OmegaConf 2.3.1: Node._value."""
    return node._value()


# Lightning ---------------------------------------------------------------------------------------------------------


def leave_signals_to_us(trainer: Trainer) -> None:
    """Keep a trainer from handling SIGTERM.

    Lightning 2.6.6: Trainer._signal_connector.register_signal_handlers. The handler starts a collective from within the
    signal, possibly between two others, and no setting turns it off. Raises AttributeError where it has moved.
    """
    owner, name = trainer._signal_connector, "register_signal_handlers"
    if not callable(getattr(owner, name)):
        raise AttributeError(f"{type(owner).__name__}.{name} is not a method any more")
    setattr(owner, name, lambda: None)


# Python ------------------------------------------------------------------------------------------------------------


def long_options(parser: argparse.ArgumentParser) -> list[str]:
    """Return a parser's options that begin with two dashes. Python 3.11: ArgumentParser._actions."""
    return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]


def run_exit_functions() -> None:
    """Run what was registered with atexit: a child of a fork server ends without it.

    Python 3.11: atexit._run_exitfuncs. W&B's service is ended by one of these functions.
    """
    import atexit

    atexit._run_exitfuncs()


def wait_for_fork_server() -> None:
    """Have the running fork server make a child that does nothing, which it does once it has imported its modules.

    Python 3.11: multiprocessing.forkserver.connect_to_new_process and read_signed, and multiprocessing.spawn, which
    reads two pickles from a child's pipe and calls _bootstrap of the second. Raises OSError or EOFError where the
    server has ended.
    """
    from multiprocessing import forkserver

    ended, inbox = forkserver.connect_to_new_process([])
    with open(inbox, "wb") as pipe:
        pipe.write(pickle.dumps({"sys_path": sys.path}) + pickle.dumps(_Nothing()))
    for _ in ("its number", "its exit code"):
        forkserver.read_signed(ended)
    os.close(ended)


class _Nothing:
    """Process object that does nothing, for starting a child of the fork server."""

    def _bootstrap(self, parent_sentinel: int) -> int:
        return 0


def kill_fork_server() -> None:
    """Kill the running fork server, also while it imports and answers no request.

    Python 3.11: multiprocessing.forkserver._forkserver._forkserver_pid. The public way waits until it has imported.
    """
    from multiprocessing import forkserver

    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]


# W&B ---------------------------------------------------------------------------------------------------------------

# A setting of wandb.Settings whose prefix x_ marks it as experimental, read in wandb 0.31.0: the client then does not
# measure the machine.
NO_SYSTEM_METRICS = {"x_disable_stats": True}


def as_wandb_spec(report: Any) -> Any:
    """Return a W&B report as the model of what its server stores, which is not asked where no run set has a project.

    wandb-workspaces 0.4.13: Report._to_model. The public way, Report.save, sends it.
    """
    return report._to_model()


def from_wandb_spec(spec: Any) -> Any:
    """Return the W&B report that a model stands for.

    wandb-workspaces 0.4.13: Report._from_model, by which Report.from_url reads one from a server. It forgets the width.
    """
    from wandb_workspaces.reports import v2

    report = v2.Report._from_model(spec)
    report.width = spec.spec.width
    return report


# PyTorch -----------------------------------------------------------------------------------------------------------

# The module that a DataLoader's worker runs in, read in torch 2.15.0: torch imports it when the first worker starts.
TORCH_WORKER = "torch.utils.data._utils.worker"


def loss_scale_left(trainer: Trainer, optimizer: Optimizer) -> float:
    """Return what the gradients are still multiplied by just before a step: the scale of float16 training, else 1.

    torch 2.15: _step_supports_amp_scaling. Of an optimizer that has it set, GradScaler leaves the division to the step.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())
