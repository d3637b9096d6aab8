"""What is logged by optimizer step: exact, the same bits whatever the interval, and nothing that training notices."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from neumann.errors import Interrupted, UserError
from neumann.optim.momentum_and_resets import momentum
from neumann.store import RunFolder, find
from neumann.store.steps import read_lines
from neumann.training.checkpoints import encode
from neumann.training.distributed import RankGroup
from neumann.training.parts import build_parts
from neumann.training.step_lines import StepNorms, momentum_of
from neumann.training.stopping import Stop
from tests.support.quick_runs import Train, quick
from tests.training.test_accumulation import assert_equal, weights

NORMS = ("trainer.track_grad_norm=true", "trainer.track_update_norm=true")


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return read_lines(folder.path, folder.result())


@pytest.mark.medium
def test_lines_average_the_steps_between_and_change_nothing(train: Train) -> None:
    words = ("optimizer=neumann", "timing.burn_in=0.5")
    each, every = train(*words, "study=every", "trainer.log_every_n_steps=1", *NORMS)
    some, folder = train(*words, "study=some", "trainer.log_every_n_steps=10")
    none, without = train(*words, "study=none", "trainer.log_every_n_steps=0")
    assert each["signature"] == some["signature"] == none["signature"]
    assert_equal(weights(every), weights(without), buffers=True)
    assert all(torch.equal(weights(folder)[key], value) for key, value in weights(every).items())
    for one, other in zip(every.read_measurements(), without.read_measurements(), strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one["validation"] == other["validation"]
    assert not (without.path / "steps.jsonl").exists()
    assert "steps_digest" not in none
    singles = lines(every)
    assert [line["step"] for line in singles] == list(range(1, 37))
    assert [line["step"] for line in lines(folder)] == [10, 20, 30, 36]
    for before, line in pairwise([{"step": 0, "train_seconds": 0.0}, *lines(folder)]):
        between = singles[before["step"] : line["step"]]
        assert line["train_loss"] == pytest.approx(sum(one["train_loss"] for one in between) / len(between), rel=1e-12)
        last = between[-1]
        for key in ("epoch", "examples", "optimizer_step", "lr", "momentum"):
            assert line[key] == last[key]
        seconds = line["train_seconds"] - before["train_seconds"]
        assert line["examples_per_second"] == pytest.approx(64 * len(between) / seconds, rel=0.01)
        assert "grad_norm" not in line
    assert [line["examples"] for line in singles] == [64 * n for n in range(1, 37)]
    assert [line["momentum"] for line in singles] == [0.0] * 9 + [momentum(t, (0.5, 0.9)) for t in range(1, 28)]
    assert all(line["grad_norm"] > 0 for line in singles)
    assert singles[9]["update_norm"] == 0  # the first reset moves nothing


def test_the_first_look_is_at_the_last_step_of_a_short_run(train: Train) -> None:
    result, folder = train("optimizer=sgd", "trainer.max_epochs=1")
    (line,) = lines(folder)
    (measured,) = folder.read_measurements()
    assert (line["step"], line["lr"], line["train_loss"]) == (18, measured["lr"], measured["train_loss"])
    assert "momentum" not in line
    content = (folder.path / "steps.jsonl").read_text()
    (folder.path / "steps.jsonl").write_text(content.replace('"step": 18', '"step": 17'))
    with pytest.raises(UserError, match=r"steps.jsonl is not what the run logged: put back"):
        read_lines(folder.path, result)


def test_norms_are_those_of_a_loop_by_hand(train: Train) -> None:
    """Over accumulated micro-batches the gradient is the whole step's, in float64, to 1e-12."""
    words = ("trainer.precision=64-true", "batch.norm_size=8", "trainer.max_epochs=0.4", "optimizer=nesterov")
    words = (*words, "optimizer.weight_decay=0.01")
    _, folder = train(*words, "batch.max_per_device=16", "trainer.log_every_n_steps=3", *NORMS)
    parts = build_parts(quick(*words), RankGroup())
    model, stepper = parts.module.model, parts.module.configure_optimizers()
    expected = []
    for _, (images, labels) in zip(range(7), parts.data.train_dataloader(), strict=False):
        stepper.zero_grad()
        cross_entropy(model(images.double()), labels).backward()
        before = [p.detach().clone() for p in model.parameters()]
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        stepper.step()
        move = torch.cat([(p.detach() - w).flatten() for p, w in zip(model.parameters(), before, strict=True)])
        expected.append([float(gradient.norm()), float(move.norm())])
    got = {line["step"]: [line["grad_norm"], line["update_norm"]] for line in lines(folder)}
    assert list(got) == [3, 6, 7]
    for step, norms in got.items():
        assert norms == pytest.approx(expected[step - 1], rel=1e-12)


@pytest.mark.medium
@pytest.mark.parametrize("version", ["same", "earlier"])
def test_a_run_that_was_not_logged_before_is_from_where_it_goes_on(
    version: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval may be another in every attempt, and a checkpoint of an earlier version knows of no lines."""
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *words: Any) -> None:
        if words[-1] == 24:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
        original(self, *words)

    _, every = train("optimizer=sgd", "study=every", "trainer.log_every_n_steps=1")
    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted):
        train("optimizer=sgd", "trainer.log_every_n_steps=0")
    last = find(quick("optimizer=sgd")).last
    if version == "earlier":
        state = torch.load(last, weights_only=True)
        del state["steps"]
        state["progress"] = {key: value for key, value in state["progress"].items() if not key.startswith("line_")}
        last.write_bytes(encode(state))
    _, folder = train("optimizer=sgd", "trainer.log_every_n_steps=10")
    singles = [line["train_loss"] for line in lines(every)]
    found = {line["step"]: line for line in lines(folder)}
    assert list(found) == [30, 36]
    assert found[30]["train_loss"] == pytest.approx(sum(singles[25:30]) / 5, rel=1e-12)
    assert found[36]["train_loss"] == pytest.approx(sum(singles[30:36]) / 6, rel=1e-12)
    seconds = folder.read_measurements()[-1]["train_seconds"]
    assert all(line["examples_per_second"] >= 64 * 5 / seconds for line in found.values())


def test_a_run_that_diverges_keeps_its_lines(train: Train) -> None:
    words = ("optimizer=sgd", "optimizer.lr=1e38", "schedule=constant")
    result, folder = train(*words, "trainer.log_every_n_steps=5", *NORMS)
    apart, _ = train(*words, "study=apart", "trainer.log_every_n_steps=0")
    assert result["status"] == apart["status"] == "diverged"
    assert result["step"] == apart["step"] == 18  # found where it is looked for, not at a line
    found = lines(folder)
    assert [line["step"] for line in found] == [5, 10, 15, 18]
    assert [line["train_loss"] for line in found] == [None] * 4
    assert all(line["lr"] == 1e38 for line in found)


def test_a_ramp_is_told_of_the_optimizers_that_have_one() -> None:
    neumann = {"momentum": (0.5, 0.9), "momentum_unit": 2, "burn_in_steps": 3, "step": 3}
    assert momentum_of(neumann) == 0.0
    assert momentum_of({**neumann, "step": 30}) == momentum(27, (0.5, 0.9), 2)
    assert momentum_of({"momentum": 0.8, "burn_in_steps": 0, "step": 1}) == 0.8
    assert momentum_of({"momentum": 0.9, "lr": 1.0}) is None


def test_an_update_is_from_where_the_step_began_whatever_the_optimizer_tries_before() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    norms = StepNorms(gradient=False, update=True)
    norms.before_step(optimizer, 1.0)
    with torch.no_grad():
        weight.add_(100.0)  # as SAM asks for the gradients at a second point
    norms.before_step(optimizer, 1.0)
    with torch.no_grad():
        weight.copy_(torch.zeros(2))
    norms.after_step()
    assert norms.taken() == {"update_norm": 5.0}


@pytest.mark.parametrize("key", ["track_grad_norm", "track_update_norm"])
def test_norms_without_lines_are_refused(key: str) -> None:
    with pytest.raises(
        UserError, match=rf"trainer.{key}=true has nowhere to be written, .* trainer.log_every_n_steps=50"
    ):
        quick(f"trainer.{key}=true", "trainer.log_every_n_steps=0")


def test_the_checkpoint_has_the_lines(train: Train) -> None:
    _, folder = train("optimizer=sgd", "trainer.max_epochs=1", "checkpoint=last", "trainer.log_every_n_steps=6")
    state = torch.load(folder.last, weights_only=True)
    assert state["steps"] == (folder.path / "steps.jsonl").read_text()
    assert [json.loads(line)["step"] for line in state["steps"].splitlines()] == [6, 12, 18]
