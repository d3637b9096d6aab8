"""A base class for LightningModules that validate, test, predict and save at the optimizer's eval point.

This module imports no Lightning, so it goes with ``pytorch_lightning`` and with ``lightning.pytorch``::

    class Classifier(AtEvalPoint, pl.LightningModule):
        def configure_optimizers(self):
            return Neumann(self.parameters(), lr=0.1)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from neumann.optim.argument_checks import no_clipping
from neumann.optim.average import WeightAverage
from neumann.optim.neumann import Neumann
from neumann.optim.points import eval_point, is_moved, move_back, move_to_eval_point
from neumann.optim.private_names import attached_trainer
from neumann.optim.two_loop import TwoLoopNeumann, inner_loop_of
from neumann.optim.weight_copies import Weights, bit_sums, copies, put
from neumann.optim.wrappers import load_states, shares_groups, states_inside, wrapped

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule as _Module
else:
    _Module = object

# keys of a checkpoint
HELD_WEIGHTS = "held_weights"  # the weights that training goes on from, by the names that `state_dict` has for them
WEIGHT_AVERAGES = "weight_averages"  # of each optimizer: the state of its `WeightAverage`, or None
WRAPPED_STATES = "wrapped_optimizer_states"  # of each optimizer: (states of those that it wraps, which share groups)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Hold ``module`` in eval mode within the block, and put each part back into its own mode: frozen norms stay so."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        _put_modes(modes)


class AtEvalPoint(_Module):
    """Base class that keeps evaluation and checkpoints at the eval point, for a module with any optimizers.

    It stands among the bases of a class, before or after ``LightningModule``, and does its part around the hooks that
    Lightning calls, so a class may override any of them, with or without ``super()``.

    Validation, test and prediction move the weights to the optimizer's eval point (w − μm for Neumann and for Nesterov
    momentum) and back bit for bit, so they never change training. After ``fit`` the weights stay at the eval point:
    ``torch.save(module.state_dict())`` saves the answer, and another ``fit`` starts from it with a fresh optimizer.
    They stay there after an exception in an evaluation too, but a ``fit`` that ends by an exception in training leaves
    the held ones; ``optimizer.eval()`` moves them. Where there is no optimizer (``trainer.test`` on a fresh module)
    the weights are taken as they are, and so are weights that a callback has put into the module at the end of
    training, such as an average.

    A checkpoint's ``state_dict`` is at the eval point, whenever it is saved, so ``load_from_checkpoint`` and
    ``trainer.test(ckpt_path=...)`` get the answer; after that, a fitted trainer drops its optimizers, whose state
    belongs to other weights. The held weights lie beside it with the state of a :class:`WeightAverage`, and
    ``trainer.fit(ckpt_path=...)`` goes on from those, bit for bit; without this class it would go on from the wrong
    ones. Lightning's ``WeightAveraging`` and ``EMAWeightAveraging`` average the held weights and put the average into
    ``state_dict``; then the held ones are where Lightning looks for them (``current_model_state``).

    A :class:`TwoLoopNeumann` without a ``model`` is given this module, whose buffers it then keeps still in a step.

    Raises:
        ValueError: at the start of training, where the Trainer would train, log or save something else than it seems:
            gradient clipping, or ``LearningRateMonitor(log_momentum=True)`` of a momentum ramp, for :class:`Neumann`;
            clipping, scaled gradients (float16), accumulation, or other data than the batch for
            :class:`TwoLoopNeumann`;
            ``ModelPruning`` and strategies that shard weights (FSDP, DeepSpeed) for any optimizer whose eval point is
            not the held one.
    """

    closure_has_the_step = False  # whether an optimizer's closure is of all micro-batches of a step, not of the last
    _running: frozenset[str] = frozenset()  # the hooks that are being called
    _modes: dict[nn.Module, bool] | None = None  # of the parts before an evaluation that has not ended
    _sums: Tensor | None = None  # of the weights' bits at the end of the last epoch
    _exchanged: tuple[int, Tensor] | None = None  # the step at which a callback put other weights here, and their sums
    _left_out: dict[str, Any] | None = None  # of a checkpoint, what Lightning does not load, until there are optimizers

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put the part of this class around the hooks that ``cls`` has, whoever defines them."""
        super().__init_subclass__(**kwargs)
        _put_around_hooks(cls)
        cls.__setattr__ = _noticing(cls.__setattr__)  # type: ignore[method-assign]

    def _optimizers_moving(self) -> list[Optimizer]:
        """Return the optimizers whose eval point is not the held one, [] while the weights are not theirs."""
        if self._exchanged is not None:
            step, sums = self._exchanged
            if step != self.trainer.global_step:  # SWA's last epoch counts a step, which has no gradients
                is_same = torch.equal(sums, bit_sums(self))
                self._exchanged = (self.trainer.global_step, sums) if is_same else None
        if self._exchanged is not None:
            return []
        return [each for each in self.trainer.optimizers if eval_point(each) != "held"]

    def _move(self) -> None:
        for optimizer in self._optimizers_moving():
            _join_devices(optimizer)
            move_to_eval_point(optimizer)

    def _move_back(self, *, quietly: bool = False) -> None:
        for optimizer in self.trainer.optimizers:
            move_back(optimizer, quietly=quietly)

    def _load_what_is_left_out(self) -> None:
        """Load what Lightning leaves out: the states of wrapped optimizers, and averages."""
        left, self._left_out = self._left_out, None
        if left is None:
            return
        optimizers = self.trainer.optimizers
        inside = zip(optimizers, left.get("optimizer_states", ()), left.get(WRAPPED_STATES, ()), strict=False)
        for optimizer, own, (states, shared) in inside:
            if states:
                load_states(optimizer, own, states, shared)
        for optimizer, state in zip(optimizers, left.get(WEIGHT_AVERAGES, ()), strict=False):
            average = WeightAverage.of(optimizer)
            if average is not None and state is not None:
                average.load_state_dict(state)

    def _add_wrapped_states(self, checkpoint: dict[str, Any]) -> None:
        """Put the states that wrappers leave out into ``checkpoint``, as they are now."""
        inside = [(states_inside(each), shares_groups(each)) for each in self.trainer.optimizers]
        if any(states for states, _ in inside):
            checkpoint[WRAPPED_STATES] = inside

    def _note_exchange(self) -> None:
        """Note whether a callback has changed the weights since the end of the last epoch, as SWA does at the end."""
        if self._sums is not None:
            sums = bit_sums(self)
            if not torch.equal(self._sums, sums):
                self._exchanged = (self.trainer.global_step, sums)
        self._sums = None

    @contextmanager
    def _around_train_start(self) -> Iterator[None]:
        _require_sound(self.trainer)
        for loop in filter(None, map(inner_loop_of, self.trainer.optimizers)):
            _require_sound_loop(loop, self.trainer, is_whole=self.closure_has_the_step)
            loop.model = self if loop.model is None else loop.model
        self._sums = self._exchanged = None
        self._load_what_is_left_out()
        self._move_back()
        if self._modes is not None:  # an evaluation that an exception has ended
            _put_modes(self._modes)
            self._modes = None
        yield

    @contextmanager
    def _around_train_epoch_start(self) -> Iterator[None]:
        self._note_exchange()
        yield

    @contextmanager
    def _around_train_epoch_end(self) -> Iterator[None]:
        yield
        self._sums = bit_sums(self) if self._optimizers_moving() else None

    @contextmanager
    def _around_train_end(self) -> Iterator[None]:
        self._note_exchange()
        self._move()
        yield

    @contextmanager
    def _around_model_eval(self) -> Iterator[None]:
        self._load_what_is_left_out()
        self._move()
        if self._modes is None:
            self._modes = {part: part.training for part in self.modules()}
        yield

    @contextmanager
    def _around_evaluation_end(self) -> Iterator[None]:
        yield
        self._modes = None  # Lightning puts them back
        if self.trainer.state.fn == "fit":
            self._move_back()

    @contextmanager
    def _around_clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> Iterator[None]:
        if gradient_clip_val and isinstance(wrapped(optimizer)[-1], Neumann | TwoLoopNeumann):
            raise no_clipping(f"clip_gradients(gradient_clip_val={gradient_clip_val})")
        yield

    @contextmanager
    def _around_save_checkpoint(self, checkpoint: dict[str, Any]) -> Iterator[None]:
        """Put the eval point's weights into ``checkpoint``, and the held ones beside them with the state at them."""
        self._load_what_is_left_out()
        trainer = self.trainer
        is_state = "optimizer_states" in checkpoint
        averages = [WeightAverage.of(optimizer) for optimizer in trainer.optimizers]
        if is_state and any(averages):
            checkpoint[WEIGHT_AVERAGES] = [None if each is None else each.state_dict() for each in averages]
        optimizers = self._optimizers_moving()
        if not optimizers:
            if is_state:
                self._add_wrapped_states(checkpoint)
            yield
            return
        params = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        present = copies(params)
        are_moved = any(map(is_moved, optimizers))
        for optimizer in optimizers:
            _join_devices(optimizer)
            move_back(optimizer, quietly=True)
        held = Weights(params)
        if is_state:  # perhaps taken at the eval point, where ModelCheckpoint may save
            states = [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers]
            checkpoint["optimizer_states"] = states
            self._add_wrapped_states(checkpoint)
        # a callback may have put an average there; what it has saved of this module is what training goes on from
        is_replaced = not held.are_in(checkpoint["state_dict"])
        if is_replaced:
            checkpoint.update({key: held.copied_into(value) for key, value in checkpoint.items()})
        for optimizer in optimizers:
            move_to_eval_point(optimizer)
        if are_moved:
            put(params, present)  # perhaps not what the optimizer would move to: a callback may have put others there
        try:
            yield
            answer = Weights(params)
            if is_state and not is_replaced:
                checkpoint[HELD_WEIGHTS] = held.by_name(checkpoint["state_dict"], self)
            done = ("optimizer_states", HELD_WEIGHTS, WEIGHT_AVERAGES, WRAPPED_STATES)
            for key in checkpoint.keys() - done:
                checkpoint[key] = answer.copied_into(checkpoint[key])
        finally:
            if not are_moved:
                for optimizer in optimizers:
                    move_back(optimizer, quietly=True)
            put(params, present)

    @contextmanager
    def _around_load_checkpoint(self, checkpoint: dict[str, Any]) -> Iterator[None]:
        """Load the held weights where training goes on, and those of the eval point for any other purpose."""
        trainer = attached_trainer(self)
        if trainer is not None and trainer.state.fn == "fit":
            self._move_back(quietly=True)
            left_out = ["optimizer_states", WRAPPED_STATES] if WRAPPED_STATES in checkpoint else []
            self._left_out = {key: checkpoint[key] for key in (*left_out, WEIGHT_AVERAGES) if key in checkpoint}
            held = checkpoint.get(HELD_WEIGHTS, {})
            checkpoint["state_dict"] = {k: held.get(k, value) for k, value in checkpoint["state_dict"].items()}
        elif trainer is not None:
            trainer.optimizers = []  # their state is that of the old weights; fit makes new ones
        yield


_AROUND: dict[str, Callable[..., AbstractContextManager[None]]] = {
    "on_train_start": AtEvalPoint._around_train_start,
    "on_train_epoch_start": AtEvalPoint._around_train_epoch_start,
    "on_train_epoch_end": AtEvalPoint._around_train_epoch_end,
    "on_train_end": AtEvalPoint._around_train_end,
    **{f"on_{stage}_model_eval": AtEvalPoint._around_model_eval for stage in ("validation", "test", "predict")},
    **{f"on_{stage}_end": AtEvalPoint._around_evaluation_end for stage in ("validation", "test", "predict")},
    "clip_gradients": AtEvalPoint._around_clip_gradients,
    "on_save_checkpoint": AtEvalPoint._around_save_checkpoint,
    "on_load_checkpoint": AtEvalPoint._around_load_checkpoint,
}


def _put_around_hooks(cls: type) -> None:
    for name, around in _AROUND.items():
        hook = getattr(cls, name, None)
        if hook is not None and name not in vars(hook).get("_at_eval_point", ()):
            setattr(cls, name, _with(name, around, hook))


def _noticing(set_attribute: Callable[..., None]) -> Callable[..., None]:
    """Return a module's ``__setattr__`` that puts `AtEvalPoint`'s part around hooks assigned after the class was made.

    Those assigned to the class are found when Lightning attaches its trainer to the module.
    """
    if "_at_eval_point" in vars(set_attribute):
        return set_attribute

    @functools.wraps(set_attribute)
    def set_and_notice(self: AtEvalPoint, name: str, value: Any) -> None:
        if name == "trainer":
            _put_around_hooks(type(self))
        elif name in _AROUND and callable(value):
            hook = value
            value = MethodType(_with(name, _AROUND[name], lambda _, *args, **kwargs: hook(*args, **kwargs)), self)
        set_attribute(self, name, value)

    set_and_notice._at_eval_point = ()  # type: ignore[attr-defined]
    return set_and_notice


def _with(
    name: str, around: Callable[..., AbstractContextManager[None]], hook: Callable[..., Any]
) -> Callable[..., Any]:
    """Return ``hook`` within ``around``, which a hook that is called from it by ``super()`` does not enter again."""

    @functools.wraps(hook)
    def call(self: AtEvalPoint, *args: Any, **kwargs: Any) -> Any:
        if name in self._running:
            return hook(self, *args, **kwargs)
        object.__setattr__(self, "_running", self._running | {name})  # nn.Module's takes long, and this is every step
        try:
            with around(self, *args, **kwargs):
                return hook(self, *args, **kwargs)
        finally:
            object.__setattr__(self, "_running", self._running - {name})

    call._at_eval_point = (name,)  # type: ignore[attr-defined]
    return call


def _require_sound(trainer: Any) -> None:
    """Refuse what would train or save something else than it seems.

    Raises:
        ValueError: the trainer has been given such a thing; the message says what to do instead.
    """
    optimizers = [wrapped(each)[-1] for each in trainer.optimizers]
    neumanns = [each for each in optimizers if isinstance(each, Neumann)]
    if neumanns and trainer.gradient_clip_val:
        raise no_clipping(f"Trainer(gradient_clip_val={trainer.gradient_clip_val})")
    ramps = [each for each in neumanns if isinstance(each.defaults["momentum"], (tuple, list))]
    for callback in trainer.callbacks:
        names = {each.__name__ for each in type(callback).__mro__}
        if ramps and "LearningRateMonitor" in names and callback.log_momentum:
            raise ValueError(
                "LearningRateMonitor(log_momentum=True) logs one number, and Neumann's momentum is the ramp "
                f"{ramps[0].defaults['momentum']}: leave log_momentum out, or pass a number as Neumann's momentum"
            )
        if "ModelPruning" in names:
            _require_none_moves(optimizers, "ModelPruning saves the weights that it finds, which are displaced")
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel")):
        _require_none_moves(optimizers, f"{strategy} saves sharded weights without asking the module")


def _require_sound_loop(loop: TwoLoopNeumann, trainer: Any, *, is_whole: bool) -> None:
    """Refuse what ``loop`` cannot be driven by; ``is_whole``: the closure is of a whole step."""
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            "TwoLoopNeumann takes several gradients a step by its closure, and float16's scaling of the loss passes "
            'none on: choose precision="bf16-mixed" or "32-true"'
        )
    if trainer.gradient_clip_val:
        raise no_clipping(f"Trainer(gradient_clip_val={trainer.gradient_clip_val})")
    for key, plain, why in (
        ("inner_data", "same", "asks its closure for other data at every gradient, and Lightning's is of one batch"),
        ("solver", "series", "differentiates the gradient, and Lightning's closure leaves none to differentiate"),
    ):
        if (value := loop.param_groups[0][key]) != plain and not is_whole:
            raise ValueError(
                f"TwoLoopNeumann({key}={value!r}) {why}: train by `neumann train`, in a loop of your own, or with "
                f"{key}={plain!r}"
            )
    if trainer.accumulate_grad_batches > 1 and not is_whole:
        raise ValueError(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) gives TwoLoopNeumann a closure of the "
            "last micro-batch alone, and its inner loop is over the whole batch: leave accumulation out, or train by "
            "`neumann train`, whose closure has all of them"
        )


def _require_none_moves(optimizers: list[Optimizer], why: str) -> None:
    for optimizer in optimizers:
        if eval_point(optimizer) != "held":
            raise ValueError(
                f"AtEvalPoint cannot keep checkpoints at the eval point of {type(optimizer).__name__} here: {why}; "
                "train without it, or with an optimizer whose eval point is the held one"
            )


def _put_modes(modes: dict[nn.Module, bool]) -> None:
    for part, training in modes.items():
        part.training = training


def _join_devices(optimizer: Any) -> None:
    """Move the state to its parameters: after fit, Lightning leaves it on the CPU, and test moves the module alone."""
    for each in wrapped(optimizer):
        for p, state in getattr(each, "state", {}).items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.device != p.device:
                    state[name] = value.to(p.device)
