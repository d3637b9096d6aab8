r"""Algorithm 1: the Neumann series for the Newton direction of one mini-batch, in an inner loop before every update.

Krishnan, Xiao, Saurous: "Neumann Optimizer: A Practical Optimization Algorithm for Deep Neural Networks", ICLR 2018,
arXiv 1712.03298, section 2, and the convexified inner iteration of section 3.1. It is the idea that Algorithm 2
(`neumann.py`) makes affordable; here it stands as it is, to be looked at: what does the loop itself do, what is lost by
a fresh mini-batch for every term, and what would exact curvature add?
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from neumann.optim import argument_checks
from neumann.optim.inner_loss import InnerLoss, Vector, dot, wide
from neumann.optim.tensors import fitted, name_of
from neumann.optim.wrappers import wrapped

INNER_DATA = ("same", "chunks", "fresh")
SOLVERS = ("series", "series_exact", "cg")
GRADIENTS_A_PRODUCT = 2  # that a product with the Hessian costs, in floating-point operations
SHARED = ("inner_steps", "inner_data", "solver")  # hyperparameters of the loop, the same in all groups


def convexified(largest: float, smallest: float) -> tuple[float, float]:
    r"""Return μ and η of section 3.1 for a Hessian with these extreme eigenvalues.

    μ = λ_max / (\|λ_min\| + λ_max) and η = 1/λ_max make (1 − μ)I + μη∇²f̂ positive definite, so that the series of
    :class:`TwoLoopNeumann` converges where the loss is not convex: they are its ``mu`` and ``lr_in``.

    Args:
        largest: λ_max, > 0.
        smallest: λ_min; 0 for a loss that is convex, which makes μ = 1.

    Raises:
        ValueError: ``largest`` is not a finite number > 0, or ``smallest`` is none.
    """
    lambda_max = argument_checks.number("largest", largest, above=0)
    lambda_min = argument_checks.number("smallest", smallest, above=-math.inf)
    return lambda_max / (abs(lambda_min) + lambda_max), 1 / lambda_max


def inner_loop_of(optimizer: Optimizer) -> TwoLoopNeumann | None:
    """Return ``optimizer``, or the one that it wraps, where that is a :class:`TwoLoopNeumann`, else None."""
    inside = wrapped(optimizer)[-1]
    return inside if isinstance(inside, TwoLoopNeumann) else None


class TwoLoopNeumann(Optimizer):
    r"""The idealised Neumann optimizer (Algorithm 1 of Krishnan, Xiao and Saurous, ICLR 2018, arXiv 1712.03298).

    .. math::
       \begin{aligned}
        &\textbf{for each mini-batch, frozen for the inner loop:} \\
        &\hspace{5mm} m_0 = -\nabla \hat g(w) \\
        &\hspace{5mm} \textbf{for} \: k = 1 \: \textbf{to} \: K\textbf{:} \hspace{5mm}
            m_k = \mu m_{k-1} - \nabla \hat g(w + \mu \eta_{in} m_{k-1}) \\
        &\hspace{5mm} w \leftarrow w + \eta_{out} m_K
       \end{aligned}

    With μ = 1 and without regularizers this is Algorithm 1 as printed, and on a quadratic m_K is the Neumann series
    −Σ (I − η_in∇²f̂)ⁱ ∇f̂, i = 0 … K: η_in·m_K tends to the Newton direction. Section 3.1 has the rate inside m
    (m ← μm − η∇ĝ(w + μm), w ← w + m), which is the same loop with η_in = η_out = η; :func:`convexified` gives its μ and
    η from the spectrum. ĝ adds the two regularizers of :class:`Neumann` to the loss, with v a moving average of w that
    moves with w, once a step. A step takes K + 1 gradients.

    It is driven by a closure, as :class:`torch.optim.LBFGS` is, and the weights move only at the end of the step: they
    are the answer, so validate, save and average them as they are::

        optimizer = TwoLoopNeumann(model.parameters(), lr_in=0.05, lr_out=0.05, inner_steps=4, model=model)
        for inputs, targets in batches:
            def closure():
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                return loss
            optimizer.step(closure)

    **One function.** The K + 1 gradients are of one function of the weights: before each of them torch's random streams
    are put back to where the first one found them, so dropout draws the same mask, and so are the buffers of ``model``.
    Batch norm normalises by the statistics of the frozen batch, and its running statistics move once. Afterwards
    streams and buffers are as after one forward pass at w. Without ``model`` buffers move K + 1 times.

    **Other data for every gradient.** With ``inner_data="chunks"`` each inner iteration takes the next part of the
    step's batch (figure 6 of the patent), with ``"fresh"`` a batch of its own (section 3.2). The closure is then called
    with the number of the gradient, k = 0 … K, and evaluates part k of K + 1, or the batch that it draws::

        def closure(k):
            optimizer.zero_grad()
            loss = loss_fn(model(inputs.chunk(5)[k]), targets.chunk(5)[k])
            loss.backward()
            return loss

    Nothing is put back in between: each gradient has a dropout mask of its own, and batch norm's running statistics
    move with each, from k = 1 on at displaced points, as they do in Algorithm 2. What is returned is the loss of k = 0.

    **Exact curvature, for comparison only.** With ``solver="series_exact"`` the same loop has exact Hessian-vector
    products in place of gradients at displaced points: ∇f̂(w) + μη_in∇²f̂ m for ∇f̂(w + μη_in m). With ``solver="cg"``,
    K conjugate gradients solve the system ((1 − μ)I + μη_in∇²f̂) m = −∇f̂, of which the loop sums the series. The
    closure is called once, and must call ``loss.backward(create_graph=True)``; the graph of the whole batch is kept for
    the step. A product costs two gradients and is counted so. Both need the frozen batch, and cannot be had under
    ``DistributedDataParallel``, whose gradients have no graph.

    **Memory.** Between steps nothing is kept, but for r = w − v where a regularizer acts; within one it is w, m and
    the displacement beside the gradient, each as large as the weights.

    Groups hold η_out as ``lr``, where schedulers look for it. Every hyperparameter can be set per group, except
    ``inner_steps``, ``inner_data`` and ``solver``.

    Args:
        params: parameters, or dicts of parameter groups.
        lr_in: η_in, the rate of the series, which converges on a convex quadratic where η_in·λ_max < 2. None: η_out of
            the moment, schedule and all (the patent's one rate).
        lr_out: η_out, the rate of the update, a number or a tensor of one; its schedule is the caller's. It is called
            ``lr`` in the groups.
        inner_steps: K, the terms of the series after the first; 0 is plain SGD.
        inner_data: ``"same"``: the batch of the step, frozen; ``"chunks"`` or ``"fresh"``: see above.
        mu: μ in [0, 1]; 1 is Algorithm 1.
        solver: ``"series"``: the loop above; ``"series_exact"`` or ``"cg"``: see above.
        alpha: α, the cubic term (attraction to v); gradient per squared weight norm.
        beta: β, the repulsive term (push away from v) per counted variable.
        beta_count: the variables that β counts: ``"tensors"``, ``"scalars"``, or ``"absolute"`` (β is ``beta``).
        gamma: γ, the share of v that its moving average keeps in a step, in [0, 1).
        min_distance: δ below which the repulsion falls off, in the unit of ‖w‖; None is √β, 0.0 the unguarded pole.
        weight_decay: coefficient of the L2 term inside the gradient, which is taken where the gradient is.
        model: the module that the closure runs, whose buffers are put back; None where it has none.

    Raises:
        ValueError: an argument is not valid, or a parameter is not a real floating-point tensor.
    """

    model: nn.Module | None = None
    gradient_evaluations = 0  # in the last step

    def __init__(
        self,
        params: ParamsT,
        lr_in: float | None,
        lr_out: float | Tensor,
        inner_steps: int,
        inner_data: str = "same",
        *,
        mu: float = 1.0,
        solver: str = "series",
        alpha: float = 0.0,
        beta: float = 0.0,
        beta_count: str = "tensors",
        gamma: float = 0.99,
        min_distance: float | None = None,
        weight_decay: float = 0.0,
        model: nn.Module | None = None,
    ) -> None:
        defaults = {
            "lr": lr_out,
            "lr_in": lr_in,
            "inner_steps": inner_steps,
            "inner_data": inner_data,
            "mu": mu,
            "solver": solver,
            "alpha": alpha,
            "beta": beta,
            "beta_count": beta_count,
            "gamma": gamma,
            "min_distance": min_distance,
            "weight_decay": weight_decay,
        }
        self.model = model
        super().__init__(params, _validated(defaults))

    @property
    def needs_graph(self) -> bool:
        """Whether the closure must call ``backward(create_graph=True)``."""
        return self.param_groups[0]["solver"] != "series"

    @property
    def gradients_an_example(self) -> int:
        """The gradient evaluations that a step takes of each example, an exact product counted as in a step."""
        group = self.param_groups[0]
        each = GRADIENTS_A_PRODUCT if self.needs_graph else 1
        return 1 + each * int(group["inner_steps"]) if group["inner_data"] == "same" else 1

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Take the inner loop at w, then move the weights.

        Args:
            closure: clears the gradients, evaluates the loss, calls ``backward()`` and returns the loss. It is given
                the number of the gradient unless ``inner_data`` is ``"same"``.

        Returns:
            What the closure returned first: the loss at the weights that the step began with.

        Raises:
            RuntimeError: there is no closure, or a gradient is sparse.
            ValueError: a hyperparameter that was set in a group is not valid.
        """
        if closure is None:
            raise RuntimeError(
                "TwoLoopNeumann.step needs a closure that evaluates the loss and its gradient again, as torch.optim."
                "LBFGS does; a GradScaler passes none on, so train in bfloat16 or float32 instead of float16"
            )
        self._require_valid_groups()
        loss = InnerLoss(self, closure)
        with loss:
            m = self._conjugate_gradients(loss) if self.param_groups[0]["solver"] == "cg" else self._series(loss)
        for (p, group), m_K in zip(loss.trained, m, strict=True):  # w ← w + η_out m_K
            u = m_K * fitted(group["lr"], m_K)
            p.copy_(p + u)
            if "r" in self.state[p]:  # v ← w + γ(v − w), kept as r = w − v
                self.state[p]["r"].add_(u).mul_(group["gamma"])
        torch.clear_autocast_cache()
        self.gradient_evaluations = loss.evaluations + GRADIENTS_A_PRODUCT * loss.products
        return loss.value

    def _series(self, loss: InnerLoss) -> Vector:
        """Return m_K."""
        m = [-g for g in loss.gradient()]
        for k in range(1, self.param_groups[0]["inner_steps"] + 1):
            ahead = [m_p * rate for m_p, rate in zip(m, loss.rates(m), strict=True)]  # μ η_in m
            further = zip(loss.trained, m, loss.gradient(k, ahead), strict=True)
            m = [m_p * group["mu"] - g for (_, group), m_p, g in further]
        return m

    def _conjugate_gradients(self, loss: InnerLoss) -> Vector:
        """Return what K conjugate gradients find for ((1 − μ)I + μη_in∇²f̂) m = −∇f̂, whose series m_K is.

        Along a direction in which the matrix is not positive there is no minimum: what was found before is returned,
        or −∇f̂ in the first iteration, as truncated Newton methods do (Dembo and Steihaug 1983).
        """
        residual = direction = [-g for g in loss.gradient()]
        params = [p for p, _ in loss.trained]
        m = [torch.zeros_like(r) for r in residual]
        square = dot(params, residual, residual)
        for k in range(self.param_groups[0]["inner_steps"]):
            if square == 0:
                break
            image = loss.matrix_times(direction)
            curvature = dot(params, direction, image)
            if not curvature > 0:
                return m if k else direction
            length = square / curvature
            m = [a.add(d, alpha=length) for a, d in zip(m, direction, strict=True)]
            residual = [r.sub(i, alpha=length) for r, i in zip(residual, image, strict=True)]
            before, square = square, dot(params, residual, residual)
            direction = [r.add(d, alpha=square / before) for r, d in zip(residual, direction, strict=True)]
        return m

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in :class:`torch.optim.Optimizer`; hyperparameters that it does not name are the defaults.

        Raises:
            ValueError: a hyperparameter is not valid or its name is misspelt, or a parameter is not a real
                floating-point tensor.
        """
        if isinstance(param_group, dict):  # torch says so otherwise
            valid = _validated({name: param_group.get(name, value) for name, value in self.defaults.items()})
            argument_checks.known_keys(param_group, valid, type(self).__name__)
            param_group.update(valid)
        super().add_param_group(param_group)
        for place, p in enumerate(self.param_groups[-1]["params"]):
            if not p.is_floating_point():
                name = name_of(self.param_groups.pop(), place)
                raise ValueError(f"TwoLoopNeumann trains real floating-point parameters, got {name} of {p.dtype}")

    def _require_valid_groups(self) -> None:
        """Refuse hyperparameters that were set in the groups after construction and are not valid."""
        for number, group in enumerate(self.param_groups):
            try:
                argument_checks.known_keys(group, _validated(group), type(self).__name__)
            except ValueError as error:
                raise ValueError(f"param_groups[{number}]: {error}") from error
        for name in SHARED:
            values = [group[name] for group in self.param_groups]
            if values.count(values[0]) != len(values):
                told = ", ".join(map(repr, values))
                raise ValueError(f"{name} belongs to the loop, so it must be the same in all groups, and is {told}")
        rates = [
            (group["mu"], group["lr"] if group["lr_in"] is None else group["lr_in"]) for group in self.param_groups
        ]
        if self.param_groups[0]["solver"] == "cg" and any(rate != rates[0] for rate in rates):
            raise ValueError(
                "solver='cg' needs a symmetric matrix, so mu and lr_in (or lr, where that is None) must be the same in "
                "all groups"
            )

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps groups, state and defaults alone: a copy would let the buffers of its model move K + 1 times
        kept = {"model": self.model, "gradient_evaluations": self.gradient_evaluations}
        return {**super().__getstate__(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as :class:`torch.optim.Optimizer` does, but keep r float32 for float16 and bfloat16 parameters.

        Raises:
            ValueError: the state was saved by another optimizer or for other parameters, or something in it is not
                valid; nothing has been changed then.
        """
        seen: list[dict[str, Any]] = []

        def last_before(_: Optimizer, loaded: dict[str, Any]) -> None:
            seen.append(loaded)  # as users' hooks have left it
            self._require_fitting(loaded)

        hooks = [
            self.register_load_state_dict_pre_hook(last_before),
            self.register_load_state_dict_post_hook(lambda _: self._takewide(seen[0]), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _require_fitting(self, loaded: dict[str, Any]) -> None:
        name = type(self).__name__
        argument_checks.state_dict(loaded, name, self.defaults)
        for index, group in enumerate(loaded["param_groups"]):
            with argument_checks.of_saved_group(name, index):
                argument_checks.known_keys(group, _validated(group), name)
        for own, group in zip(self.param_groups, loaded["param_groups"], strict=False):  # torch refuses other numbers
            for place, (p, index) in enumerate(zip(own["params"], group["params"], strict=False)):
                r = loaded["state"].get(index, {}).get("r")
                wrong = None if r is None else argument_checks.saved_tensor(r, p)
                if wrong is not None:
                    raise ValueError(f"the state 'r' of {name_of(own, place, index)} {wrong}")

    def _takewide(self, loaded: dict[str, Any]) -> None:
        for own, group in zip(self.param_groups, loaded["param_groups"], strict=True):
            for p, index in zip(own["params"], group["params"], strict=True):
                r = loaded["state"].get(index, {}).get("r")
                if r is not None:
                    self.state[p]["r"] = r.to(p.device, wide(p), copy=True)


def _validated(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group's hyperparameters as plain, valid values.

    Raises:
        ValueError: one of them is not valid; the message names it, the value and what is.
    """
    number, optional = argument_checks.number, group["min_distance"]
    lr_in, mu = group["lr_in"], number("mu", group["mu"])
    if mu > 1:
        raise ValueError(f"mu must be a finite number >= 0 and <= 1, got {group['mu']!r}")
    valid = {
        "lr": argument_checks.learning_rate(group["lr"]),
        "lr_in": None if lr_in is None else number("lr_in", lr_in),
        "inner_steps": argument_checks.whole("inner_steps", group["inner_steps"], least=0),
        "inner_data": argument_checks.choice("inner_data", group["inner_data"], INNER_DATA),
        "mu": mu,
        "solver": argument_checks.choice("solver", group["solver"], SOLVERS),
        "alpha": number("alpha", group["alpha"]),
        "beta": number("beta", group["beta"]),
        "beta_count": argument_checks.choice("beta_count", group["beta_count"], argument_checks.BETA_COUNTS),
        "gamma": number("gamma", group["gamma"], below=1),
        "min_distance": None if optional is None else number("min_distance", optional),
        "weight_decay": number("weight_decay", group["weight_decay"]),
    }
    if valid["solver"] != "series" and valid["inner_data"] != "same":
        raise ValueError(
            f"solver={valid['solver']!r} takes its products on the frozen batch: choose inner_data='same' or "
            "solver='series'"
        )
    if valid["solver"] == "cg" and (valid["alpha"] or valid["beta"]):
        raise ValueError("solver='cg' solves a linear system, which alpha and beta would not leave it: set both to 0")
    if valid["solver"] == "cg" and not valid["inner_steps"]:
        raise ValueError("inner_steps must be a whole number >= 1 for solver='cg', which has no term before the first")
    return valid
