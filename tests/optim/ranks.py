"""Real groups of ranks: processes that are forked, so that torch is not imported again, and talk over gloo."""

from __future__ import annotations

import datetime
import io
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.tensor


def on_ranks(work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """Return what ``work(*arguments)`` returns on each of ``size`` ranks of a process group.

    Raises:
        AssertionError: it has raised on one of them, or one does not answer.
    """
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, arguments, rank, size, folder, theirs))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        answers = []
        try:
            for rank, pipe in enumerate(pipes):
                assert pipe.poll(90), f"rank {rank} does not answer"
                fine, content = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
                assert fine, f"on rank {rank}: {content}"
                answers.append(content)
        finally:
            for process in processes:
                process.join(0 if len(answers) < size else 30)
                if process.is_alive():
                    process.kill()
                    process.join()
    return answers


def _work(work: Callable[..., Any], arguments: tuple[Any, ...], rank: int, size: int, folder: str, answer: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group(
            "gloo", f"file://{folder}/store", rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60)
        )
        said: Any = True, work(*arguments)
    except BaseException:  # noqa: BLE001 - the test shows it
        said = False, traceback.format_exc()
    content = io.BytesIO()
    torch.save(said, content)
    answer.send_bytes(content.getvalue())
    answer.close()
    os._exit(0)  # not through pytest's own exit handlers
