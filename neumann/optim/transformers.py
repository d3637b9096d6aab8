"""A callback with which transformers' Trainer evaluates and saves at the optimizer's eval point.

It is imported by name, since it needs transformers::

    Trainer(model, arguments, ..., optimizers=(optimizer, None), callbacks=[SaveAtEvalPoint()])
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from neumann.optim.argument_checks import no_clipping
from neumann.optim.neumann import Neumann
from neumann.optim.points import eval_point, has_modes
from neumann.optim.wrappers import wrapped


class SaveAtEvalPoint(TrainerCallback):
    """Callback that moves the weights to the eval point before each evaluation and save, and at the end of training.

    The Trainer (5.24) itself calls ``optimizer.eval()`` in ``evaluate`` and ``optimizer.train()`` in the next training
    step. So without this callback a checkpoint holds the answer where an evaluation came before it in the same step,
    and the displaced weights otherwise; and a training that ends without an evaluation leaves the model displaced.
    With it, every ``model.safetensors`` is the answer and ``optimizer.pt`` holds the weights to go on from, so that
    ``train(resume_from_checkpoint=...)`` goes on to the same bits.

    Raises:
        ValueError: at the start of training: the Trainer would clip gradients (``max_grad_norm``, 1.0 by default) for
            :class:`Neumann`; or the optimizer has an eval point and no ``eval()``, as torch's Nesterov momentum.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Refuse what would train or save something else than it seems."""
        inside = wrapped(optimizer)[-1]
        if isinstance(inside, Neumann) and args.max_grad_norm:
            told = f"TrainingArguments(max_grad_norm={args.max_grad_norm}), 1.0 where none is given,"
            raise no_clipping(told, "pass max_grad_norm=0")
        if eval_point(optimizer) != "held" and not any(map(has_modes, wrapped(optimizer))):
            raise ValueError(
                f"transformers' Trainer cannot evaluate {type(inside).__name__} at its eval point: it calls the "
                "optimizer's eval() and train(), which this one does not have; neumann.optim.NesterovInner has them"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Move to the eval point where the Trainer is about to evaluate, to save or to stop; its next step moves back.

        At the end of training that lies before ``load_best_model_at_end`` takes the answer of a checkpoint: an
        ``evaluate()`` after it would else displace those weights by the last step's momentum.
        """
        if control.should_evaluate or control.should_save or control.should_training_stop:
            optimizer.eval()

    on_epoch_end = on_step_end
