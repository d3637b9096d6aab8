r"""Nesterov momentum with the learning rate inside the buffer: Neumann without regularizers, resets and burn-in.

It shows how much of a result of Neumann is Nesterov momentum on the same schedule. torch's SGD(nesterov=True) keeps the
rate outside the buffer; the two are one method while the rate is constant and part under a schedule (after a ramp of 20
steps the weights were 0.39 apart in relative distance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from neumann.optim import argument_checks
from neumann.optim.displaced import DisplacedOptimizer
from neumann.optim.tensors import (
    by_device_and_dtype,
    fitted,
    foreach_subtract_scaled_,
    subtract_scaled_,
    use_foreach,
    with_gradient,
)


class NesterovInner(DisplacedOptimizer):
    r"""SGD with Nesterov momentum, the learning rate inside the momentum buffer.

    .. math::
        m_t = \mu m_{t-1} - \eta_t g_t, \qquad
        w_t = w_{t-1} + \mu m_t - \eta_t g_t, \qquad
        \text{answer: } w_T - \mu m_T

    The held w is the displaced point, as in :class:`neumann.optim.Neumann`: evaluate and save final weights between
    ``optimizer.eval()``, which moves the parameters to the answer, and ``optimizer.train()``, which moves them back bit
    for bit; ``step()`` is refused in between. Parameters without a gradient are skipped.

    Args:
        params: parameters, or dicts of parameter groups; every hyperparameter can be set per group.
        lr: η, a number or a tensor of one; its schedule is the caller's.
        momentum: μ, in [0, 1).
        weight_decay: coefficient of the L2 term inside the gradient.
        maximize: climb instead of descend.
        foreach: True: multi-tensor, on lists at once; False: single-tensor; None: multi-tensor on CUDA only.

    Raises:
        ValueError: an argument is not valid.
    """

    saved_keys: ClassVar[tuple[str, ...]] = ("momentum", "point")
    never_saved: ClassVar[tuple[str, ...]] = ("alpha",)  # of Neumann, whose m has another meaning after a reset

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step at the held point.

        Args:
            closure: reevaluates the model, with gradients enabled, and returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: the parameters are not at the held point (after ``eval()``), or a gradient is sparse.
            ValueError: a hyperparameter that was set in a group is not valid.
        """
        away = self.point != "held"
        if away and (closure is not None or not self._may_be_asked_for_state_only()):
            self._require_held()
        self._require_valid_groups()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [with_gradient(group) for group in self.param_groups]
        state_only = away and self._is_asked_for_state_only(moved)
        if not state_only:
            self._require_held()
        for group, (params, grads) in zip(self.param_groups, moved, strict=True):
            for p in params:
                if "m" not in self.state[p]:
                    self.state[p]["m"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p]["coefficient"] = group["momentum"]
            if state_only:
                continue
            nesterov_inner(
                params,
                grads,
                [self.state[p]["m"] for p in params],
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                maximize=group["maximize"],
                foreach=use_foreach(group["foreach"], params),
            )
        if state_only:
            self._stash_held()
        return loss

    def _validated(self, hyperparameters: dict[str, Any], *, set_later: bool = False) -> dict[str, Any]:
        return argument_checks.nesterov_hyperparameters(hyperparameters, set_later=set_later)


def nesterov_inner(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
    foreach: bool,
) -> None:
    """Functional form of one step: ``params`` (w) and ``ms`` (m) change in place. See :class:`NesterovInner`.

    Args:
        params: w.
        grads: the gradients at w.
        ms: m, with the parameters' shapes, devices and types.
        lr: η, a number or a tensor of one.
        momentum: μ.
        weight_decay: the coefficient of the L2 term inside the gradient.
        maximize: turn the gradient's sign, not the decay's.
        foreach: multi-tensor instead of single-tensor.
    """
    run = _multi_tensor if foreach else _single_tensor
    for w, g, m in by_device_and_dtype(params, grads, ms):
        run(w, g, m, lr=fitted(lr, w[0]), momentum=momentum, weight_decay=weight_decay, maximize=maximize)


def _single_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    for w, g, m in zip(params, grads, ms, strict=True):
        d = -g if maximize else g
        if weight_decay:
            d = d.add(w, alpha=weight_decay)
        subtract_scaled_(m.mul_(momentum), lr, d)
        w.add_(subtract_scaled_(m * momentum, lr, d))


def _multi_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    d = torch._foreach_neg(grads) if maximize else grads
    if weight_decay:
        d = torch._foreach_add(d, params, alpha=weight_decay)
    torch._foreach_mul_(ms, momentum)
    foreach_subtract_scaled_(ms, lr, d)
    u = torch._foreach_mul(ms, momentum)
    foreach_subtract_scaled_(u, lr, d)
    torch._foreach_add_(params, u)
