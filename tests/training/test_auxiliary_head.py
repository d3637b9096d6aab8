"""An auxiliary head counts in the loss by its weight, and in no evaluation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from neumann.errors import UserError
from neumann.models.classifiers import build_model
from neumann.optim import at, eval_point
from neumann.store import find
from neumann.store.steps import read_lines
from neumann.training.distributed import RankGroup
from neumann.training.parts import build_parts
from tests.support.quick_runs import Train, quick
from tests.support.rank_groups import together
from tests.support.two_heads import WORDS
from tests.training.test_accumulation import assert_equal, on_two_ranks, weights

SHORT = (
    *WORDS,
    "trainer.precision=64-true",
    "trainer.max_epochs=0.4",  # 7 steps of 64 examples
    "trainer.check_val_every_n_epoch=0.4",
    "batch.norm_size=8",
    "recipe.label_smoothing=0.1",
    "timing.reset_period=0.2",
)
OPTIMIZERS = {
    "neumann": ("optimizer=neumann",),
    "average": ("optimizer=nesterov", "recipe.weight_average=0.9"),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_trains_as_a_loop_by_hand_does(optimizer: str, train: Train) -> None:
    """With accumulation and ghost batch norm, evaluated at the optimizer's answer, to 1e-12."""
    words = (*SHORT, *OPTIMIZERS[optimizer])
    result, folder = train(*words, "batch.max_per_device=16")
    state = torch.load(folder.eval_weights, weights_only=True)["state_dict"]

    parts = build_parts(quick(*words), RankGroup())
    model, stepper = parts.module.model, parts.module.configure_optimizers()
    losses = []
    batches = parts.data.train_dataloader()
    for _, (images, labels) in zip(range(7), batches, strict=False):
        stepper.zero_grad()
        main, auxiliary = (cross_entropy(logits, labels, label_smoothing=0.1) for logits in model(images.double()))
        (main + 0.4 * auxiliary).backward()
        stepper.step()
        losses.append([value.item() for value in (main + 0.4 * auxiliary, main, auxiliary)])
    with at(stepper, eval_point(stepper)):
        expected = {key: value.clone() for key, value in model.state_dict().items()}
        images, labels = (torch.cat(part) for part in zip(*parts.data.val_dataloader(), strict=True))
        logits, _ = model.eval()(images.double())
    assert state.keys() == expected.keys()
    for key in expected:
        assert float((state[key].double() - expected[key].double()).abs().max()) <= 1e-12, key
    means = torch.tensor(losses, dtype=torch.float64).mean(dim=0).tolist()
    keys = ("train_loss", "train_loss_main", "train_loss_auxiliary")
    (measured,) = folder.read_measurements()
    assert [measured[key] for key in keys] == pytest.approx(means, rel=1e-12)
    assert [result[key] for key in keys] == [measured[key] for key in keys]
    scores = result["validation"][result["eval_point"]]
    assert scores["wrong"] == int((logits.argmax(dim=1) != labels).sum())
    assert scores["loss"] == pytest.approx(float(cross_entropy(logits.float(), labels)), rel=1e-6)


@pytest.mark.medium
def test_two_ranks_train_both_heads_as_one_does(train: Train) -> None:
    words = (*SHORT, *OPTIMIZERS["neumann"], "trainer.log_every_n_steps=3", "trainer.track_grad_norm=true")
    whole, folder = train(*words)
    spec = quick(*words, "trainer.devices=2", "batch.max_per_device=16")
    for answer in together(on_two_ranks, 2, [spec]):
        if isinstance(answer, Exception):
            raise answer
    assert_equal(weights(folder), weights(find(spec)), buffers=False)
    (one,), (other,) = folder.read_measurements(), find(spec).read_measurements()
    for key in ("train_loss", "train_loss_main", "train_loss_auxiliary"):
        assert one[key] == pytest.approx(other[key], rel=1e-12)
    pairs = list(zip(read_lines(folder.path, whole), read_lines(find(spec).path, find(spec).result()), strict=True))
    assert [line["step"] for line, _ in pairs] == [3, 6, 7]
    for line, of_two in pairs:
        for key in ("train_loss", "train_loss_main", "train_loss_auxiliary", "grad_norm", "lr", "examples"):
            assert line[key] == pytest.approx(of_two[key], rel=1e-9), key
    assert whole["train_loss"] == pytest.approx(whole["train_loss_main"] + 0.4 * whole["train_loss_auxiliary"])


@pytest.mark.parametrize(
    ("name", "kwargs", "auxiliary", "sentence"),
    [
        ("two_heads", {}, False, "returns the logits of an auxiliary head too: set model.auxiliary_weight"),
        ("small_cnn", {}, True, "model.auxiliary_weight is set and model.name=small_cnn has no auxiliary head"),
        ("inception_v3", {"aux_logits": True}, True, "cannot take images of 96×96"),
    ],
)
def test_a_head_that_is_there_or_missing_unasked_is_refused(
    name: str, kwargs: dict[str, object], auxiliary: bool, sentence: str
) -> None:
    size = (96, 96) if name == "inception_v3" else (8, 8)
    device = "meta" if name == "inception_v3" else "cpu"
    with pytest.raises(UserError) as refused, torch.device(device):
        build_model(name, kwargs, in_chans=1, num_classes=10, image_size=size, auxiliary_head=auxiliary)
    assert sentence in str(refused.value)
