r"""The loss of one inner loop: ĝ, its gradients at points around the weights, and products with its Hessian.

ĝ is the loss of the step's data with the two regularizers of section 3.1 of Krishnan et al. (ICLR 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from neumann.optim.forward_state import ForwardState
from neumann.optim.phases import push_coefficient, total_beta
from neumann.optim.sharding import shards_of, sum_over_shards
from neumann.optim.tensors import Scalar, fitted, local, name_of, total_square

if TYPE_CHECKING:
    from neumann.optim.two_loop import TwoLoopNeumann

Vector = list[Tensor]  # one tensor for each parameter that is trained, in its type or float32, whichever is wider


class InnerLoss:
    """ĝ of one step: its gradients at points around w, within a block that begins and ends at w.

    Args:
        optimizer: whose step it is.
        closure: evaluates the loss of the step's data where the parameters are.
    """

    def __init__(self, optimizer: TwoLoopNeumann, closure: Callable[..., Any]) -> None:
        self.value: Any = None  # of the closure at w
        self.evaluations, self.products = 0, 0
        self.trained: list[tuple[Tensor, dict[str, Any]]] = []  # parameters with a gradient at w, and their groups
        self._closure, self._groups, self._state = closure, optimizer.param_groups, optimizer.state
        self._all = [(p, group) for group in self._groups for p in group["params"]]
        self._model = optimizer.model
        self._is_frozen = self._groups[0]["inner_data"] == "same"
        self._is_exact = optimizer.needs_graph
        self._graph: Vector = []  # the gradients at w with the graph that they come from
        self._pushes = any(group["alpha"] or group["beta"] for group in self._groups)
        self._w: list[Tensor] = []  # of the trained parameters, where they have moved away from it
        self._before: ForwardState | None = None
        self._after: ForwardState | None = None

    def __enter__(self) -> Self:
        if self._is_frozen and not self._is_exact and self._groups[0]["inner_steps"]:
            self._before = self._forward_state()
        if self._pushes:
            for p, _ in self._all:
                if "r" not in self._state[p]:
                    self._state[p]["r"] = torch.zeros_like(p, dtype=wide(p), memory_format=torch.preserve_format)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._graph = []
        for (p, _), w in zip(self.trained, self._w, strict=False):
            p.copy_(w)
        if self._after is not None:
            self._after.restore()

    def rates(self, like: Vector) -> list[Scalar]:
        """Return μ η_in of each trained parameter."""
        groups = [group for _, group in self.trained]
        etas = [group["lr"] if group["lr_in"] is None else group["lr_in"] for group in groups]
        return [fitted(group["mu"] * eta, m) for group, eta, m in zip(groups, etas, like, strict=True)]

    def gradient(self, k: int = 0, ahead: Vector | None = None) -> Vector:
        """Return ∇ĝ(w + ahead) of the trained parameters, ∇ĝ(w) at ``k`` = 0.

        Args:
            k: number of this gradient in the step.
            ahead: the displacement; None at k = 0.
        """
        if ahead is not None and self._is_exact:
            found = [
                (g.detach() + h).add(p + d, alpha=group["weight_decay"])
                for (p, group), g, h, d in zip(
                    self.trained, self._graph, self._hessian_times(ahead), ahead, strict=True
                )
            ]
        else:
            found = self._evaluated(k, ahead)
        return self._pushed(found, ahead) if self._pushes else found

    def matrix_times(self, vector: Vector) -> Vector:
        """Return ((1 − μ)I + μη_in(∇²f̂ + λI)) v, λ being the weight decay."""
        parts = zip(self.trained, self.rates(vector), vector, self._hessian_times(vector), strict=True)
        return [
            v * (1 - group["mu"]) + h.add(v, alpha=group["weight_decay"]) * rate for (_, group), rate, v, h in parts
        ]

    def _hessian_times(self, vector: Vector) -> Vector:
        """Return ∇²f̂(w) v by differentiating the gradient at w."""
        self.products += 1
        params = [p for p, _ in self.trained]
        linked = [(g, v.to(g.dtype)) for g, v in zip(self._graph, vector, strict=True) if g.requires_grad]
        if not linked:  # no parameter has a gradient
            return [torch.zeros_like(v) for v in vector]
        outputs, weights = zip(*linked, strict=True)
        found = torch.autograd.grad(outputs, params, weights, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(v) if h is None else h.to(v.dtype) for h, v in zip(found, vector, strict=True)]

    def _evaluated(self, k: int, ahead: Vector | None) -> Vector:
        """Return the gradient with weight decay of evaluation ``k``, at w + ahead."""
        if ahead is not None:
            self._w = self._w or [p.clone() for p, _ in self.trained]
            for (p, _), w, d in zip(self.trained, self._w, ahead, strict=True):
                p.copy_(w + d)
        self._evaluate(k)
        found = []
        for p, group in self.trained:
            g = torch.zeros_like(p, dtype=wide(p)) if p.grad is None else p.grad.to(wide(p))
            found.append(g.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else g)
        return found

    def _evaluate(self, k: int) -> None:
        """Call the closure where the parameters are, from the streams and buffers of the first call."""
        if k and self._before is not None:
            self._before.restore()
        torch.clear_autocast_cache()  # or a block around the step would go on with copies of other weights
        # fused attention has no second derivative
        kernels: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if self._is_exact else nullcontext()
        with torch.enable_grad(), kernels:
            value = self._closure() if self._is_frozen else self._closure(k)
        self.evaluations += 1
        if k == 0:
            self.value = value
            self.trained = [(p, group) for p, group in self._all if p.grad is not None]
            if self._before is not None:
                self._after = self._forward_state()
            if self._is_exact:
                self._keep_graph()
        for group in self._groups:
            for place, p in enumerate(group["params"]):
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise RuntimeError(
                        f"TwoLoopNeumann does not support sparse gradients, and {name_of(group, place)} has one: build "
                        "the embedding with sparse=False"
                    )

    def _keep_graph(self) -> None:
        """Keep the gradients with their graph, and leave plain ones in the parameters, which would hold it for ever."""
        self._graph = [p.grad for p, _ in self.trained if p.grad is not None]
        for p, _ in self.trained:
            p.grad = None if p.grad is None else p.grad.detach()
        if self.trained and not any(g.requires_grad for g in self._graph):
            raise RuntimeError(
                "TwoLoopNeumann's exact products differentiate the gradient, which has no graph here: call "
                "loss.backward(create_graph=True) in the closure, on one device, or choose solver='series'"
            )

    def _pushed(self, gradients: Vector, ahead: Vector | None) -> Vector:
        """Add (α‖x‖² − β/‖x‖²) x/‖x‖ to the gradients, with x = w + ahead − v and its norm over all parameters."""
        x = {id(p): self._state[p]["r"] for p, _ in self._all}
        for (p, _), d in zip(self.trained, ahead or (), strict=False):
            x[id(p)] = x[id(p)] + d
        distance = _squared_norm([p for p, _ in self._all], [*x.values()]).sqrt()
        found = []
        for (p, group), g in zip(self.trained, gradients, strict=True):
            beta = total_beta(group, self._groups)
            delta = math.sqrt(beta) if group["min_distance"] is None else group["min_distance"]
            c = push_coefficient(distance, group["alpha"], beta, delta)
            found.append(g + x[id(p)] * fitted(c, g))
        return found

    def _forward_state(self) -> ForwardState:
        return ForwardState((p for p, _ in self._all), self._model)


def wide(p: Tensor) -> torch.dtype:
    """Return the type of ``p``, but float32 for float16 and bfloat16."""
    return torch.promote_types(p.dtype, torch.float32)


def dot(params: list[Tensor], one: Vector, other: Vector) -> float:
    """Return the inner product of two vectors over all shards of ``params``, in float64 (float32 on MPS)."""
    if not params:
        return 0.0
    shares: list[tuple[tuple[Any, ...], Tensor]] = []
    for p, x, y in zip(params, one, other, strict=True):
        exact = torch.float32 if p.device.type == "mps" else torch.float64
        shares.append((shards_of(p), (local(x).to(exact) * local(y).to(exact)).sum()))
    return float(sum_over_shards(shares))


def _squared_norm(params: list[Tensor], vector: Vector) -> Tensor:
    """Return the squared norm of ``vector`` over all shards of ``params``, 0-dim in float64."""
    shares: dict[tuple[Any, ...], list[Tensor]] = {}
    for p, x in zip(params, vector, strict=True):
        shares.setdefault(shards_of(p), []).append(local(x))
    return sum_over_shards([(shards, total_square(xs)) for shards, xs in shares.items()])
