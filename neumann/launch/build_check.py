"""Check of a launch before its first run: each distinct configuration is built once, in a child of the fork server.

A run's own process builds its parts when its turn comes. Without this check a wrong value in a list would be found
after the runs before it have trained for hours. This module never imports torch.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from neumann.config import RunSpec
from neumann.errors import UserError
from neumann.launch.fork_server import ForkServer, without_main
from neumann.launch.process_pool import TICK_S
from neumann.launch.run_main import ProcessEnvironment
from neumann.processes.ranks import world_size
from neumann.processes.signals import STOP_SIGNALS
from neumann.visible_gpus import variables_for

BUILT_OF = ("model", "optimizer", "schedule", "recipe", "trainer", "batch")  # sections of the configuration


class BuildCheck:
    """Builds configurations that were not built before, and refuses the runs that cannot be built.

    server   makes the process in which they are built
    gpus     of the launch, as CUDA_VISIBLE_DEVICES names them; where empty, those of this process
    here     whether this machine trains the runs, so that it must have their devices
    """

    def __init__(self, server: ForkServer, gpus: Sequence[str] = (), *, here: bool = True) -> None:
        self._server, self._gpus, self._here = server, list(gpus), here
        self._built: set[str] = set()

    def __call__(
        self, specs: Sequence[RunSpec], label: Callable[[RunSpec], str], proceed: Callable[[], bool] = lambda: True
    ) -> None:
        """Raise UserError where one of ``specs`` has a model, optimizer or schedule that cannot be built.

        Raises it also where the server cannot start.

        specs     the runs
        label     says what a run is called in the message
        proceed   is called a few times a second; where it returns False the check ends without an answer
        """
        fresh: dict[str, list[RunSpec]] = {}
        for spec in specs:
            if (key := _configuration(spec)) not in self._built:
                fresh.setdefault(key, []).append(spec)
        if not fresh:
            return
        self._server.warm_up()
        while not self._server.is_warm(TICK_S):
            if not proceed():
                return
        wrong = self._answers([runs[0] for runs in fresh.values()], proceed)
        refused = [(runs, why) for runs, why in zip(fresh.values(), wrong, strict=True) if why is not None]
        if refused:
            count = sum(len(runs) for runs, _ in refused)
            named = [(label(runs[0]), why) for runs, why in refused]
            those = f"{count} of {len(specs)} runs cannot be trained, so none was started: " if len(specs) > 1 else ""
            several = len(specs) > 1
            lines = [f"{name}: {why.removeprefix(f'{name}: ')}" if several else why for name, why in named]
            raise UserError(those + "\n".join(lines[:3] + ([f"and {len(lines) - 3} more"] if lines[3:] else [])))
        self._built |= set(fresh)

    def _answers(self, specs: list[RunSpec], proceed: Callable[[], bool]) -> list[str | None]:
        """Return the child's answers; all None where it gave none, as the runs themselves will tell then."""
        context = multiprocessing.get_context("forkserver")
        pipe, answer = context.Pipe(duplex=False)
        path = [os.path.abspath(folder) for folder in sys.path]
        variables = dict(os.environ) | (variables_for(self._gpus) if self._gpus else {})
        environment = ProcessEnvironment(variables, os.getcwd(), path, 1, os.devnull)
        with without_main():
            child = context.Process(target=_build, args=(specs, environment, answer, self._here), daemon=True)
            child.start()
        answer.close()
        try:
            while not pipe.poll(TICK_S):
                if not proceed():
                    break
            else:
                said: list[str | None] = pipe.recv()
                return said
        except (EOFError, OSError):
            pass
        finally:
            child.kill()
            child.join()
            pipe.close()
        return [None] * len(specs)


def _configuration(spec: RunSpec) -> str:
    """Return what the build of a run without its data depends on."""
    sections, facts = spec.as_dict(), spec.facts
    return json.dumps(
        [
            [sections[name] for name in BUILT_OF],
            [facts.channels, facts.num_classes, facts.image_size, world_size(spec)],
        ],
        default=str,
        sort_keys=True,
    )


def _build(specs: list[RunSpec], environment: ProcessEnvironment, answer: Connection, here: bool) -> None:
    """Send what is wrong with each of ``specs``; the main function of the child."""
    environment.enter()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    from neumann.training.build_check import wrong_settings

    answer.send(wrong_settings(specs, here=here))
