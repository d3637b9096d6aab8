"""Real groups of ranks for tests: processes that gather as those of our launcher do, over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from neumann.processes.ranks import RankPlace


def together(
    work: Callable[..., Any], size: int, *arguments: Any, joined_already: bool = True, patience: float = 120
) -> list[Any]:
    """Return what ``work(group, *arguments)`` returns on each of ``size`` ranks, or the exception it raised there.

    Where they have not ``joined_already``, it is ``work(ranks, listener, *arguments)`` that does.

    The ranks are forked, so that a test's monkeypatching holds in them too. Each answers within ``patience`` seconds.
    """
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            ranks = RankPlace(rank, size, rank, 0, "127.0.0.1", port, "neumann")
            process = context.Process(
                target=_work, args=(work, ranks, listener if rank == 0 else None, theirs, arguments, joined_already)
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
    answers = []
    for pipe, process in zip(pipes, processes, strict=True):
        assert pipe.poll(patience), "a rank does not answer"
        answers.append(pipe.recv())
        process.join(30)
    return answers


def _work(
    work: Callable[..., Any],
    ranks: RankPlace,
    listener: socket.socket | None,
    answer: Connection,
    arguments: Sequence[Any],
    joined_already: bool,
) -> None:
    import torch

    from neumann.training.distributed import joined

    torch.set_num_threads(1)
    try:
        if joined_already:
            with joined(ranks, cuda=False, listener=listener) as group:
                said: Any = work(group, *arguments)
        else:
            said = work(ranks, listener, *arguments)
    except Exception as error:  # noqa: BLE001 - it is what the test looks at
        said = error
    answer.send(said)
    answer.close()
    os._exit(0)  # not through pytest's own exit handlers
