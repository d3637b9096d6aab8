"""Registration of the optimizers with timm's factory: one ``import neumann.optim.timm`` is enough.

Then ``timm.optim.create_optimizer_v2(model, opt="neumann", lr=0.1, weight_decay=1e-4)`` makes a
:class:`neumann.optim.Neumann`, and so does timm's train script with ``--opt neumann``, given this import at its top.

==================  ======================================  ================================================
``opt``             what it makes                           ``momentum``, which timm always passes
==================  ======================================  ================================================
``neumann``         :class:`neumann.optim.Neumann`          the PEAK of the paper's ramp: 0.9 is (0.5, 0.9)
``nesterovinner``   :class:`neumann.optim.NesterovInner`    μ
``burninsgd``       :class:`neumann.optim.BurnInSGD`        μ
==================  ======================================  ================================================

timm passes ``momentum=0.9`` where the user has chosen none, and cannot tell the two apart. Taken as a constant, it
would replace the paper's μ(t) by default and make ``momentum_unit`` a setting without effect. So a number is the peak,
timm's 0.9 is the paper's, and a pair is taken as it is: ``momentum=(0.9, 0.9)`` is the constant.

All else is as timm does it for every optimizer:

- Any further keyword reaches the optimizer: ``create_optimizer_v2(..., burn_in_steps=500)``, ``--opt-kwargs``.
- ``weight_decay`` is the L2 term inside the gradient, and ``filter_bias_and_bn`` leaves norms and biases out of it.
- ``eps`` and ``betas`` are dropped, as for timm's ``sgd``. ``lr=None`` is Neumann's own 0.01; the others need a rate.
- ``layer_decay`` puts ``lr_scale`` into the groups, which timm's schedulers multiply into each group's rate. The norm
  ‖w − v‖ stays that of all groups together. Layers below ``layer_decay_no_opt_scale`` are in no group, so they do not
  count in β's ``beta_count`` either.
- ``lookahead_neumann`` works. `neumann.optim.evaluating` finds the eval point inside timm's wrapper, which has no
  ``eval()`` of its own.
- There is no cautious variant: ``caution=True`` is refused.
"""

from __future__ import annotations

from typing import Any

from timm.optim import OptimInfo
from torch.optim.optimizer import ParamsT

from neumann.optim.burn_in_sgd import BurnInSGD
from neumann.optim.nesterov_inner import NesterovInner
from neumann.optim.neumann import Neumann
from neumann.optim.private_names import timm_registry

START = 0.5  # of the paper's ramp


class TimmNeumann(Neumann):
    """Constructor of a Neumann for timm, whose registry takes classes; what it makes is a plain :class:`Neumann`."""

    def __new__(cls, params: ParamsT, *args: Any, momentum: Any = 0.9, **settings: Any) -> Neumann:  # type: ignore[misc]
        """Return a Neumann for timm, which passes the ramp's peak as ``momentum``; a pair is (start, peak).

        Args:
            params: as in the constructor of :class:`Neumann`.
            args: its rate, where that is not given by name.
            momentum: the peak, in [0, 1), or a pair.
            settings: further keywords of the constructor.

        Raises:
            ValueError: an argument is not valid.
        """
        if isinstance(momentum, int | float) and not isinstance(momentum, bool):
            momentum = (min(START, momentum), momentum)
        return Neumann(params, *args, momentum=momentum, **settings)


# No underscores in the names: timm takes what stands before the last one for a prefix, as in lookahead_sgd.
for info in (
    OptimInfo(
        name="neumann",
        opt_class=TimmNeumann,
        description="Neumann optimizer (ICLR 2018), evaluate at optimizer.eval(); momentum is the peak of its ramp",
        has_eps=False,
        has_momentum=True,
    ),
    OptimInfo(
        name="nesterovinner",
        opt_class=NesterovInner,
        description="Nesterov momentum with the rate inside the buffer, evaluate at optimizer.eval()",
        has_eps=False,
        has_momentum=True,
    ),
    OptimInfo(
        name="burninsgd",
        opt_class=BurnInSGD,
        description="SGD with momentum after burn_in_steps of plain SGD",
        has_eps=False,
        has_momentum=True,
    ),
):
    timm_registry().register(info)
