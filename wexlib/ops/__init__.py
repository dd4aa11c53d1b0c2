"""Functions of a weight, and who computes them.

Each has its formula in torch's operations (:mod:`wexlib.ops.formulas`), which any device computes,
and on a CPU loops in C++ that read and write the weight as seldom as they can
(:mod:`wexlib.ops.cpu`).
"""

from collections.abc import Callable

from torch import Tensor

from wexlib.ops import cpu, fused


def compute(formula: Callable, weight: Tensor, *given):
    """``formula(weight, *given)``, by whoever does it best: the one place that says who."""
    if cpu.recorded() or not fused.fits(weight, *given):
        return formula(weight, *given)
    return cpu.LOOPS[formula](weight, *given)
