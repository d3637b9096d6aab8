"""Answers of a trained run's network: class probabilities of images that are prepared as in its evaluation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from neumann.errors import UserError, first_line
from neumann.training.trained import Trained


def device_of(asked: str) -> torch.device:
    """Return the device that ``asked`` names; auto is a GPU where torch sees one. Raises UserError for one that is not.

    asked    auto, cpu, cuda, cuda:N, or another of torch's
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {asked} cannot be used here ({first_line(error)}): choose auto, cpu, cuda or cuda:1"
        ) from None
    if device.type == "meta":
        raise UserError("--device meta holds no numbers: choose auto, cpu, cuda or cuda:1")
    return device


class Answerer:
    """A trained run's network on a device, which answers with the precision that the run was evaluated in.

    Args:
        run: the run.
        device: where it answers; 16-mixed is full precision where it is no GPU, as torch has no such mode there.
    """

    def __init__(self, run: Trained, device: torch.device) -> None:
        self.device = device
        precision = "32-true" if run.precision == "16-mixed" and device.type != "cuda" else run.precision
        model, _ = run.network()
        self._model = model.to(device)
        self._dtype = next((p.dtype for p in model.parameters()), torch.float32)
        self._autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        shape = (-1, 1, 1)
        self._mean = torch.tensor(run.mean, dtype=torch.float32, device=device).reshape(shape) * 255
        self._std = torch.tensor(run.std, dtype=torch.float32, device=device).reshape(shape) * 255

    def _precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of normalised ``images`` [B, C, H, W]."""
        with self._precision():
            out: Tensor = self._model(images.to(self.device, self._dtype))
        return out.float()

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return class probabilities [B, classes] on the CPU of ``pixels``, uint8 [B, C, H, W]."""
        images = pixels.to(self.device, torch.float32).sub_(self._mean).div_(self._std)
        return self.logits(images).softmax(dim=1).cpu()
