"""Figures of the method, made by the optimizer itself on problems small enough to see."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from docs.figures.plot import INK, LINES, figure, svg
from neumann.optim import Neumann, at
from neumann.optim.momentum_and_resets import RESET_RULES, is_reset

CURVATURE = torch.diag(torch.tensor([0.12, 0.9], dtype=torch.float64))  # the Hessian A of ½ wᵀAw
START = (-2.6, 1.6)
CONTOURS = [0.02, 0.1, 0.25, 0.5, 0.9, 1.5, 2.3]


def _loss(w: Tensor) -> Tensor:
    return 0.5 * w @ CURVATURE @ w


def _contours(axes) -> None:
    x, y = torch.linspace(-3.2, 1.9, 120, dtype=torch.float64), torch.linspace(-2.0, 2.1, 120, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    height = 0.5 * (grid @ CURVATURE * grid).sum(-1)
    axes.contour(x.numpy(), y.numpy(), height.numpy(), CONTOURS, colors=INK, linewidths=0.6, alpha=0.35)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _path(axes, points: Tensor, colour: str, label: str, marker: str = "o", **style) -> None:
    axes.plot(
        points[:, 0].numpy(), points[:, 1].numpy(), marker=marker, color=colour, label=label, markersize=3.5, **style
    )


def series() -> str:
    """Draw the inner iteration z ← z − ∇f(w + z), which takes a gradient a step and ends in the Newton direction."""
    w = torch.tensor(START, dtype=torch.float64)
    newton = -w  # of a quadratic: to its minimum
    gradient = CURVATURE @ w
    z, steps = -gradient, [-gradient]
    for _ in range(40):
        at_displaced = CURVATURE @ (w + z)  # one gradient; (I − A) z + b by any other name
        assert torch.allclose(at_displaced, gradient + CURVATURE @ z)
        z = z - at_displaced
        steps.append(z)
    drawn, (left, right) = figure(2)
    _contours(left)
    _path(left, w + torch.stack([torch.zeros_like(w), *steps]), LINES[0], "w + z after 1, 2, … gradients")
    left.annotate("", (w + newton).tolist(), w.tolist(), arrowprops={"arrowstyle": "->", "color": LINES[1], "lw": 1.6})
    left.plot([], [], color=LINES[1], label="Newton's step")
    left.plot(*w.tolist(), "o", color=INK)
    left.annotate("w", w.tolist(), xytext=(-12, 2), textcoords="offset points", color=INK)
    left.legend(loc="lower left", fontsize=9)
    left.set_title("The series in the plane")
    errors = [float((z - newton).norm() / newton.norm()) for z in steps]
    right.semilogy(range(1, len(errors) + 1), errors, color=LINES[0])
    right.set_xlabel("gradients")
    right.set_ylabel("distance to Newton's step, relative")
    right.set_title("A factor 1 − λ a gradient, λ = 0.12 the least")
    return svg(drawn, "The Neumann series on a quadratic in the plane")


def _train(steps: int, *, lr: float, curvature: Tensor = CURVATURE, start=START, **arguments) -> tuple[Tensor, Tensor]:
    """Return the held points and the base points, [steps + 1, 2] each."""
    w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = Neumann([w], lr=lr, fused=False, **arguments)
    held, base = [w.detach().clone()], [w.detach().clone()]
    for _ in range(steps):
        w.grad = curvature @ w.detach()
        optimizer.step()
        held.append(w.detach().clone())
        with at(optimizer, "base"):
            base.append(w.detach().clone())
    return torch.stack(held), torch.stack(base)


def displaced() -> str:
    """Draw the point that is trained, w, and the answer, w − μm, over the same steps."""
    held, base = _train(26, lr=0.35, alpha=0.0, beta=0.0, momentum=0.8)
    drawn, (left, right) = figure(2)
    _contours(left)
    for i in range(2, 12):
        left.plot(*zip(held[i].tolist(), base[i].tolist(), strict=True), color=INK, alpha=0.4, linewidth=0.8)
    _path(left, held, LINES[1], "w, held: gradients are taken here")
    _path(left, base, LINES[0], "w − μm, base: the answer")
    left.legend(loc="lower left", fontsize=9)
    left.set_title("26 steps, α = β = 0, μ = 0.8")
    for points, colour, label in ((held, LINES[1], "held"), (base, LINES[0], "base")):
        right.semilogy([float(_loss(p)) for p in points], color=colour, label=label)
    right.set_xlabel("steps")
    right.set_ylabel("loss")
    right.set_title("Which point is judged changes the loss")
    right.legend(fontsize=9)
    return svg(drawn, "The held point and the base point of the same training")


def regularizers() -> str:
    """Draw the force of the two terms by distance, and what each does to a trajectory when it is made large."""
    drawn, (left, right) = figure(2)
    alpha, beta = 1.0, 0.02
    distance = torch.logspace(-2, 0.5, 200, dtype=torch.float64)
    guard = math.sqrt(beta)
    left.loglog(distance, alpha * distance**2, color=LINES[0], label="pull of α, α‖r‖²")
    left.loglog(distance, beta / distance**2, color=LINES[1], linestyle=":", label="push of β, β/‖r‖², as printed")
    guarded = beta * distance / distance.clamp(min=guard) ** 3
    left.loglog(distance, guarded, color=LINES[1], label="push of β with the guard δ = √β")
    left.axvline(guard, color=INK, alpha=0.3, linewidth=0.8)
    left.annotate("δ", (guard, 60), xytext=(3, 0), textcoords="offset points", color=INK)
    left.set_ylim(1e-3, 2e4)
    left.set_xlabel("‖r‖ = ‖w − v‖")
    left.set_ylabel("norm of the term in the gradient")
    left.set_title(f"α = {alpha:g}, β = {beta:g}, for the eye")
    left.legend(fontsize=9, loc="upper right")
    _contours(right)
    common = {"lr": 0.1, "momentum": 0.8, "beta_count": "absolute", "gamma": 0.95}
    cases = (("α = β = 0", 0.0, 0.0), ("α = 1", 1.0, 0.0), ("β = 0.03", 0.0, 0.03))
    for (label, a, b), colour in zip(cases, (LINES[2], LINES[0], LINES[1]), strict=True):
        _path(right, _train(120, alpha=a, beta=b, **common)[1], colour, label, marker="", alpha=0.9)
    right.set_xlim(-3.2, 1.9)
    right.legend(loc="lower left", fontsize=9)
    right.set_title("120 steps of the answer w − μm")
    return svg(drawn, "The two regularizers, by distance and on a trajectory")


def counting() -> str:
    """Draw how far repulsion alone drives w from v, with a ResNet-50's β by either count."""
    drawn, (axes,) = figure(height=3.4)
    lr, gamma, mu = 0.1, 0.99, 0.9
    common = {"lr": lr, "gamma": gamma, "momentum": mu, "alpha": 0.0, "beta_count": "absolute", "fused": False}
    counts = (("tensors: 161", 161, LINES[0]), ("scalars: 25.6 million", 25_557_032, LINES[1]))
    for label, count, colour in counts:
        beta = 1e-5 * count
        w = torch.nn.Parameter(torch.zeros(100, dtype=torch.float64))
        optimizer = Neumann([w], beta=beta, **common)
        stream = torch.Generator().manual_seed(0)
        distances = []
        for step in range(1500):
            noise = torch.randn(100, generator=stream, dtype=torch.float64)
            w.grad = 0.1 * noise if step < 3 else torch.zeros_like(w)
            optimizer.step()
            with at(optimizer, "held"):
                held = w.detach().clone()
            with at(optimizer, "average"):
                distances.append(float((held - w.detach()).norm()))
        axes.semilogy(range(3, 1500), distances[3:], color=colour, label=f"{label}, β = {beta:.2g}")
        steady = (gamma / (1 - gamma) * lr / (1 - mu) * beta) ** (1 / 3)
        axes.axhline(steady, color=colour, linestyle=":", linewidth=1)
        axes.annotate(f"{steady:.2g}", (1500, steady), xytext=(4, -4), textcoords="offset points", color=colour)
    axes.set_xlabel("steps; no gradient but in the first three")
    axes.set_ylabel("‖w − v‖")
    axes.set_title("Repulsion from one's own average drives the weights: γ = 0.99, η = 0.1, μ = 0.9")
    axes.legend(fontsize=9, loc="center right")
    return svg(drawn, "The distance that repulsion alone reaches, beta counting tensors or scalars")


def resets() -> str:
    """Draw where resets fall by either rule in the paper's recipe, over its 250 epochs, and its rate drops."""
    drawn, (axes,) = figure(height=2.2)
    burn_in, period, epochs = 5, 10, 250
    for row, rule in enumerate(RESET_RULES):
        found = [burn_in + t - 1 for t in range(1, epochs - burn_in + 1) if is_reset(t, period, rule=rule)]
        axes.plot(found, [row] * len(found), "|", color=LINES[row], markersize=18, markeredgewidth=2.5)
        for epoch in found:
            axes.annotate(str(epoch), (epoch, row), xytext=(4, 6), textcoords="offset points", color=INK, fontsize=9)
    for drop in range(45, epochs, 40):
        axes.axvline(drop, color=INK, alpha=0.25, linewidth=0.8)
    axes.set_yticks(range(len(RESET_RULES)), [f'"{rule}"' for rule in RESET_RULES])
    axes.set_ylim(-0.6, len(RESET_RULES) - 0.3)
    axes.set_xlim(0, epochs)
    axes.set_xlabel("epoch; a thin line is a drop of the synchronous schedule's rate")
    return svg(drawn, "Where resets fall by either rule")
