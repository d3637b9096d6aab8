"""Real groups of ranks: processes that are forked, so that torch is not imported again, and talk over gloo."""

from __future__ import annotations

import atexit
import datetime
import functools
import io
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """Return what ``work(*arguments)`` returns on each of ``size`` ranks of a process group.

    Raises:
        AssertionError: it has raised on one of them, or one does not answer.
    """
    server = _server()
    server.send((work, arguments, size))
    assert server.poll(90 * size + 60), "the ranks do not answer"  # longer than it waits itself
    answers = torch.load(io.BytesIO(server.recv_bytes()), weights_only=False)
    for rank, (fine, content) in enumerate(answers):
        assert fine, f"on rank {rank}: {content}"
    return [content for _, content in answers]


@functools.cache
def _server() -> Connection:
    """Start the process that ranks are forked from: one where autograd has never run, else none may run in its forks."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs,)).start()
    theirs.close()
    atexit.register(ours.close)  # which ends it, before multiprocessing's own handler waits for it
    return ours


def _serve(requests: Connection) -> None:
    while True:
        try:
            work, arguments, size = requests.recv()
        except EOFError:
            return
        content = io.BytesIO()
        torch.save(_forked(work, arguments, size), content)
        requests.send_bytes(content.getvalue())


def _forked(work: Callable[..., Any], arguments: tuple[Any, ...], size: int) -> list[tuple[bool, Any]]:
    """Return what each rank says: whether it went well, and its answer or its traceback."""
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
            for pipe in pipes:
                if not pipe.poll(90):
                    return [*answers, (False, "it does not answer")]
                answers.append(torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False))
                if not answers[-1][0]:  # the others may wait for it
                    return answers
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
