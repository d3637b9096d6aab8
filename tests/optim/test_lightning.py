"""A LightningModule with one more base class: judged and saved at the eval point, trained on from the held one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from neumann.optim import at
from tests.support.lightning import EVERY, QUIETLY, Net, answer, loader, same, trainer, weights

pytestmark = QUIETLY


@pytest.mark.medium
@EVERY
def test_validation_test_and_prediction_are_there_and_training_never_notices(name: str) -> None:
    judged, plain = Net(name), Net(name)
    fitting = trainer(enable_checkpointing=False, val_check_interval=2)
    fitting.fit(judged, loader(), loader())
    trainer(enable_checkpointing=False).fit(plain, loader())
    assert same(weights(judged), weights(plain))
    assert [part.training for part in judged.body] == [True, False, True, True]
    there = answer(judged, fitting.optimizers[0])["body.0.weight"]
    assert torch.equal(judged.seen[-1], there)
    assert torch.equal(there, weights(judged)["body.0.weight"]), "after fit the weights are at the answer"
    with at(fitting.optimizers[0], "held"):
        assert torch.equal(there, weights(judged)["body.0.weight"]) == (name == "adam")
    for evaluate in (fitting.validate, fitting.test, fitting.predict):
        judged.seen.clear()
        evaluate(judged, loader(), **({} if evaluate == fitting.predict else {"verbose": False}))
        assert len(judged.seen) == 4
        assert torch.equal(judged.seen[-1], there)
        assert same(weights(judged), weights(plain))


@pytest.mark.medium
@EVERY
@pytest.mark.parametrize("when", ["after validation", "in training", "by hand", "weights only"])
def test_every_checkpoint_holds_the_answer(name: str, when: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dirpath": tmp_path, "filename": "it"}
    if when == "in training":
        options["every_n_train_steps"] = 8
    else:
        options["save_on_train_epoch_end"] = (
            when != "after validation"
        )  # False: while the weights are at the eval point
    module = Net(name)
    fitting = trainer(callbacks=[ModelCheckpoint(**options, save_weights_only=when == "weights only")])
    fitting.fit(module, loader(), None if when == "in training" else loader())
    file = tmp_path / "it.ckpt"
    if when == "by hand":
        file.unlink()
        fitting.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=True)
    there = answer(module, fitting.optimizers[0])
    assert same(there, checkpoint["state_dict"])
    assert torch.equal(checkpoint["state_dict"]["body.1.running_mean"], module.body[1].running_mean)
    assert same(there, weights(Net.load_from_checkpoint(file)))
    assert ("held_weights" in checkpoint) == (when != "weights only" and name != "adam")
    if name == "neumann" and when != "weights only":
        state = checkpoint["optimizer_states"][0]
        assert state["param_groups"][0]["point"] == "held"
        assert not any("held" in each for each in state["state"].values())
    fresh = Net(name)
    trainer(enable_checkpointing=False).test(fresh, loader(), ckpt_path=str(file), verbose=False)
    assert torch.equal(fresh.seen[0], there["body.0.weight"])


@EVERY
@pytest.mark.parametrize("validated", [True, False])
def test_a_resumed_fit_ends_at_the_same_bits(name: str, validated: bool, tmp_path: Path) -> None:
    whole = Net(name)
    trainer(4, enable_checkpointing=False).fit(whole, loader(), loader() if validated else None)
    saving = ModelCheckpoint(
        tmp_path, "it", save_on_train_epoch_end=not validated
    )  # after validation: at the eval point
    first = trainer(2, callbacks=[saving])
    first.fit(Net(name), loader(), loader() if validated else None)
    second = Net(name)
    trainer(4, enable_checkpointing=False).fit(
        second, loader(), loader() if validated else None, ckpt_path=str(tmp_path / "it.ckpt")
    )
    assert same(weights(second), weights(whole))


def test_after_a_failed_validation_training_begins_at_the_held_point() -> None:
    module = Net(fail_at=5)
    fitting = trainer(enable_checkpointing=False)
    with pytest.raises(ZeroDivisionError):
        fitting.fit(module, loader(), loader())
    held = {name: fitting.optimizers[0].state[p]["held"].clone() for name, p in module.named_parameters()}
    module.fail_at = None
    module.on_train_start()
    assert same(held, weights(module))
    assert fitting.optimizers[0].point == "held"
    assert [part.training for part in module.body] == [True, False, True, True]


@EVERY
def test_a_checkpoint_is_evaluated_as_it_is_by_the_trainer_that_has_fitted(name: str, tmp_path: Path) -> None:
    """Its optimizers have gone on since, so what they would move by is not of these weights."""
    module = Net(name)
    fitting = trainer(4, callbacks=[ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)])
    fitting.fit(module, loader())
    ended = answer(module, fitting.optimizers[0])
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    for evaluate in (fitting.validate, fitting.test, fitting.predict):
        module.seen.clear()
        quiet = {} if evaluate == fitting.predict else {"verbose": False}
        evaluate(module, loader(), ckpt_path=str(tmp_path / "epoch=1.ckpt"), **quiet)
        assert torch.equal(module.seen[0], saved["body.0.weight"])
        evaluate(module, loader(), **quiet)
        assert torch.equal(module.seen[-1], saved["body.0.weight"])
        assert same(weights(module), saved)
    fitting.save_checkpoint(tmp_path / "again.ckpt")
    assert same(weights(Net.load_from_checkpoint(tmp_path / "again.ckpt")), saved)
    # and the run itself goes on from where it was
    fitting.fit_loop.max_epochs = 5
    fitting.fit(module, loader(), ckpt_path=str(tmp_path / "epoch=3.ckpt"))
    whole = Net(name)
    trainer(5, enable_checkpointing=False).fit(whole, loader())
    assert not same(ended, weights(module))
    assert same(weights(module), weights(whole))


def test_without_an_optimizer_the_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    module = Net()
    before = weights(module)
    testing = trainer(enable_checkpointing=False)
    testing.test(module, loader(), verbose=False)
    assert torch.equal(module.seen[0], before["body.0.weight"])
    testing.save_checkpoint(tmp_path / "it.ckpt")
    assert same(before, weights(Net.load_from_checkpoint(tmp_path / "it.ckpt")))
