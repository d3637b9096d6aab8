"""Cost of the framework per step: `neumann train` against a hand-written loop, in turns.

    python benchmarks/training_loop.py [--rounds 5] [--epochs 4] [--optimizer sgd]

Both train the small network on the digits at batch 32 from the same seed, over the same batches. The ratio is the time
of the hand-written loop divided by ours, so 1.00 means that the framework costs nothing. Times are of training alone,
without evaluation; every round runs both.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time

import torch
from rich.console import Console
from torch.nn import functional

from neumann.config import RunSpec, make_spec
from neumann.data.module import build as build_data
from neumann.models.classifiers import build_model
from neumann.seeds import derive
from neumann.training.instantiate import build_schedule
from neumann.training.optimizers import build_optimizer
from neumann.training.rate_schedules import RateSchedule
from neumann.training.run import run


def by_hand(spec: RunSpec) -> float:
    """Return the seconds of training in the shortest loop that trains the same network over the same batches."""
    config = spec.config
    data = build_data(config.data, spec.facts, batch_size=config.batch.size, seed=config.seed)
    torch.manual_seed(derive(config.seed, "initialisation"))
    model = build_model(
        config.model.name, {}, in_chans=data.in_chans, num_classes=data.num_classes, image_size=data.image_size
    )
    optimizer = build_optimizer(model, config.optimizer, config.recipe.weight_decay_filter)
    RateSchedule(optimizer, build_schedule(config.schedule))
    batches = data.train_dataloader()
    start = time.perf_counter()
    for epoch in range(int(config.trainer.max_epochs)):
        batches.set_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return time.perf_counter() - start


def ours(spec: RunSpec) -> float:
    """Return the seconds of training by `neumann train`, as its result.json has them."""
    return float(run(spec, Console(file=io.StringIO()))["train_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    ratios = []
    for number in range(words.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            spec = make_spec(
                [
                    f"optimizer={words.optimizer}",
                    f"trainer.max_epochs={words.epochs}",
                    f"trainer.check_val_every_n_epoch={words.epochs}",
                    f"output={folder}",
                    "logger=none",
                    "checkpoint=none",
                ]
            )
            pair = (by_hand(spec), ours(spec)) if number % 2 else (ours(spec), by_hand(spec))[::-1]
        if number == 0:
            continue  # the first round warms both up
        ratios.append(pair[0] / pair[1])
        steps = spec.config.derived.total_steps
        print(f"round {number}: by hand {1e3 * pair[0] / steps:.3f} ms a step, ours {1e3 * pair[1] / steps:.3f} ms")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)}"
    print(f"speed of ours relative to the hand-written loop: median {statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
