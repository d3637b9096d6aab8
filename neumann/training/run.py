"""How does a specification become a result? Claimed, built, recorded, and handed to an attempt: the story of one run.

Rank 0 decides and writes; the other ranks of a run follow it, and what stops one before training stops all.
"""

from __future__ import annotations

import gc
import logging
import platform
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from rich.console import Console

from neumann.config import RunSpec
from neumann.errors import UserError
from neumann.processes.ranks import RankPlace, world_size
from neumann.seeds import AXES, derive
from neumann.store import RunFolder, find
from neumann.store.files import read_json, replace_file, write_json
from neumann.store.folder import remove_refused
from neumann.store.lookup import finished_result
from neumann.store.provenance import provenance
from neumann.training.attempt import Attempt
from neumann.training.checkpoints import load_training_state
from neumann.training.distributed import RankGroup, joined
from neumann.training.mirror import Mirror
from neumann.training.parts import accelerator_of, build_parts

T = TypeVar("T")


def run(
    spec: RunSpec,
    console: Console | None = None,
    *,
    threads: int | None = None,
    ranks: RankPlace | None = None,
    listener: socket.socket | None = None,
    closing: ExitStack | None = None,
) -> dict[str, Any]:
    """Train ``spec`` to its end, or return its result at once where it is over, and return the content of result.json.

    ``threads`` are torch's on the CPU, by default all cores. ``ranks`` is this process's place among those that train
    the run together, which all call this function; ``listener`` see `neumann.training.distributed.joined`. ``closing``
    is handed what may be waited for after the run is over, its mirror; without it, that is waited for here.

    Raises UserError where the configuration is wrong (nothing is left behind then) and Interrupted where a signal
    stopped the run. Any other exception leaves the run as ``failed`` with its traceback in error.txt.
    """
    _quieten()
    if threads is not None:
        torch.set_num_threads(threads)
    if ranks is not None:
        ranks.check(spec)
    elif world_size(spec) > 1:
        raise UserError(
            f"trainer.devices={spec.config.trainer.devices}, trainer.num_nodes={spec.config.trainer.num_nodes}: such a "
            "run takes a process for each; neumann train starts them, and so do torchrun and srun"
        )
    with ExitStack() as here, joined(ranks, cuda=accelerator_of(spec) == "gpu", listener=listener) as group:
        shown = (console or Console()) if group.is_main else Console(quiet=True)
        result = _train(spec, shown, group, here if closing is None else closing)
        if torch.cuda.is_initialized():  # the next run takes this GPU while the mirror of this one still ends
            gc.collect()
            torch.cuda.empty_cache()
        return result


def _train(spec: RunSpec, console: Console, group: RankGroup, closing: ExitStack) -> dict[str, Any]:
    folder = find(spec)
    with _held(folder, group):
        fresh = not folder.config.exists()
        try:
            result, state = group.broadcast(_on_main(group, lambda: _found(folder, spec)) or (None, None))
            if result is not None:
                return result
            if state is not None:
                torch.set_num_threads(state["threads"])  # another number would round otherwise
            parts = _everywhere(group, lambda: build_parts(spec, group))
            places = group.gather((platform.node(), _device(spec)))
            begun = _on_main(group, lambda: _begin(spec, folder, state, places))
        except (UserError, KeyboardInterrupt) as stop:
            if group.is_main and fresh:  # nothing was trained, so nothing is left
                remove_refused(folder)
            elif group.is_main and isinstance(stop, KeyboardInterrupt):
                folder.set_status("interrupted", attempt=folder.status().get("attempt", 0))
            raise
        mirror = begun[1] if begun else None
        if mirror is not None:
            closing.callback(mirror.close)
        number, measured = group.broadcast((begun[0], begun[2]) if begun else (0, []))
        return Attempt(spec, folder, parts, console, group, number, mirror, measured).fit(state)


@contextmanager
def _held(folder: RunFolder, group: RankGroup) -> Iterator[None]:
    """Claim the folder for all ranks; where rank 0 cannot, none goes on."""
    with ExitStack() as held:
        _on_main(group, lambda: held.enter_context(folder.claim()))
        yield


def _found(folder: RunFolder, spec: RunSpec) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the run's result where it is over, and the state that it goes on from where there is one."""
    result = finished_result(spec)
    if result is not None or spec.config.checkpoint.keep == "none":
        return result, None
    return None, load_training_state(folder.last, spec.signature)


def _begin(
    spec: RunSpec, folder: RunFolder, state: dict[str, Any] | None, places: list[tuple[str, str]]
) -> tuple[int, Mirror | None, list[dict[str, Any]]]:
    """Record the attempt that begins; return its number, its mirror, and what was measured before."""
    for half in folder.path.glob(".*.tmp"):  # of an attempt that was killed while it wrote: the claim is ours
        half.unlink()
    attempt = int(folder.status().get("attempt", 0)) + 1
    record = _record(spec, folder, attempt, places)
    measured = folder.rewind_measurements(state["progress"]["step"] if state else 0)
    folder.error.unlink(missing_ok=True)
    mirror = Mirror(spec, folder.path, record, attempt) if spec.config.logger.kind == "wandb" else None
    return attempt, mirror, measured


def _everywhere(group: RankGroup, work: Callable[[], T]) -> T:
    """Return what ``work`` returns on this rank; where it refuses on any, all raise the first one's UserError."""
    value: T | None = None
    error: UserError | None = None
    try:
        value = work()
    except UserError as refused:
        error = refused
    first = next((e for e in group.gather(error) if e is not None), None)
    if first is not None:
        raise first
    return value  # type: ignore[return-value]


def _on_main(group: RankGroup, work: Callable[[], T]) -> T | None:
    """Do ``work`` on rank 0; where it refuses, all raise its UserError. The other ranks get None."""
    return _everywhere(group, lambda: work() if group.is_main else None)


def _device(spec: RunSpec) -> str:
    return torch.cuda.get_device_name() if accelerator_of(spec) == "gpu" else "cpu"


def _record(spec: RunSpec, folder: RunFolder, attempt: int, places: list[tuple[str, str]]) -> Mapping[str, Any]:
    """Write the configuration and where this attempt comes from; return the latter."""
    first_line_ = f"# The resolved configuration of {spec.folder.name}; signed.json holds what its signature covers.\n"
    replace_file(folder.config, (first_line_ + OmegaConf.to_yaml(OmegaConf.create(spec.as_dict()))).encode())
    write_json(folder.signed, spec.signed())
    cuda = torch.cuda.is_available()
    record = {
        "attempt": attempt,
        "time": time.time(),
        **provenance(),
        "device": places[0][1],
        "ranks": [{"host": host, "device": device} for host, device in places],
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "data": spec.facts.as_record(),
        "seeds": {axis: derive(spec.config.seed, axis) for axis in AXES},
        "choices": spec.choices,
    }
    earlier = read_json(folder.provenance)
    attempts = earlier.get("attempts", []) if isinstance(earlier, dict) else []
    write_json(folder.provenance, {"attempts": [*attempts, record]})
    return record


def _quieten() -> None:
    """Silence Lightning's notices on hardware and its tips: the run says what matters itself."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*You defined a `validation_step` but have no `val_dataloader`.*",  # evaluation.py evaluates
        ".*treespec, LeafSpec.*",  # Lightning's own use of a deprecated check
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*srun. command is available.*",
    ):
        warnings.filterwarnings("ignore", pattern)
