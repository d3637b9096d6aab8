"""`AtEvalPoint` beside hooks, callbacks and trainer features that touch weights or checkpoints themselves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import lightning_fabric
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.tuner import Tuner

from neumann.optim import Neumann, WeightAverage, at, eval_point, evaluating
from neumann.optim.lightning import AtEvalPoint
from tests.support.lightning import OPTIMIZERS, QUIETLY, Body, Net, answer, loader, same, trainer, weights

pytestmark = [QUIETLY, pytest.mark.filterwarnings("ignore:.*(callbacks used to create|params to be frozen)")]
EVERY = pytest.mark.parametrize("name", ["neumann", "nesterov", "sgd"])


class Plain(Body, pl.LightningModule):
    """The module that `Net` is, without `AtEvalPoint`: what Lightning itself does."""


def fitted(
    module: pl.LightningModule, epochs: int = 4, /, *, resume: Path | None = None, validate: bool = True, **options: Any
) -> pl.Trainer:
    saves = any(isinstance(each, callbacks.Checkpoint) for each in options.get("callbacks", ()))
    fitting = trainer(epochs, enable_checkpointing=saves, **options)
    path = None if resume is None else str(resume)
    fitting.fit(module, loader(), loader() if validate else None, ckpt_path=path)
    return fitting


def saving(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, **options)


def only_file(folder: Path, epoch: int) -> Path:
    (file,) = folder.glob(f"epoch={epoch}-*.ckpt")
    return file


def load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(file, weights_only=False)
    return loaded


# hooks


class WithoutSuper:
    """Overrides every hook that a user may, as Lightning documents it: none of them needs `super()`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["note"] = {"ours": [self.body[0].weight]}
        checkpoint["half"] = {name: value.half() for name, value in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert "note" in checkpoint

    def on_validation_model_eval(self) -> None:
        self.eval()

    def on_train_start(self) -> None: ...
    def on_train_epoch_start(self) -> None: ...
    def on_train_epoch_end(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_test_model_eval(self) -> None:
        self.eval()

    def on_test_end(self) -> None: ...
    def on_predict_model_eval(self) -> None:
        self.eval()

    def on_predict_end(self) -> None: ...


class Own(WithoutSuper, Net):
    """A mixin before a module that has `AtEvalPoint`."""


class Inside(Net):
    """The hooks in the class's own body."""


for hook, function in vars(WithoutSuper).items():
    if hook.startswith("on_"):
        setattr(Inside, hook, function)
Inside.__init_subclass__()


class Late(Net):
    """The hooks assigned to a class that is there already."""


class LateInWrongOrder(Body, pl.LightningModule, AtEvalPoint):
    """The same, with `LightningModule` first."""


for hook, function in vars(WithoutSuper).items():
    if hook.startswith("on_"):
        setattr(Late, hook, function)
        setattr(LateInWrongOrder, hook, function)


def with_hooks_of_its_own(kind: Callable[[str], Net]) -> Callable[[str], Net]:
    """Return what makes a module and assigns the hooks to it alone."""

    def make(name: str) -> Net:
        module = kind(name)
        for hook, function in vars(WithoutSuper).items():
            if hook.startswith("on_"):
                setattr(module, hook, MethodType(function, module))
        return module

    return make


class BareInWrongOrder(Body, pl.LightningModule, AtEvalPoint):
    """`LightningModule` first, without hooks."""


class WrongOrder(WithoutSuper, Body, pl.LightningModule, AtEvalPoint):
    """`LightningModule` before `AtEvalPoint`."""


class WithSuper(Own):
    """The hooks once more in a subclass, this time with `super()`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["again"] = self.body[0].weight

    def on_train_end(self) -> None:
        super().on_train_end()
        self.ended_at = weights(self)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["neumann", "nesterov"])
@pytest.mark.parametrize(
    "kind",
    [
        *(Own, Inside, WrongOrder, WithSuper, Late, LateInWrongOrder),
        pytest.param(with_hooks_of_its_own(Net), id="of one module"),
        pytest.param(with_hooks_of_its_own(BareInWrongOrder), id="of one module in the wrong order"),
    ],
)
def test_hooks_overridden_without_super_and_bases_in_any_order_change_nothing(
    kind: Callable[[str], Net], name: str, tmp_path: Path
) -> None:
    usual, module = Net(name), kind(name)
    fitted(usual, callbacks=[saving(tmp_path / "usual")])
    fitting = fitted(module, callbacks=[saving(tmp_path / "own")])
    assert torch.equal(torch.stack(module.seen), torch.stack(usual.seen))
    assert same(weights(module), answer(module, fitting.optimizers[0]))
    assert same(weights(module), weights(usual))
    for epoch in (1, 3):
        expected, saved = load(only_file(tmp_path / "usual", epoch)), load(only_file(tmp_path / "own", epoch))
        assert same(expected["state_dict"], saved["state_dict"])
        assert same(expected["held_weights"], saved["held_weights"])
        weight = saved["state_dict"]["body.0.weight"]
        assert not torch.equal(weight, saved["held_weights"]["body.0.weight"])
        assert torch.equal(saved["note"]["ours"][0], weight), "what a hook takes from the module is the answer too"
        assert torch.equal(saved["half"]["body.0.weight"], weight.half())
    resumed = kind(name)
    fitted(resumed, resume=only_file(tmp_path / "own", 1))
    assert same(weights(resumed), weights(module))
    assert [part.training for part in module.body] == [True, False, True, True]
    module.seen.clear()
    fitting.test(module, loader(), verbose=False)
    fitting.predict(module, loader())
    assert all(torch.equal(each, weights(usual)["body.0.weight"]) for each in module.seen)


class Renaming(Net):
    """Saves without the prefix and loads with it, and leaves a head out."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.removeprefix("body."): value for name, value in state.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"body.{name}": value for name, value in checkpoint["state_dict"].items()}


def test_a_hook_may_rename_what_is_saved(tmp_path: Path) -> None:
    whole, resumed = Renaming(), Renaming()
    fitted(whole, callbacks=[saving(tmp_path)])
    saved = load(only_file(tmp_path, 1))
    assert saved["state_dict"].keys() >= saved["held_weights"].keys() == {"0.weight", "0.bias", "1.weight", "1.bias",
                                                                          "3.weight", "3.bias"}  # fmt: skip
    fitted(resumed, resume=only_file(tmp_path, 1))
    assert same(weights(resumed), weights(whole))
    usual = Net()
    fitted(usual)
    assert same(weights(usual), weights(whole))


# after fit


@EVERY
def test_after_fit_the_module_is_at_the_answer_and_can_be_copied_and_fitted_again(name: str, tmp_path: Path) -> None:
    module = Net(name)
    fitting = fitted(module, validate=False)
    with at(fitting.optimizers[0], "held"):
        held = weights(module)
    there = weights(module)
    assert same(there, answer(module, fitting.optimizers[0]))
    assert same(there, held) == (name == "sgd")
    assert same(weights(copy.deepcopy(module)), there)
    fitting.save_checkpoint(tmp_path / "by hand.ckpt")
    assert same(weights(module), there)
    assert same(load(tmp_path / "by hand.ckpt")["state_dict"], there)
    resumed, whole = Net(name), Net(name)
    fitted(resumed, 6, resume=tmp_path / "by hand.ckpt", validate=False)
    fitted(whole, 6, validate=False)
    assert same(weights(resumed), weights(whole))
    fresh = Net(name)
    fresh.load_state_dict(there, strict=False)
    fresh.body[1].load_state_dict(module.body[1].state_dict())
    fitted(fresh, 2, validate=False)
    fitted(module, 2, validate=False)
    assert same(weights(module), weights(fresh)), "another fit starts from the answer with a fresh optimizer"


# averages


def ema(**options: Any) -> callbacks.EMAWeightAveraging:
    return callbacks.EMAWeightAveraging(decay=0.8, **options)


@pytest.mark.medium
@EVERY
@pytest.mark.parametrize("after_validation", [True, False])
def test_lightnings_moving_average_is_what_it_is_without_us(name: str, after_validation: bool, tmp_path: Path) -> None:
    plain, module = Plain(name), Net(name)
    when = {"save_on_train_epoch_end": not after_validation}
    fitted(plain, callbacks=[ema(), saving(tmp_path / "plain", **when)])
    fitting = fitted(module, callbacks=[ema(), saving(tmp_path / "ours", **when)])
    assert torch.equal(torch.stack(module.seen), torch.stack(plain.seen)), "validated at the average"
    assert same(weights(module), weights(plain)), "fit ends with the average in the module"
    for epoch in (1, 3):
        expected, saved = load(only_file(tmp_path / "plain", epoch)), load(only_file(tmp_path / "ours", epoch))
        assert saved.keys() == expected.keys()
        for key in ("state_dict", "current_model_state", "averaging_state"):
            assert saved[key].keys() == expected[key].keys()
            assert same(saved[key], expected[key])
        assert not same(saved["state_dict"], saved["current_model_state"])
    resumed = Net(name)
    fitted(resumed, resume=only_file(tmp_path / "ours", 1), callbacks=[ema()])
    assert same(weights(resumed), weights(module))
    module.seen.clear()
    fitting.test(module, loader(), verbose=False)
    assert torch.equal(module.seen[0], weights(plain)["body.0.weight"])
    fitting.save_checkpoint(tmp_path / "by hand.ckpt")
    assert same(load(tmp_path / "by hand.ckpt")["state_dict"], weights(plain))


@pytest.mark.medium
@EVERY
@pytest.mark.parametrize("with_norm", [True, False])
def test_lightnings_stochastic_average_is_what_it_is_without_us(name: str, with_norm: bool, tmp_path: Path) -> None:
    """With a batch norm, an epoch without steps follows in which the average is in the module."""

    def swa() -> callbacks.StochasticWeightAveraging:
        return callbacks.StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=2)

    def made(kind: type) -> Any:
        module = kind(name)
        if not with_norm:
            module.body[1] = torch.nn.Identity()
        return module

    plain, module = made(Plain), made(Net)
    fitted(plain, callbacks=[swa()])
    fitting = fitted(module, callbacks=[swa(), saving(tmp_path)])
    assert same(weights(module), weights(plain))
    if with_norm:
        last = load(only_file(tmp_path, 4))["state_dict"]
        assert same(weights(module), last)
        assert torch.equal(last["body.1.running_mean"], plain.body[1].running_mean)
        assert torch.equal(module.seen[-1], last["body.0.weight"])
    before = load(only_file(tmp_path, 1))
    assert ("held_weights" in before) == (name != "sgd")
    resumed, as_plain = made(Net), made(Plain)
    fitted(resumed, resume=only_file(tmp_path, 1), callbacks=[swa()])
    fitted(as_plain, 2, callbacks=[saving(tmp_path / "plain")])
    assert same(weights(resumed), weights(module))
    module.seen.clear()
    fitting.test(module, loader(), verbose=False)
    assert torch.equal(module.seen[0], weights(plain)["body.0.weight"])


class OwnAverage(pl.Callback):
    """A user's moving average, which evaluation sees and the module has in the end, by `.data` as many write it."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.average = [p.detach().clone() for p in module.parameters()]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        for average, p in zip(self.average, module.parameters(), strict=True):
            average.lerp_(p.detach(), 0.2)

    def _swap(self, module: pl.LightningModule) -> None:
        for i, p in enumerate(module.parameters()):
            average = self.average[i].clone()
            self.average[i] = p.data.clone()
            p.data.copy_(average)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._swap(module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._swap(module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._swap(module)


@EVERY
def test_an_average_of_the_users_own_is_validated_saved_in_validation_and_kept_in_the_end(
    name: str, tmp_path: Path
) -> None:
    class Saving(Net):
        def on_validation_epoch_end(self) -> None:
            self.trainer.save_checkpoint(tmp_path / f"{len(self.seen)}.ckpt")
            assert torch.equal(self.body[0].weight, self.seen[-1])

    plain, module, untouched = Plain(name), Saving(name), Net(name)
    fitted(plain, callbacks=[OwnAverage()])
    fitting = fitted(module, callbacks=[OwnAverage()])
    assert torch.equal(torch.stack(module.seen), torch.stack(plain.seen))
    assert same(weights(module), weights(plain))
    assert torch.equal(load(tmp_path / "8.ckpt")["state_dict"]["body.0.weight"], module.seen[7])
    module.seen.clear()
    fitting.test(module, loader(), verbose=False)
    assert torch.equal(module.seen[0], weights(plain)["body.0.weight"])
    fitting.save_checkpoint(tmp_path / "end.ckpt")
    assert same(load(tmp_path / "end.ckpt")["state_dict"], weights(plain))
    resumed = Net(name)
    if name != "sgd":  # without a held point of its own, Lightning goes on from the average, as it does without us
        fitted(resumed, resume=tmp_path / "8.ckpt")
        fitted(untouched)
        assert same(weights(resumed), weights(untouched))


@pytest.mark.parametrize("name", ["sgd", "nesterov", "averaged pair"])
def test_a_weight_average_goes_over_a_resume(name: str, tmp_path: Path) -> None:
    class Averaged(Net):
        def configure_optimizers(self) -> Any:
            if name != "averaged pair":
                optimizer = OPTIMIZERS[name](self.parameters())
                self.average = WeightAverage(optimizer, 0.9)
                return optimizer
            self.automatic_optimization = False
            pair = [OPTIMIZERS["neumann"](self.body[0].parameters()), OPTIMIZERS["sgd"](self.body[1:].parameters())]
            self.average = WeightAverage(pair[1], 0.9)
            return pair

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if self.automatic_optimization:
                return loss
            self.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            return None

    whole, resumed = Averaged(), Averaged()
    fitted(whole, callbacks=[saving(tmp_path)])
    fitted(resumed, resume=only_file(tmp_path, 1))
    assert same(weights(resumed), weights(whole))
    averages = [module.average.state_dict()["averages"] for module in (whole, resumed)]
    assert all(torch.equal(one, other) for one, other in zip(*(group[0] for group in averages), strict=True))
    torch.load(only_file(tmp_path, 1), weights_only=True)


# what adds groups and what searches


class Unfreeze(callbacks.BaseFinetuning):
    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.body[0])

    def finetune_function(self, module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch >= 1:  # again after a resume, since `setup` freezes
            self.unfreeze_and_add_param_group(module.body[0], optimizer, lr=0.02)


@pytest.mark.medium
@EVERY
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_finetuning_that_adds_groups_resumes_to_the_same_bits(name: str, epoch: int, tmp_path: Path) -> None:
    class Head(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return OPTIMIZERS[self.name]([p for p in self.parameters() if p.requires_grad])

    whole, resumed = Head(name), Head(name)
    fitting = fitted(whole, callbacks=[Unfreeze(), saving(tmp_path)])
    assert len(fitting.optimizers[0].param_groups) == 2
    fitted(resumed, resume=only_file(tmp_path, epoch), callbacks=[Unfreeze()])
    assert same(weights(resumed), weights(whole))
    assert same(weights(whole), answer(whole, fitting.optimizers[0]))


class Searched(Net):
    """A module with a rate and a batch size to search."""

    lr, batch_size = 0.05, 10

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        return optimizer

    def train_dataloader(self) -> Any:
        return loader()

    val_dataloader = train_dataloader


@pytest.mark.medium
@EVERY
@pytest.mark.parametrize("search", ["lr_find", "LearningRateFinder", "scale_batch_size"])
def test_a_search_before_training_leaves_the_training_as_it_is(name: str, search: str, tmp_path: Path) -> None:
    searched, usual = Searched(name), Searched(name)
    options: dict[str, Any] = {"default_root_dir": tmp_path, "enable_checkpointing": False}
    if search == "LearningRateFinder":
        finder = callbacks.LearningRateFinder(num_training_steps=20, update_attr=False)
        fitting = trainer(4, callbacks=[finder], **options)
    else:
        fitting = trainer(4, **options)
        if search == "lr_find":
            Tuner(fitting).lr_find(searched, num_training=20, update_attr=False)
        else:
            Tuner(fitting).scale_batch_size(searched, steps_per_trial=2, max_trials=1, init_val=10)
            searched.batch_size = 10
        assert same(weights(searched), weights(usual)), "the search has put back what it found"
    fitting.fit(searched)
    fitted(usual)
    assert same(weights(searched), weights(usual))


# what the trainer can be asked for


@EVERY
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"inference_mode": False},
        {"max_steps": 6},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0},
    ],
    ids=str,
)
def test_options_of_the_trainer_resume_to_the_same_bits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    whole, resumed = Net(name), Net(name)
    fitting = fitted(whole, **options, callbacks=[saving(tmp_path)])
    fitted(resumed, **options, resume=only_file(tmp_path, 0))
    assert same(weights(resumed), weights(whole))
    assert same(weights(whole), answer(whole, fitting.optimizers[0]))


@EVERY
@pytest.mark.parametrize("where", ["training_step", "validation_step"])
@pytest.mark.parametrize("callback", ["OnExceptionCheckpoint", "ModelCheckpoint"])
def test_a_checkpoint_on_an_exception_goes_on_where_it_was(
    name: str, where: str, callback: str, tmp_path: Path
) -> None:
    class Failing(Net):
        fails = True

    def step(self: Failing, batch: list[torch.Tensor], batch_idx: int) -> Any:
        if self.fails and self.trainer.global_step == 8 and batch_idx == 0:
            raise ZeroDivisionError
        return getattr(Net, where)(self, batch, batch_idx)

    setattr(Failing, where, step)
    failing, whole = Failing(name), Net(name)
    saver = (
        callbacks.OnExceptionCheckpoint(tmp_path)
        if callback == "OnExceptionCheckpoint"
        else ModelCheckpoint(tmp_path, "on_exception", save_on_exception=True, every_n_epochs=9)
    )
    with pytest.raises(ZeroDivisionError):
        fitted(failing, callbacks=[saver])
    saved = load(tmp_path / "on_exception.ckpt")
    assert same(saved["state_dict"], answer(failing, failing.trainer.optimizers[0]))
    resumed = Net(name)
    fitted(resumed, resume=tmp_path / "on_exception.ckpt")
    fitted(whole)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_epoch_start", "on_train_end"]
)
def test_a_checkpoint_from_any_hook_is_the_answer(hook: str, tmp_path: Path) -> None:
    class Saving(Net):
        count = 0

    def save(self: Saving, *_: Any) -> None:
        self.trainer.save_checkpoint(tmp_path / "it.ckpt")
        self.expected = answer(self, self.trainer.optimizers[0])

    setattr(Saving, hook, save)
    Saving.__init_subclass__()
    module, usual = Saving(), Net()
    fitted(module)
    fitted(usual)
    assert same(weights(module), weights(usual))
    assert same(load(tmp_path / "it.ckpt")["state_dict"], module.expected)


def test_a_module_can_be_copied_while_it_is_evaluated() -> None:
    class Copying(Net):
        def on_validation_epoch_start(self) -> None:
            self.copied = weights(copy.deepcopy(self))

    module = Copying()
    fitting = fitted(module)
    assert same(module.copied, answer(module, fitting.optimizers[0]))


@pytest.mark.slow
def test_a_compiled_module_is_judged_at_the_answer() -> None:
    module, usual = Net(), Net()
    fitting = trainer(2, enable_checkpointing=False)
    fitting.fit(torch.compile(module, backend="eager"), loader(), loader())
    fitted(usual, 2)
    assert same(weights(module), weights(usual))
    assert torch.equal(module.seen[-1], usual.seen[-1])


@EVERY
def test_optimizers_as_lightning_hands_them_out_are_evaluated_at_the_answer(name: str) -> None:
    class Asking(Net):
        def on_train_epoch_end(self) -> None:
            wrapped = self.optimizers()
            with evaluating(wrapped):
                self.found = weights(self)
            self.expected = answer(self, self.trainer.optimizers[0])
            assert eval_point(wrapped) == eval_point(self.trainer.optimizers[0])

    module = Asking(name)
    fitted(module)
    assert same(module.found, module.expected)


@EVERY
def test_fabrics_optimizers_are_evaluated_at_the_answer(name: str) -> None:
    module = Net(name)
    _, optimizer = lightning_fabric.Fabric(accelerator="cpu").setup(module, module.configure_optimizers())
    for batch in loader():
        optimizer.zero_grad()
        (module.body(batch[0]) - batch[1]).square().mean().backward()
        optimizer.step()
    held = weights(module)
    with evaluating(optimizer):
        assert same(weights(module), held) == (name == "sgd")
        there = weights(module)
    assert same(weights(module), held)
    assert same(there, answer(module, optimizer.optimizer))


# what is refused and what is said


def test_gradient_clipping_is_refused_for_neumann_alone() -> None:
    with pytest.raises(
        ValueError, match=r"^Trainer\(gradient_clip_val=0\.5\) would break the method.*leave gradient clipping"
    ):
        fitted(Net(), gradient_clip_val=0.5)
    fitted(Net("nesterov"), gradient_clip_val=0.5)

    class ByHand(Net):
        def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    with pytest.raises(ValueError, match="clip_gradients"):
        fitted(ByHand())
    fitted(ByHand("sgd"))


def test_a_monitor_of_a_ramp_is_refused_and_of_a_number_logged(tmp_path: Path) -> None:
    class Constant(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Neumann(self.parameters(), lr=0.05, momentum=0.8)

    def monitored(module: Net, **options: Any) -> None:
        monitor = callbacks.LearningRateMonitor(**options)
        fitted(module, callbacks=[monitor], logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=1)

    with pytest.raises(ValueError, match=r"momentum is the ramp \(0\.5, 0\.9\): leave log_momentum out"):
        monitored(Net(), log_momentum=True)
    monitored(Net())
    monitored(Constant(), log_momentum=True)
    assert ",0.8" in (tmp_path / "metrics.csv").read_text()


def test_pruning_and_sharded_weights_are_refused_where_the_point_is_displaced() -> None:
    def prune() -> callbacks.ModelPruning:
        return callbacks.ModelPruning("l1_unstructured", amount=0.2)

    with pytest.raises(ValueError, match="of Neumann here: ModelPruning saves the weights that it finds"):
        fitted(Net(), callbacks=[prune()])
    fitted(Net("sgd"), callbacks=[prune()])

    class FSDPStrategy: ...

    module = Net()
    module.trainer = SimpleNamespace(
        optimizers=[module.configure_optimizers()], gradient_clip_val=None, callbacks=[], strategy=FSDPStrategy()
    )
    with pytest.raises(ValueError, match="of Neumann here: FSDPStrategy saves sharded weights"):
        module.on_train_start()


@pytest.mark.parametrize("cycle", [True, False])
def test_a_scheduler_that_replaces_the_ramp_is_said_once(cycle: bool) -> None:
    class Cycled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            kind = torch.optim.lr_scheduler.OneCycleLR
            return [optimizer], [{"scheduler": kind(optimizer, 0.05, 99, cycle_momentum=cycle), "interval": "step"}]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(Cycled())
    said = [str(each.message) for each in caught if "momentum ramp (0.5, 0.9)" in str(each.message)]
    assert len(said) == (1 if cycle else 0)
    assert not cycle or "cycle_momentum=False" in said[0]
