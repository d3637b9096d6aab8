"""A base class for LightningModules that validate, test, predict and save at the optimizer's eval point.

This module imports no Lightning, so it goes with ``pytorch_lightning`` and with ``lightning.pytorch``::

    class Classifier(AtEvalPoint, pl.LightningModule):
        def configure_optimizers(self):
            return Neumann(self.parameters(), lr=0.1)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from neumann.optim.points import at, evaluating
from neumann.optim.private_names import attached_trainer, base_optimizer

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule as _Module
else:
    _Module = object

HELD_WEIGHTS = "held_weights"  # of a checkpoint: the weights that training goes on from, by name


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Hold ``module`` in eval mode within the block, and put each part back into its own mode: frozen norms stay so."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class AtEvalPoint(_Module):
    """Base class that keeps evaluation and checkpoints at the eval point, for a module with any optimizers.

    It goes before ``LightningModule`` among the bases of a class.

    Validation, test and prediction move the weights to the optimizer's eval point (w − μm for Neumann and for Nesterov
    momentum) and back bit for bit, so they never change training. Where there is no optimizer (``trainer.test`` on a
    fresh module) the weights are taken as they are. After an exception in an evaluation the weights stay at the eval
    point until the next ``fit`` or evaluation, or ``optimizer.train()``.

    A checkpoint's ``state_dict`` is at the eval point, whenever it is saved, so ``load_from_checkpoint`` and
    ``trainer.test(ckpt_path=...)`` get the answer; after that, a fitted trainer drops its optimizers, whose state
    belongs to other weights. The held weights lie beside it, and ``trainer.fit(ckpt_path=...)`` goes on from those,
    bit for bit; without this class it would go on from the wrong ones. Sharded strategies (FSDP, DeepSpeed) are not
    supported: their checkpoints are not made of ``state_dict()``.
    """

    _evaluation: ExitStack | None = None

    def _enter(self) -> None:
        self._leave()  # an evaluation that an exception has ended has not left
        self._evaluation = ExitStack()
        self._evaluation.enter_context(eval_mode(self))
        for optimizer in self.trainer.optimizers:
            _join_devices(optimizer)
            self._evaluation.enter_context(evaluating(optimizer))

    def _leave(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

    def on_train_start(self) -> None:
        """Make sure that training begins at the held point."""
        self._leave()
        super().on_train_start()

    def on_validation_model_eval(self) -> None:
        """Move to the eval point."""
        self._enter()

    def on_validation_model_train(self) -> None:
        """Move back, bit for bit."""
        self._leave()

    def on_test_model_eval(self) -> None:
        """Move to the eval point."""
        self._enter()

    def on_test_model_train(self) -> None:
        """Move back, bit for bit."""
        self._leave()

    def on_predict_model_eval(self) -> None:
        """Move to the eval point."""
        self._enter()

    def on_predict_end(self) -> None:
        """Move back, bit for bit; there is no on_predict_model_train."""
        super().on_predict_end()
        self._leave()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the eval point's weights into the ``state_dict``, and the held ones beside it with the state at them."""
        super().on_save_checkpoint(checkpoint)
        optimizers = self.trainer.optimizers
        if not optimizers:
            return
        trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        ours = {name: p for name, p in self.state_dict(keep_vars=True).items() if id(p) in trained}
        with ExitStack() as points:
            for optimizer in optimizers:
                _join_devices(optimizer)
                points.enter_context(at(optimizer, "held"))
            if "optimizer_states" in checkpoint:  # perhaps taken at the eval point, where ModelCheckpoint may save
                states = [self.trainer.strategy.optimizer_state(optimizer) for optimizer in optimizers]
                checkpoint["optimizer_states"] = states
                checkpoint[HELD_WEIGHTS] = _copies(ours)
        with ExitStack() as points:
            for optimizer in optimizers:
                points.enter_context(evaluating(optimizer))
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **_copies(ours)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the held weights where training goes on, and those of the eval point for any other purpose."""
        super().on_load_checkpoint(checkpoint)
        self._leave()
        trainer = attached_trainer(self)
        if trainer is None:
            return
        if trainer.state.fn != "fit":
            trainer.optimizers = []  # their state is that of the old weights; fit makes new ones
        elif HELD_WEIGHTS in checkpoint:
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **checkpoint[HELD_WEIGHTS]}


def _copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _join_devices(optimizer: Any) -> None:
    """Move the state to its parameters: after fit, Lightning leaves it on the CPU, and test moves the module alone."""
    optimizer = base_optimizer(optimizer) or optimizer
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.device != p.device:
                state[name] = value.to(p.device)
