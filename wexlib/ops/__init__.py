"""Functions of a weight, and who computes them.

Each has its formula in torch's operations (:mod:`wexlib.ops.formulas`), which any device computes,
and loops that read and write the weight as seldom as they can (:mod:`wexlib.ops.loops`): in C++ on
a CPU, and on a GPU in Triton, where a whole excitation, and that of many layers, is one kernel
(:mod:`wexlib.ops.gpu`).
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from wexlib.ops import fused, loops


def compute(formula: Callable, weight: Tensor, *given):
    """``formula(weight, *given)``, by whoever does it best: the one place that says who."""
    if loops.recorded() or not fused.fits(weight, *given):
        return formula(weight, *given)
    return loops.LOOPS[formula](weight, *given)


def _in_groups(modules: Sequence[Callable], weights: Sequence[Tensor]) -> list[Tensor | None]:
    from wexlib.ops import gpu  # Triton, on a GPU only

    return gpu.together(modules, weights)


#: Who excites many weights at once, by the kind of device that has one.
GROUPS = {"cuda": _in_groups}


def together(modules: Sequence[Callable], weights: Sequence[Tensor]) -> list[Tensor | None]:
    """The excited weights, in few launches: each ``module(weight)``, or None where it has to be
    called, as always on a CPU."""
    kinds = {weight.device.type for weight in weights} & GROUPS.keys()
    if not kinds or not fused.has_triton():
        return [None] * len(weights)
    return GROUPS[kinds.pop()](modules, weights)
