"""A CUDA graph's stand-in on a CPU: what is called is written down, and called again in order."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOK = torch.ops.aten._local_scalar_dense.default
#: What is written to by operations that do not say so.
UNSAID = {torch.ops.aten.native_batch_norm.default: {"running_mean", "running_var"}}


class Looks(TorchDispatchMode):
    """Notes whether a number was looked at."""

    seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen |= func is LOOK
        return func(*args, **(kwargs or {}))


class Beside:
    """A second stream, on a CPU: its order is in ``said``."""

    said: list = []

    def __init__(self, device):
        self.said.append("fork")

    def compute(self, function):
        values = function()
        self.said.append(("computed", len(values), tuple(values[0].shape)))
        return values, len(self.said)

    def wait(self, value, done):
        self.said.append(("waited", tuple(value.shape), done))

    def join(self):
        self.said.append("join")


class Tape(TorchDispatchMode):
    """The operations of one call, with the memory that each reads and writes.

    As with a CUDA graph, :meth:`record` leaves everything as it was, looking at a number fails, and
    :meth:`replay` runs the operations alone: no Python, no autograd, no version counted.
    """

    beside = Beside
    under_way = 0
    #: Every tape that was made: a test's to clear.
    made: list = []

    def __init__(self, device, after=None):
        super().__init__()
        self.after, self.operations, self.looked, self.replays = after, [], False, 0
        self.made.append(self)

    @classmethod
    def capturing(cls):
        return cls.under_way > 0

    def call(self, function):
        with Looks() as looks:
            result = function()
        self.looked = looks.seen
        return result

    def record(self, function):
        self.saved, self.own, random = {}, set(), torch.get_rng_state()
        Tape.under_way += 1
        try:
            with self:
                return function()
        finally:
            Tape.under_way -= 1
            torch.set_rng_state(random)
            for storage, before in self.saved.values():
                storage.copy_(before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is LOOK:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = [(a, x) for a, x in zip(func._schema.arguments, args, strict=False)]
        given += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
        for argument, value in given:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name in UNSAID.get(func, ()):
                for x in tree_leaves(value):
                    storage = x.untyped_storage()
                    if storage._cdata not in self.own | self.saved.keys():
                        self.saved[storage._cdata] = storage, storage.clone()
        result = func(*args, **kwargs)
        if not any(returned.alias_info for returned in func._schema.returns):
            made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            self.own.update(x.untyped_storage()._cdata for x in made)
        if not func.is_view:
            self.operations.append((func, args, kwargs, result))
        return result

    def replay(self):
        self.replays += 1
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
        with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(keys):
            for func, args, kwargs, result in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
