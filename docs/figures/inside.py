"""Figure of the paper's central approximation on small networks: the error of a gradient that is carried along."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from docs.figures.plot import INK, LINES, figure, svg
from neumann.curvature import hessian_operator
from neumann.optim import Neumann, at

IMAGES, STEPS, RATE = 128, 60, 0.1
SIZES = torch.logspace(-4, 1, 41, dtype=torch.float64)  # of d, in displacements of the optimizer


def transport() -> str:
    """Draw ‖∇f̂(w + s d) − ∇f̂(w) − s ∇²f̂ d‖ / ‖s ∇²f̂ d‖ over s; d is Neumann's displacement after 60 steps."""
    drawn, (axes,) = figure(width=6.4, height=3.4)
    for (name, kind), colour in zip({"ReLU": nn.ReLU, "GELU": nn.GELU, "tanh": nn.Tanh}.items(), LINES, strict=False):
        axes.loglog(SIZES.numpy(), [100 * error for error in errors(kind)], color=colour, label=name)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.annotate("the optimizer's own", (1, 0.012), xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=9)
    axes.set(xlabel="size of the displacement, in the optimizer's own", ylabel="transport error, %")
    axes.legend()
    return svg(drawn, "The transport error against the size of the displacement, of networks with three activations")


def errors(activation: type[nn.Module]) -> list[float]:
    """Return the transport error at every size, on a batch of digits that the optimizer has not seen."""
    pixels, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images, labels = (pixels - pixels.mean()) / pixels.std(), digits.long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 10)).double()
    optimizer = Neumann(model.parameters(), RATE, momentum=0.9)
    for step in range(STEPS):
        at_once = torch.arange(step * IMAGES, (step + 1) * IMAGES) % (len(labels) - IMAGES)
        optimizer.zero_grad()
        cross_entropy(model(images[at_once]), labels[at_once]).backward()
        optimizer.step()
    held = nn.utils.parameters_to_vector(model.parameters()).detach()
    with at(optimizer, "base"):
        d = held - nn.utils.parameters_to_vector(model.parameters()).detach()
        loss = hessian_operator(model, cross_entropy, [(images[-IMAGES:], labels[-IMAGES:])])
    there, product = loss.gradient(), loss @ d

    def error(size: Tensor) -> float:
        return float((loss.gradient(size * d) - there - size * product).norm() / (size * product).norm())

    return [error(size) for size in SIZES]
