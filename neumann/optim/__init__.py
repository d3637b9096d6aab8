"""The Neumann optimizer, its rivals, and the points at which any optimizer's weights can be evaluated.

- :class:`Neumann`: the Neumann optimizer (ICLR 2018); :class:`NeumannReference` is the same, slow and as the paper
  prints it.
- :class:`NesterovInner`: Neumann without regularizers, resets and burn-in.
- :class:`TwoLoopNeumann`: Algorithm 1, the Neumann series of one frozen mini-batch before every update, by closure;
  :func:`convexified` gives its μ and η from the spectrum.
- :class:`BurnInSGD`: momentum SGD after a burn-in of plain SGD, which is Neumann's.
- :class:`WeightAverage`: a moving average of the weights for any optimizer.
- :func:`points`, :func:`eval_point`, :func:`at` and :func:`evaluating`: the points of any torch optimizer, and the way
  there and back.

Importing this package imports torch and nothing else, so it can be lifted out, with `neumann/cache_folder.py`, in which
the compiled kernel looks for its place. Three modules are imported by name: `neumann.optim.timm` registers the
optimizers with timm's factory, `neumann.optim.lightning` evaluates a LightningModule at the eval point, and
`neumann.optim.transformers` has transformers' Trainer save there.
"""

from neumann.optim.average import WeightAverage
from neumann.optim.burn_in_sgd import BurnInSGD
from neumann.optim.nesterov_inner import NesterovInner
from neumann.optim.neumann import Neumann
from neumann.optim.points import at, eval_point, evaluating, points
from neumann.optim.reference import NeumannReference
from neumann.optim.two_loop import TwoLoopNeumann, convexified

__all__ = [
    "BurnInSGD",
    "NesterovInner",
    "Neumann",
    "NeumannReference",
    "TwoLoopNeumann",
    "WeightAverage",
    "at",
    "convexified",
    "eval_point",
    "evaluating",
    "points",
]
