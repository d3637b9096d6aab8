"""Which weights transformers' Trainer and accelerate evaluate, save and go on from, as the guide says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neumann.optim import NesterovInner, Neumann, at, evaluating
from tests.support.markdown_pages import ROOT, run_page
from tests.support.optimizer_problems import copies, same_bits

pytestmark = pytest.mark.medium

GENERATOR = torch.Generator().manual_seed(0)
EXAMPLES = [
    {"x": torch.randn(4, generator=GENERATOR), "labels": torch.randn(1, generator=GENERATOR)} for _ in range(24)
]
KINDS = {
    "neumann": lambda params: Neumann(params, lr=0.05),  # both points are one after its first step, a reset
    "inner": lambda params: NesterovInner(params, lr=0.05),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.training:
            self.seen.append(self.body[0].weight.detach().clone())
        found = self.body(x)
        return {"loss": (found - labels).square().mean(), "logits": found}


def loaded(folder: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    model = Model()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return copies([*model.parameters()])


class Training:
    """A Trainer of three steps an epoch, with the weights of both points after each step."""

    def __init__(self, folder: Path, kind: str, *, ours: bool, stop_after: int | None = None, **arguments: Any) -> None:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        from neumann.optim.transformers import SaveAtEvalPoint

        steps = self.steps = {}

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, model, optimizer, **_):
                for point in ("held", "base"):
                    with at(optimizer, point if kind != "adam" else "held"):
                        steps[state.global_step, point] = copies([*model.parameters()])

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                control.should_training_stop = state.global_step == stop_after

        quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8}
        self.folder, self.model = folder, Model()
        self.trainer = Trainer(
            self.model,
            TrainingArguments(str(folder), **{**quiet, "num_train_epochs": 2, "max_grad_norm": 0.0, **arguments}),
            train_dataset=EXAMPLES,
            eval_dataset=EXAMPLES[:8],
            optimizers=(KINDS[kind](self.model.parameters()), None),
            callbacks=[Look(), *([SaveAtEvalPoint()] if ours else []), *([Stop()] if stop_after else [])],
        )

    def saved(self, step: int) -> str:
        """The point at which the checkpoint of ``step`` is; "both" where the two are one."""
        weights = loaded(self.folder / f"checkpoint-{step}")
        points = [point for point in ("held", "base") if same_bits(weights, self.steps[step, point])]
        return points[0] if len(points) == 1 else "both" if points else "none"


@pytest.mark.parametrize("kind", ["neumann", "inner"])
def test_what_the_trainer_saves_by_itself(kind: str, tmp_path: Path) -> None:
    each = Training(
        tmp_path, kind, ours=False, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=2
    )
    each.trainer.train()
    assert [each.saved(step) for step in (2, 4, 6)] == ["held", "held", "base"]
    assert torch.equal(each.model.seen[0], each.steps[3, "base"][0])
    unevaluated = Training(tmp_path / "end", kind, ours=False, save_strategy="epoch")
    unevaluated.trainer.train()
    assert same_bits([*unevaluated.model.parameters()], unevaluated.steps[6, "held"])


@pytest.mark.parametrize("kind", ["neumann", "inner", "adam"])
def test_with_the_callback_every_checkpoint_is_the_answer_and_resumes_to_the_same_bits(
    kind: str, tmp_path: Path
) -> None:
    arguments = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = Training(tmp_path / "whole", kind, ours=True, **arguments)
    whole.trainer.train()
    point = "both" if kind == "adam" else "base"
    assert [whole.saved(step) for step in (2, 4, 6)] == [point] * 3
    assert torch.equal(whole.model.seen[0], whole.steps[3, "base"][0])
    assert same_bits([*whole.model.parameters()], whole.steps[6, "base"])
    whole.trainer.save_model(str(tmp_path / "by hand"))
    assert same_bits(loaded(tmp_path / "by hand"), whole.steps[6, "base"])
    resumed = Training(tmp_path / "resumed", kind, ours=True, **arguments)
    resumed.trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert min(resumed.steps) == (3, "base")
    for step in (3, 6):
        assert same_bits(resumed.steps[step, "held"], whole.steps[step, "held"])
    untouched = Training(tmp_path / "untouched", kind, ours=False, save_strategy="no")
    untouched.trainer.train()
    assert same_bits(untouched.steps[6, "held"], whole.steps[6, "held"])


@pytest.mark.parametrize("ours", [True, False])
def test_the_best_checkpoint_is_evaluated_as_it_is(ours: bool, tmp_path: Path) -> None:
    """The training stops between two evaluations, so without the callback `evaluate()` displaces the loaded weights."""
    arguments = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    each = Training(tmp_path, "neumann", ours=ours, stop_after=5, load_best_model_at_end=True, **arguments)
    each.trainer.train()
    assert Path(each.trainer.state.best_model_checkpoint).name == "checkpoint-3"
    best = each.steps[3, "base"]
    assert same_bits([*each.model.parameters()], best)
    each.trainer.evaluate()
    assert same_bits([*each.model.parameters()], best) == ours
    assert torch.equal(each.model.seen[-1], best[0]) == ours


def test_accumulated_gradients_change_nothing(tmp_path: Path) -> None:
    arguments = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    judged = Training(tmp_path / "judged", "neumann", ours=True, save_steps=1, **arguments)
    plain = Training(tmp_path / "plain", "neumann", ours=False, gradient_accumulation_steps=2, save_strategy="no")
    for each in (judged, plain):
        each.trainer.train()
    assert [judged.saved(step) for step in (2, 3, 4)] == ["base"] * 3
    assert same_bits(judged.steps[4, "held"], plain.steps[4, "held"])


def test_clipping_and_what_the_trainer_cannot_move_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"max_grad_norm=1\.0\), 1\.0 where none is given, would break the method.*pass"
    ):
        Training(tmp_path, "neumann", ours=True, max_grad_norm=1.0).trainer.train()
    with pytest.raises(ValueError, match=r"cannot evaluate SGD at its eval point.*NesterovInner has them"):
        Training(tmp_path, "nesterov", ours=True).trainer.train()
    Training(tmp_path, "adam", ours=True, max_grad_norm=1.0, max_steps=1, save_strategy="no").trainer.train()


def accelerated() -> tuple[Any, nn.Module, Any]:
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), Model()
    return accelerator, *accelerator.prepare(model, KINDS["neumann"](model.parameters()))


def steps(model: nn.Module, optimizer: Any, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        model(*(torch.stack([each[key] for each in EXAMPLES[number::4]]) for key in ("x", "labels")))["loss"].backward()
        optimizer.step()


@pytest.mark.parametrize("within", [True, False])
def test_accelerates_state_goes_on_to_the_same_bits(within: bool, tmp_path: Path) -> None:
    accelerator, model, optimizer = accelerated()
    steps(model, optimizer, range(5))
    held = copies([*model.parameters()])
    with evaluating(optimizer):
        base = copies([*model.parameters()])
        accelerator.save_model(model, tmp_path / "answer")
        if within:
            accelerator.save_state(tmp_path / "state")
    if not within:
        accelerator.save_state(tmp_path / "state")
    assert same_bits(loaded(tmp_path / "answer"), base)
    assert same_bits(loaded(tmp_path / "state"), base if within else held)
    steps(model, optimizer, range(5, 10))
    again, resumed, other = accelerated()
    again.load_state(tmp_path / "state")
    if within:
        with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) before training goes on"):
            steps(resumed, other, range(5, 6))
        other.train()
    assert same_bits([*resumed.parameters()], held)
    steps(resumed, other, range(5, 10))
    assert same_bits([*resumed.parameters()], [*model.parameters()])


def test_the_guide() -> None:
    torch.manual_seed(0)
    done = run_page(ROOT / "docs" / "how-to" / "transformers.md")
    accuracies = [float(found) for found in re.findall(r"([\d.]+)%", done.out)]
    assert len(accuracies) == 4
    assert min(accuracies[0], accuracies[-1]) > 85
    trainer = done.names["trainer"]
    best = Path(trainer.state.best_model_checkpoint) / "model.safetensors"
    assert best.read_bytes() == Path("answer/model.safetensors").read_bytes()
    with evaluating(done.names["optimizer"]):
        (file,) = Path("answer-by-accelerate").glob("*.safetensors")
        from safetensors.torch import load_file

        model = done.names["model"].state_dict()
        assert all(torch.equal(value, model[name]) for name, value in load_file(file).items())
        assert not torch.equal(load_file("resume/model.safetensors")["body.4.weight"], model["body.4.weight"])
