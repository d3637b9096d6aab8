"""The momentum μ(t) and the reset rule, as pure functions of the step count t (Algorithm 2 and section 3.3).

t counts the optimizer's steps from 1, at the first step after burn-in (the paper's "for t = 1..T"). Nothing here keeps
state: t determines the phase, so a checkpoint needs one counter only.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

RESET_RULES = ("countdown", "absolute")
LAST_STEP = 2**53  # more steps than any run takes


def momentum(t: int, momentum: float | tuple[float, float], unit: float = 1.0) -> float:
    """Return μ(t) = min(peak, max(start, 1 − 1/(1 + t/unit))) for a pair (start, peak), or a number as it is.

    The paper: "μ(t) ∝ 1 − 1/(1+t), starting at 0.5, peaking at 0.9". With ``unit`` = 1 step the ramp takes 9 steps; the
    paper does not state the unit, so it is a parameter. A reset does not restart t.

    Args:
        t: steps since burn-in ended, from 1.
        momentum: a constant μ, or (start, peak).
        unit: steps in one unit of the ramp, > 0.
    """
    if not isinstance(momentum, (list, tuple)):
        return momentum
    start, peak = momentum
    return min(peak, max(start, 1 - 1 / (1 + t / unit)))


def momentum_tensor(t: Tensor, momentum: float | tuple[float, float], unit: float = 1.0) -> Tensor:
    """Return :func:`momentum` for a t on a device, in float64 and without waiting for it; meaningless at t < 1."""
    if not isinstance(momentum, (list, tuple)):
        return torch.full_like(t, momentum, dtype=torch.float64)
    start, peak = momentum
    return (1 - 1 / (1 + t.clamp(min=1).double() / unit)).clamp(start, peak)


def is_reset(t: int, period: int | None, growth: float = 2.0, rule: str = "countdown") -> bool:
    """Return whether step t is a reset ("if t ≡ 1 (mod K)", with K growing at every reset).

    The first step always is one. There are two readings of a K that grows:

    - ``countdown``: a reset K steps after the first, the next ``ceil(K g)`` after that one, then ``ceil(K g²)``, …
    - ``absolute``: t ≡ 1 modulo the K of the moment, which has grown once with every reset so far.

    Both come to t ≡ 1 (mod K) where growth is 1.

    Args:
        t: steps since burn-in ended, from 1.
        period: the first K in steps; None resets at t = 1 only.
        growth: the factor g >= 1 on K at every reset.
        rule: one of :data:`RESET_RULES`.

    Raises:
        ValueError: ``rule`` is unknown.
    """
    if rule not in RESET_RULES:
        raise ValueError(f"reset rule must be one of {RESET_RULES}, got {rule!r}")
    elapsed = t - 1
    if elapsed <= 0 or period is None:
        return elapsed == 0
    if growth == 1:
        return elapsed % period == 0
    if growth == 2:
        # countdown: resets at K + 2K + … + 2^(j-1) K = K (2^j − 1), hence elapsed/K + 1 is a power of two.
        # absolute: K is 2K after the first reset and its next multiple is 2K itself, where K becomes 4K; by induction
        # the j-th reset is at K 2^j, j >= 1, hence elapsed/K is a power of two from 2 on.
        periods, rest = divmod(elapsed, period)
        return rest == 0 and (_is_power_of_two(periods + 1) if rule == "countdown" else _is_power_of_two(periods, 2))
    return _is_reset_by_walking(elapsed, period, growth, rule)


def is_reset_tensor(t: Tensor, period: int | None, growth: float = 2.0, rule: str = "countdown") -> Tensor:
    """Return :func:`is_reset` for an integer t on a device, without waiting for it."""
    elapsed = t - 1
    if period is not None and growth == 1:
        return (elapsed >= 0) & (elapsed % period == 0)
    resets = _resets.__wrapped__ if torch.compiler.is_compiling() else _resets  # torch.compile warns of caches
    return (resets(period, growth, rule, t.device) == elapsed).any()


@functools.cache  # made once: a CUDA graph that is being captured allows no copy from the host
def _resets(period: int | None, growth: float, rule: str, device: torch.device) -> Tensor:
    """Return t − 1 of every reset up to :data:`LAST_STEP`, int64 [resets]."""
    resets, j = [0], 0 if rule == "countdown" else 1
    while period is not None and period * growth**j < LAST_STEP and resets[-1] < LAST_STEP:
        K = grown_period(period, growth, j)
        resets.append(resets[-1] + K if rule == "countdown" else (resets[-1] // K + 1) * K)
        j += 1
    return torch.tensor(resets, device=device)


def _is_power_of_two(n: int, least: int = 1) -> bool:
    return n >= least and n & (n - 1) == 0


def _is_reset_by_walking(elapsed: int, period: int, growth: float, rule: str) -> bool:
    """Return whether a reset falls on ``elapsed`` = t − 1 by walking from reset to reset.

    Their number grows with the logarithm of ``elapsed``, so this costs microseconds.
    """
    reset = 0  # t − 1 of the latest reset
    j = 0 if rule == "countdown" else 1  # K_j leads to the next one
    while reset < elapsed:
        if period * growth**j > elapsed + 1:  # before rounding up, which raises where the product is infinite
            return False
        K = grown_period(period, growth, j)
        reset = reset + K if rule == "countdown" else (reset // K + 1) * K  # K later, or the next multiple of K
        j += 1
    return reset == elapsed


def grown_period(period: int, growth: float, j: int) -> int:
    """Return K_j = ceil(K g^j), the period in steps after K has grown j times.

    100 × 1.1² is 121.00000000000001 in floating point, and 121 is meant: products are taken as exact to 12 digits.
    """
    return math.ceil(period * growth**j * (1 - 1e-12))
