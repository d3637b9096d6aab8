"""Training of one run: open its session with the store, build its parts, begin an attempt and train it.

Rank 0 decides and writes; the other ranks of a run follow it, and an error that stops one before training stops all.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import socket
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from rich.console import Console

from neumann.config import RunSpec
from neumann.cores import cores
from neumann.errors import UserError
from neumann.freed_memory import give_back_freed_memory, keep_freed_memory
from neumann.processes.ranks import RankPlace, world_size
from neumann.store.session import Session, session
from neumann.training.attempt import Attempt
from neumann.training.checkpoints import FORMAT, decode
from neumann.training.distributed import RankGroup, joined
from neumann.training.mirror import Mirror
from neumann.training.parts import accelerator_of, build_parts


def run(
    spec: RunSpec,
    console: Console | None = None,
    *,
    threads: int | None = None,
    ranks: RankPlace | None = None,
    listener: socket.socket | None = None,
    closing: ExitStack | None = None,
) -> dict[str, Any]:
    """Train ``spec`` to its end and return the content of result.json; a run that is over is returned at once.

    Args:
        spec: the run.
        console: where rank 0 shows progress; left out, the terminal.
        threads: torch's threads on the CPU; left out, one for each core that this process may use. A run that goes on
            keeps the number it began with.
        ranks: this process's place among those that train the run together, which all call this function.
        listener: rank 0's listening socket, see `neumann.training.distributed.joined`.
        closing: its close waits for the W&B mirror after the run is over; left out, this function waits.

    Raises:
        UserError: the configuration is wrong, and nothing is left behind; or another process trains the run (Claimed).
        Interrupted: a signal stopped the run after a step.
        KeyboardInterrupt: a signal came before the first step.
        Exception: anything else; the run is then ``failed``, with the traceback in error.txt.
    """
    quieten()
    keep_freed_memory()
    if threads is None and "OMP_NUM_THREADS" not in os.environ:  # torch knows no container's quota
        threads = min(torch.get_num_threads(), cores())
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
    with ExitStack() as stack:
        held = group.on_main(lambda: stack.enter_context(session(spec, decode, FORMAT)))
        result, state = group.broadcast((held.result, held.state) if held else (None, None))
        if result is not None:
            return result
        if state is not None:
            torch.set_num_threads(state["threads"])  # another number would round otherwise
        parts = group.everywhere(lambda: build_parts(spec, group))
        give_back_freed_memory()  # of images that were decoded, and of a checkpoint
        places = group.gather((platform.node(), _device_name(spec)))
        mirror = group.on_main(lambda: _begin(spec, held, places))
        if mirror is not None:
            closing.callback(mirror.close)
        follower = group.broadcast(held.follower() if held else None)
        files = held or follower
        assert files is not None
        return Attempt(spec, files, parts, console, group, mirror).fit(state)


def _begin(spec: RunSpec, held: Session | None, places: list[tuple[str, str]]) -> Mirror | None:
    """Begin an attempt on rank 0 and return its mirror, where it has one."""
    assert held is not None
    held.begin(_hardware(places))
    return Mirror(spec, held.path, held.record, held.attempt) if spec.config.logger.kind == "wandb" else None


def _hardware(places: list[tuple[str, str]]) -> dict[str, Any]:
    """Return training's part of the provenance record; ``places`` are (host, device) of every rank."""
    return {
        "device": places[0][1],
        "ranks": [{"host": host, "device": device} for host, device in places],
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _device_name(spec: RunSpec) -> str:
    return torch.cuda.get_device_name() if accelerator_of(spec) == "gpu" else "cpu"


def quieten() -> None:
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
