"""Triton's kernels (:mod:`wexlib.ops.kernels`) launched: imported on a GPU only."""

import torch
from torch import Tensor

from wexlib.ops import kernels


def launch(kernel, programs: int, *arguments, **constants) -> None:
    """One launch: the only place that makes one, so that they can be counted."""
    kernel[(programs,)](*arguments, **constants)


def launch_loop(
    name: str, given: list[Tensor | None], shape: tuple[int, int, int], last: bool
) -> None:
    """What :func:`wexlib.ops.fused.run` asks for, of tensors that it has checked."""
    tile = kernels.blocks(*shape[1:])
    with torch.cuda.device_of(next(x for x in given if x is not None)):
        for kernel, programs in zip(kernels.LOOPS[name], (shape[0], 1), strict=False):
            launch(kernel, programs, *given, *shape, LAST=last, **tile)
