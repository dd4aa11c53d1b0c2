"""What operations move and hold, counted from the operations: the same on any machine."""

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wexlib.ops import fused

ATEN = torch.ops.aten
#: These write nothing.
EMPTY = {ATEN.empty.memory_format, ATEN.empty_like.default, ATEN.empty_strided.default}
EMPTY |= {ATEN.new_empty.default, ATEN.new_empty_strided.default}
#: These take dtype and device from their first argument, and do not read it.
LIKE = {ATEN.new_ones.default, ATEN.new_zeros.default, ATEN.new_full.default}
LIKE |= {ATEN.ones_like.default, ATEN.zeros_like.default, ATEN.full_like.default}
#: These touch their first argument only where their other arguments say.
SPARSE = {ATEN.scatter_add_.default, ATEN.index_add_.default, ATEN.scatter_.src}
SPARSE |= {ATEN.index_select.default, ATEN.gather.default}


def _bytes(tensor: Tensor) -> int:
    """Bytes that lie in memory: an expanded tensor counts what it was expanded from."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class _WithLoops(TorchDispatchMode):
    """Sees the loops of :mod:`wexlib.ops.fused` too, by ``_loop``, which goes on to ``_run``."""

    def __enter__(self):
        self._run, fused.run = fused.run, self._loop
        return super().__enter__()

    def __exit__(self, *error):
        fused.run = self._run
        return super().__exit__(*error)


class Traffic(_WithLoops):
    """Counts the bytes that operations read and write, in ``bytes``.

    Each operation, or loop of :mod:`wexlib.ops.fused`, reads its tensors once and writes its
    result once; one in place does both to its target, one with ``out=`` writes it. Views move
    nothing. What stays in a cache from one operation to the next counts all the same, as it does
    for large tensors; within a loop, whose filters fit a cache, it does not.
    """

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def _loop(self, name: str, weight: Tensor, reads: tuple, writes: tuple) -> None:
        self.bytes += sum(_bytes(t) for t in (*reads, *writes) if t is not None)
        self.bytes += _bytes(writes[0]) if "+" in fused.ARGUMENTS[name] else 0
        self._run(name, weight, reads, writes)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in EMPTY or func.is_view:
            return result
        given = _named(func, args, kwargs)
        aliased = any(argument.alias_info for argument in func._schema.arguments)
        for argument, value in given:
            info = argument.alias_info
            size = sum(_bytes(t) for t in tree_leaves(value) if isinstance(t, Tensor))
            if argument.name == "self" and func in SPARSE | LIKE:
                continue
            written = info is not None and info.is_write
            self.bytes += size * (2 if written and not argument.kwarg_only else 1)
        if not aliased:
            self.bytes += sum(_bytes(t) for t in tree_leaves(result) if isinstance(t, Tensor))
        if func in SPARSE:
            # The places that were touched: as many as the smallest of what was given, and read.
            self.bytes += min(
                _bytes(t) for _, value in given for t in tree_leaves(value) if isinstance(t, Tensor)
            )
        return result


def _named(func, args: tuple, kwargs: dict) -> Iterator[tuple]:
    """The arguments that were given, each with its place in the schema."""
    arguments = func._schema.arguments
    pairs = list(zip(arguments, args, strict=False))
    return pairs + [(a, kwargs[a.name]) for a in arguments[len(args) :] if a.name in kwargs]


class Operations(_WithLoops):
    """Counts the operations that compute, in ``torchs``, and the loops of wexlib, in ``loops``.

    On a GPU an operation of torch's is a kernel, seldom more, and a loop is one of Triton's.
    """

    def __init__(self):
        super().__init__()
        self.torchs = self.loops = 0

    def _loop(self, *given) -> None:
        self.loops += 1
        self._run(*given)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.torchs += not (func in EMPTY or func.is_view)
        return func(*args, **(kwargs or {}))


class Held(TorchDispatchMode):
    """Follows the bytes of the tensors that operations make: ``now`` held, ``peak`` at the most.

    Scratch memory within an operation is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(argument.alias_info for argument in func._schema.arguments):
            return result
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_):
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
