"""A run with TwoLoopNeumann: every gradient is of the whole global batch, and all that holds for a run holds for it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from neumann.errors import UserError
from neumann.estimates.cost import counts_of
from neumann.estimates.recorded import costs
from neumann.models.classifiers import SmallCNN
from neumann.optim import TwoLoopNeumann
from neumann.store import find
from neumann.store.steps import read_lines
from neumann.training.build_check import wrong_settings
from neumann.training.classifier import Batch, ImageClassifier
from neumann.training.distributed import RankGroup
from neumann.training.parts import build_parts
from neumann.training.step_cost import model_cost, step_times
from neumann.training.stepping import SteppingClassifier, fit, make_trainer
from tests.support.quick_runs import Train, quick
from tests.support.rank_groups import together
from tests.training.test_accumulation import SHORT, assert_equal, on_two_ranks, weights

SETTINGS: dict[str, Any] = {
    "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def batches(count: int = 4, size: int = 8) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 1, 8, 8, generator=draw), torch.arange(size) % 5) for _ in range(count)]


def loader() -> DataLoader[Batch]:
    return DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]


def classifier(kind: type[ImageClassifier], **settings: Any) -> Any:
    torch.manual_seed(0)
    model = SmallCNN(num_classes=5, width=4, drop_rate=0.2)
    asked = {"lr_in": 0.2, "lr_out": 0.1, "inner_steps": 3, "mu": 0.9, **settings}
    return kind(model, lambda m: TwoLoopNeumann(m.parameters(), **asked))


def by_hand(model: SmallCNN, made: list[list[Batch]], inner_steps: int = 3) -> list[Tensor]:
    """Return the weights and buffers after a step on each list of micro-batches, as one writes the loop without help."""

    def gradient(step: list[Batch], stream: Tensor, buffers: dict[str, Tensor]) -> list[Tensor]:
        torch.set_rng_state(stream)
        for name, buffer in model.named_buffers():
            buffer.data.copy_(buffers[name])
        model.zero_grad()
        for images, labels in step:
            (cross_entropy(model(images), labels) / len(step)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for step in made:
        stream, buffers = torch.get_rng_state(), {name: b.clone() for name, b in model.named_buffers()}
        w = [p.detach().clone() for p in model.parameters()]
        m = [-g for g in gradient(step, stream, buffers)]
        after = torch.get_rng_state(), [b.clone() for b in model.buffers()]
        for _ in range(inner_steps):
            with torch.no_grad():
                for p, w_p, m_p in zip(model.parameters(), w, m, strict=True):
                    p.copy_(w_p + m_p * (0.9 * 0.2))
            m = [m_p * 0.9 - g for m_p, g in zip(m, gradient(step, stream, buffers), strict=True)]
        torch.set_rng_state(after[0])
        with torch.no_grad():
            for b, kept in zip(model.buffers(), after[1], strict=True):
                b.copy_(kept)
            for p, w_p, m_p in zip(model.parameters(), w, m, strict=True):
                p.copy_(w_p + m_p * 0.1)
    return [value.clone() for value in model.state_dict().values()]


class Seen:
    """Notes what is called after each micro-batch."""

    def __init__(self) -> None:
        self.losses: list[dict[str, Tensor]] = []
        self.gradients: list[int] = []

    def after(self, trainer: Any, module: Any, losses: dict[str, Tensor], batch: Batch, index: int) -> None:
        self.losses.append(losses)
        self.gradients.append(module.gradients)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_step_of_a_run_is_the_one_by_hand_to_the_bit(accumulation: int) -> None:
    module, seen = classifier(SteppingClassifier), Seen()
    made = batches()
    model = copy.deepcopy(module.model)
    torch.manual_seed(3)
    steps = [made[at : at + accumulation] for at in range(0, 4, accumulation)]
    expected = [*by_hand(model, steps), torch.get_rng_state()]
    torch.manual_seed(3)
    trainer = make_trainer({**SETTINGS, "accumulate_grad_batches": accumulation}, [])
    fit(trainer, module, made, after_batch=seen.after)
    found = [*module.model.state_dict().values(), torch.get_rng_state()]
    assert all(map(torch.equal, found, expected))
    assert [bool(losses) for losses in seen.losses] == [(at + 1) % accumulation == 0 for at in range(4)]
    assert module.gradients == 4


def test_lightnings_own_loop_takes_the_same_steps() -> None:
    ours, theirs = classifier(SteppingClassifier), classifier(ImageClassifier)
    torch.manual_seed(3)
    fit(pl.Trainer(**SETTINGS), ours, loader(), after_batch=Seen().after)
    torch.manual_seed(3)
    pl.Trainer(**SETTINGS).fit(theirs, train_dataloaders=loader())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    counted = [value for name, value in theirs.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {int(value) for value in counted} == {4}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_vit", {"drop_rate": 0.2, "drop_path_rate": 0.3, "attn_drop_rate": 0.2, "img_size": 32}),
        ("test_efficientnet", {"drop_rate": 0.2, "drop_path_rate": 0.3}),
    ],
)
def test_whatever_a_network_of_timms_draws_is_drawn_once(name: str, settings: dict[str, Any]) -> None:
    """At an inner rate of 0 all gradients are taken at the same weights, so they are the same bits."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **settings).double().train()
    images, labels, found = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.arange(4), []
    optimizer = TwoLoopNeumann(model.parameters(), 0.0, 0.1, 2, model=model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        return loss

    optimizer.step(closure)
    assert len(found) == 3
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    torch.manual_seed(1)
    closure()
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[-1], strict=True))


def test_what_lightnings_loop_cannot_give_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2\) gives TwoLoopNeumann a closure of the last"):
        pl.Trainer(**SETTINGS, accumulate_grad_batches=2).fit(classifier(ImageClassifier), loader())
    scaling = pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="float16's scaling of the loss passes none on"):
        pl.Trainer(**SETTINGS, plugins=[scaling]).fit(classifier(ImageClassifier), loader())


def test_float16_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = quick("optimizer=two_loop_neumann", "trainer.precision=16-mixed")
    (said,) = wrong_settings([spec], here=False)
    assert said is not None
    assert said.startswith("trainer.precision=16-mixed scales the loss for one gradient a step")
    monkeypatch.setattr("neumann.training.parts.check_device", lambda spec: None)
    with pytest.raises(UserError, match="choose bf16-mixed or 32-true"):
        build_parts(spec, RankGroup(None))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("optimizer.inner_steps=-1",), "inner_steps must be a whole number >= 0, got -1"),
        (("optimizer.mu=2",), "mu must be a finite number >= 0 and <= 1"),
        (("optimizer.inner_data=sam",), "did you mean 'same'"),
        (("optimizer.lr=-1",), "lr must be a finite number >= 0"),
    ],
)
def test_wrong_settings_are_told_before_a_run(words: tuple[str, ...], said: str) -> None:
    (sentence,) = wrong_settings([quick("optimizer=two_loop_neumann", *words)])
    assert sentence is not None
    assert sentence.startswith("optimizer: TwoLoopNeumann refuses its settings: ")
    assert said in sentence


@pytest.mark.medium
def test_its_gradients_are_counted_and_its_loss_is_at_the_weights_of_the_step(train: Train) -> None:
    logged = ("trainer.log_every_n_steps=6", "trainer.track_grad_norm=true", "trainer.track_update_norm=true")
    words = ("optimizer=two_loop_neumann", "optimizer.lr=0.0", "optimizer.lr_in=0.3", *logged)
    result, folder = train(*words, "batch.max_per_device=32", "batch.norm_size=32")
    assert [m["gradient_evaluations"] for m in folder.read_measurements()] == [90, 180]  # (K + 1) × 18
    assert folder.read_measurements()[-1]["examples"] == 36 * 64
    other, plain = train("optimizer=sgd", "optimizer.lr=0.0", "batch.norm_size=32", *logged)
    lines, expected = read_lines(folder.path, result), read_lines(plain.path, other)
    assert [line["grad_norm"] for line in lines] == pytest.approx([line["grad_norm"] for line in expected], rel=1e-5)
    assert {line["update_norm"] for line in lines} == {0.0}
    for one, two in zip(folder.read_measurements(), plain.read_measurements(), strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-6)
        assert one["validation"]["held"] == pytest.approx(two["validation"]["held"])  # running statistics too


@pytest.mark.medium
@pytest.mark.parametrize("solver", ["series", "series_exact", "cg"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_it_trains_with_every_solver_and_in_bfloat16(precision: str, solver: str, train: Train) -> None:
    words = (f"optimizer.solver={solver}", "optimizer.mu=0.9", f"trainer.precision={precision}")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*create_graph")
        result, folder = train("optimizer=two_loop_neumann", *words, "batch.max_per_device=32")
    assert result["validation"]["held"]["loss"] < (2.3 if solver == "cg" else 1.6)  # ln 10 is chance
    counted = [m["gradient_evaluations"] for m in folder.read_measurements()]
    if solver == "cg":  # which stops early where the curvature is not positive
        assert 36 <= counted[1] <= 36 * 9
    else:
        a_step = {"series": 5, "series_exact": 9}[solver]
        assert counted == [18 * a_step, 36 * a_step]


def test_its_cost_has_every_gradient() -> None:
    plain, loop = model_cost(quick("optimizer=sgd")), model_cost(quick("optimizer=two_loop_neumann"))
    assert loop.training == 5 * plain.training
    exact = model_cost(quick("optimizer=two_loop_neumann", "optimizer.solver=cg"))
    assert exact.training == 9 * plain.training
    assert (loop.forward, loop.points) == (plain.forward, 1)


def seen_batches(module: SteppingClassifier) -> list[Tensor]:
    """Return the images of every batch that goes through the network, in order, which this goes on to fill."""
    seen: list[Tensor] = []
    module.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


@pytest.mark.parametrize(
    ("data", "accumulation", "steps"),
    [("same", 2, 2), ("chunks", 1, 4), ("chunks", 2, 2), ("chunks", 4, 1), ("fresh", 4, 1)],
)
def test_every_gradient_is_of_the_images_that_it_should_be(data: str, accumulation: int, steps: int) -> None:
    """Four gradients a step on micro-batches of 8: the same, a quarter of them, or the next."""
    module, made = classifier(SteppingClassifier, inner_data=data), batches()
    seen = seen_batches(module)
    trainer = make_trainer({**SETTINGS, "accumulate_grad_batches": accumulation}, [])
    fit(trainer, module, made, after_batch=Seen().after)
    images = [images for images, _ in made]
    if data == "same":
        expected = [each for at in range(0, 4, 2) for each in images[at : at + 2] * 4]
    elif accumulation == 4:
        expected = images
    else:
        pieces = 4 // accumulation
        expected = [piece for each in images for piece in each.chunk(pieces)]
    assert len(seen) == len(expected)
    assert all(map(torch.equal, seen, expected))
    assert module.gradients == {"same": 4, "chunks": 1, "fresh": 4}[data]
    assert module.model.features[1].num_batches_tracked == (4 if data == "same" else len(expected))


@pytest.mark.medium
@pytest.mark.parametrize("micro_batch", [64, 32])
def test_a_run_on_fresh_batches_takes_one_for_every_gradient(micro_batch: int, train: Train) -> None:
    words = ("optimizer=two_loop_neumann", "optimizer.inner_data=fresh", "optimizer.inner_steps=2")
    result, folder = train(*words, f"batch.max_per_device={micro_batch}", "batch.norm_size=32")
    last = folder.read_measurements()[-1]
    assert (last["step"], last["examples"], last["gradient_evaluations"]) == (36, 36 * 3 * 64, 36 * 3)
    assert result["distinct_examples"]["training"] == 6 * 3 * 64  # of the last whole pass


@pytest.mark.medium
def test_on_two_ranks_each_gradient_is_of_the_images_that_one_process_takes(train: Train) -> None:
    """Where parts are whole micro-batches; those that cut one are cut from each rank's share."""
    words = ("optimizer=two_loop_neumann", "optimizer.inner_steps=1", "optimizer.beta=1e-3", *SHORT)
    cases = [(*words, f"optimizer.inner_data={data}") for data in ("chunks", "fresh")]
    specs = [quick(*case, "trainer.devices=2", "batch.max_per_device=16") for case in cases]
    answers = together(on_two_ranks, 2, specs)
    for case, spec in zip(cases, specs, strict=True):
        _, alone = train(*case)
        assert_equal(weights(alone), weights(find(spec)), buffers=False)
    assert answers[0] == [(7, 14), (7, 14)]  # steps, and gradients that were shared


@pytest.mark.medium
def test_a_run_on_parts_of_its_batch_takes_a_gradient_of_it_in_all(train: Train) -> None:
    words = ("optimizer=two_loop_neumann", "optimizer.inner_data=chunks", "optimizer.inner_steps=3")
    result, folder = train(*words)
    last = folder.read_measurements()[-1]
    assert (last["step"], last["examples"], last["gradient_evaluations"]) == (36, 36 * 64, 36)
    assert result["batch"]["norm_size"] == 16
    cut, _ = train(*words, "batch.max_per_device=16", "study=cut")  # whole micro-batches are the same parts
    assert cut["validation"] == result["validation"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inner_data=chunks",), "64 images of a step into inner_steps . 1 = 5 equal parts of at least 2 images, .*inner_steps=3 or 7$"),
        (("inner_data=chunks", "inner_steps=63"), "inner_steps=31$"),
        (("solver=cg", "+trainer.devices=2"), "solver=cg differentiates the gradient, which ranks cannot share"),
        (("inner_data=fresh", "inner_steps=18"), "takes inner_steps .* 19 batches of batch.size=64 .* 1197 images: choose batch.size=63"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_had_is_refused_before_a_run(words: tuple[str, ...], said: str) -> None:
    given = (word[1:] if word.startswith("+") else f"optimizer.{word}" for word in words)
    spec = quick("optimizer=two_loop_neumann", *given)
    (sentence,) = wrong_settings([spec])
    with pytest.raises(UserError, match=said):
        build_parts(spec, RankGroup(None))
    with pytest.raises(UserError, match=said):
        raise UserError(str(sentence))


def test_parts_of_micro_batches_and_ghost_batches_are_told() -> None:
    words = ("optimizer=two_loop_neumann", "optimizer.inner_data=chunks", "batch.max_per_device=16")
    (sentence,) = wrong_settings([quick(*words, "batch.norm_size=8")])
    assert sentence is not None
    assert "64 images of a step in 4 micro-batches into inner_steps + 1 = 5 equal parts" in sentence
    assert "whole ghost batches of batch.norm_size=8" in sentence
    assert sentence.endswith("choose optimizer.inner_steps=3 or 7")
    assert wrong_settings([quick(*words, "batch.norm_size=8", "optimizer.inner_steps=7")]) == [None]


class Around(torch.optim.Optimizer):
    """An optimizer of a user's that wraps the inner loop."""

    def __init__(self, params: Any, lr: float, inner_data: str) -> None:
        super().__init__(params, {})
        self.optimizer = TwoLoopNeumann(self.param_groups, None, lr, 1, inner_data)
        self.param_groups = self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


@pytest.mark.medium
def test_within_an_optimizer_of_the_users_it_trains_on_the_frozen_batch(train: Train, own_group: Any) -> None:
    text = (
        "# A wrapper: neumann train optimizer=around\n_target_: tests.training.test_inner_loop.Around\n"
        "lr: 0.1 # rate\ninner_data: same # data\n"
    )
    folders = (own_group("optimizer", "around", text),)
    _, folder = train("optimizer=around", dirs=folders)
    assert folder.read_measurements()[-1]["gradient_evaluations"] == 72
    (sentence,) = wrong_settings([quick("optimizer=around", "optimizer.inner_data=fresh", dirs=folders)])
    assert sentence is not None
    assert sentence.startswith("optimizer._target_=tests.training.test_inner_loop.Around wraps TwoLoopNeumann(inner_")
    (sentence,) = wrong_settings([quick("optimizer=around", "trainer.precision=16-mixed", dirs=folders)], here=False)
    assert sentence is not None
    assert sentence.startswith("trainer.precision=16-mixed scales the loss")


def test_steps_given_as_a_whole_float_are_the_same_loop() -> None:
    spec = quick("optimizer=two_loop_neumann", "optimizer.inner_data=fresh", "optimizer.inner_steps=2.0")
    assert counts_of(spec, 1).examples == 36 * 3 * 64
    assert build_parts(spec, RankGroup(None)).trainer_options["accumulate_grad_batches"] == 3


class CallsNothing(Around):
    """A wrapper that forgets its closure."""

    def step(self, closure: Any = None) -> None:
        """Do nothing."""


def test_a_wrapper_that_forgets_the_closure_is_told() -> None:
    module = SteppingClassifier(
        SmallCNN(num_classes=5, width=4), lambda m: CallsNothing(m.parameters(), lr=0.1, inner_data="same")
    )
    with pytest.raises(UserError, match=r"CallsNothing\.step does not call the closure"):
        fit(pl.Trainer(**SETTINGS), module, batches(), after_batch=Seen().after)


def test_other_data_needs_a_loop_that_has_it() -> None:
    with pytest.raises(ValueError, match=r"inner_data='chunks'\) asks its closure for other data at every gradient"):
        pl.Trainer(**SETTINGS).fit(classifier(ImageClassifier, inner_data="chunks"), loader())
    with pytest.raises(ValueError, match=r"solver='cg'\) differentiates the gradient, and Lightning's closure leaves"):
        pl.Trainer(**SETTINGS).fit(classifier(ImageClassifier, solver="cg"), loader())
    with pytest.raises(ValueError, match="would break the method"):
        pl.Trainer(**SETTINGS, gradient_clip_val=1.0).fit(classifier(ImageClassifier), loader())


@pytest.mark.parametrize(("data", "training"), [("same", 5), ("chunks", 1), ("fresh", 1)])
def test_an_estimate_has_the_gradients_and_the_images_of_a_step(data: str, training: int) -> None:
    words = ("optimizer=two_loop_neumann", f"optimizer.inner_data={data}")
    plain, spec = model_cost(quick("optimizer=sgd")), quick(*words)
    if data == "chunks":
        spec = quick(*words, "batch.size=60")
    assert model_cost(spec).training == training * plain.training
    assert counts_of(spec, 1).examples == counts_of(spec, 1).steps * spec.config.batch.size * (
        5 if data == "fresh" else 1
    )


def test_recorded_steps_tell_what_those_of_the_same_loop_take() -> None:
    loop, longer, plain = (
        costs(quick(*words).signed())
        for words in (
            ("optimizer=two_loop_neumann",),
            ("optimizer=two_loop_neumann", "optimizer.inner_steps=8"),
            ("optimizer=sgd",),
        )
    )
    assert not {*loop} & {*longer}
    assert not {*loop} & {*plain}
    assert costs(quick("optimizer=two_loop_neumann", "optimizer.lr=0.3").signed()) == loop


@pytest.mark.medium
@pytest.mark.parametrize("data", ["same", "chunks", "fresh"])
def test_the_seconds_of_a_step_have_all_its_gradients(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    step = ImageClassifier.training_step

    def counting(self: ImageClassifier, batch: Batch, batch_idx: int) -> Any:
        taken.append(len(batch[0]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", counting)
    words = ("optimizer=two_loop_neumann", f"optimizer.inner_data={data}", "optimizer.inner_steps=3")
    times = step_times(quick(*words), threads=1, seconds=0.2)
    assert len(taken) == (times.steps + times.warm_up) * (1 if data == "chunks" else 4)
    assert set(taken) == {64}
    assert times.update == 0
