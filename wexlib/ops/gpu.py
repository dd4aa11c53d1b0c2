"""Triton's kernels launched: the loops (:mod:`wexlib.ops.kernels`) and whole excitations of many
layers (:mod:`wexlib.ops.grouped`). Imported on a GPU only."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
import triton
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from wexlib.attention import CBAM, SE
from wexlib.excitation import Location, Standardize
from wexlib.magnitude import Magnitude
from wexlib.ops import fused, grouped, kernels
from wexlib.ops.deferred import DeferredWeight
from wexlib.ops.loops import recorded
from wexlib.parametrization import Chain, Parametrization, spatial

#: The activations that have a kernel, by their slope below 0.
SLOPES = {"relu": 0.0, "leaky_relu": 0.01}
#: The most places of a kernel and hidden numbers of a net that a program holds at once.
PLACES, HIDDEN = 64, 64
#: Channels of a block of the nets' gradients, and filters that are added at once.
BLOCK = 32


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


# --- What fits a group ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One of a weight's excitations: standardized or not, then ``part``, or nothing more."""

    standardize: bool
    part: Parametrization | None

    @property
    def net(self) -> int:
        """0 for none, 1 for SE, 2 for CBAM."""
        return (SE, CBAM).index(type(self.part.attention)) + 1 if self.names[1:] else 0

    @property
    def names(self) -> tuple[str, ...]:
        """The part's tensors, as they stand at the end of :data:`wexlib.ops.grouped.FIELDS`."""
        if self.part is None:
            return ()
        return "strength", *(f"{n}.{p}" for n in _nets(self.part) for p in ("weight", "bias"))

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        if self.part is None:
            return []
        nets = (getattr(self.part, name) for name in _nets(self.part))
        return [self.part.current_strength(dtype), *(p for n in nets for p in (n.weight, n.bias))]

    def constants(self, weight: Tensor) -> dict[str, object]:
        """What is the same in all layers of a launch."""
        places = weight.shape[2:].numel()
        tile = triton.next_power_of_2(places)
        same = {
            "STANDARDIZE": int(self.standardize),
            "LAST": places == 1 or not weight.is_contiguous(),
            "BC": max(32, min(128, kernels.TILE // tile)),
            "BK": tile,
        }
        if isinstance(self.part, Parametrization) and not self.net:
            return same | {"FACTOR": 1 + self.part.excitation.eps}
        skips = hidden = slope = 0
        if self.net:
            skips, hidden = int(self.part.excitation.skips), self.part.fc1.out_features
            slope = SLOPES[self.part.attention.activation]
        hidden = max(16, triton.next_power_of_2(hidden))
        return same | {"NET": self.net, "SKIP": skips, "SLOPE": float(slope), "BH": hidden}


def _nets(part: Parametrization) -> tuple[str, ...]:
    return tuple(name for name in ("fc1", "fc2", "spatial") if hasattr(part, name))


def _hooked(module: nn.Module) -> bool:
    """Whether something is to be called with it."""
    hooks = (n for n in vars(module) if n.endswith(("forward_hooks", "forward_pre_hooks")))
    return any(vars(module)[name] for name in (*hooks, "_backward_hooks", "_backward_pre_hooks"))


def steps(module: Parametrization, weight: Tensor) -> list[Step] | None:
    """What a module does to a weight, or None where that is not all a group's."""
    places, single = weight.shape[2:].numel(), weight.shape[1:].numel() == 1
    if recorded() or module.cores != (module,) or places > PLACES or single:
        return None
    chained = type(module.excitation) is Chain
    found, standardize = [], False
    for part in module.children() if chained else (module,):
        if type(part.excitation) is Standardize:
            if standardize:
                found.append(Step(True, None))
            standardize = True
        elif _is_net(part) or _is_artanh(part):
            found.append(Step(standardize, part))
            standardize = False
        else:
            return None
    if standardize:
        found.append(Step(True, None))
    tensors = [x for step in found for x in step.tensors(weight.dtype)]
    ready = fused.fits(weight, *tensors) and all(x.is_contiguous() for x in tensors)
    called = _has_any_global_hook() or any(map(_hooked, module.modules()))
    return found if ready and not called else None


def _is_net(part: Parametrization) -> bool:
    excitation = part.excitation
    if not (
        type(excitation) is Location
        and excitation.control in ("none", "frozen")
        and part.rest == 1
        and type(part.attention) in (SE, CBAM)
        and part.attention.deferred
        and part.attention.activation in SLOPES
        and part.attention.gate == "sigmoid"
    ):
        return False
    nets = [getattr(part, name) for name in _nets(part)]
    plain = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return all(type(net) in plain for net in nets) and part.fc1.out_features <= HIDDEN


def _is_artanh(part: Parametrization) -> bool:
    return type(part.excitation) is Magnitude and part.excitation.function == "artanh"


# --- Groups --------------------------------------------------------------------------------------


def together(modules: Sequence[Parametrization], weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Every excited weight, in one launch for all that one kernel serves; None where none does.

    A launch holds the layers of one excitation and about one size of kernel and net: for the
    twenty weights of ResNet-18 there are three with SE or CBAM, and twice two with magnitude. Each
    weight is the same to the last bit as alone.
    """
    plans = [steps(module, weight) for module, weight in zip(modules, weights, strict=True)]
    results = [None if plan is None else w for plan, w in zip(plans, weights, strict=True)]
    for depth in range(max((len(plan) for plan in plans if plan), default=0)):
        groups: dict[object, list[int]] = {}
        for i, plan in enumerate(plans):
            if plan and depth < len(plan):
                x = results[i]
                key = *plan[depth].constants(x).items(), x.dtype, x.device
                groups.setdefault(key, []).append(i)
        for members in groups.values():
            done = [plans[i][depth] for i in members]
            given = [results[i] for i in members]
            tensors = [x for step in done for x in step.tensors(given[0].dtype)]
            excited = Group.apply(done, *given, *tensors)
            for i, x in zip(members, excited, strict=True):
                results[i] = x
    return results


#: The tables that CUDA graphs read, for as long as these may be replayed.
KEPT: set[Tensor] = set()


@lru_cache(maxsize=4096)
def _made(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(list(zip(*rows, strict=True)), device=device)


def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """On the device. Addresses count from one another, so that it is made once for a model: its
    parameters stay where they are."""
    table = _made(rows, device)
    if table.is_cuda and torch.cuda.is_current_stream_capturing():
        KEPT.add(table)
    return table


def _up(size: int) -> int:
    """To 16 bytes."""
    return (size + 3) // 4 * 4


def _starts(sizes: list[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))


class Layout:
    """Where a group's tensors lie: see :data:`wexlib.ops.grouped.FIELDS`."""

    def __init__(self, done: list[Step], weights: tuple[Tensor, ...], tensors: tuple[Tensor, ...]):
        first, count = done[0], len(tensors) // len(done)
        self.own = [tensors[i : i + count] for i in range(0, len(tensors), count)] if count else []
        shapes = []
        for step, weight in zip(done, weights, strict=True):
            space = (1, 1, 1, *weight.shape[2:])[-3:]
            hidden = step.part.fc1.out_features if first.net else 0
            shapes.append((*weight.shape[:2], weight.shape[2:].numel(), hidden, *space[1:]))
        net, maps = first.net, max(first.net - 1, 0)
        artanh = first.part is not None and not net
        records, slopes = [], []
        for n, c, k, h, *_ in shapes:
            record = 3 + net * h + 2 * net * c + maps * 4 * k
            records.append(n * (4 if artanh else record))
            slopes.append(n * (3 if artanh else (c + net * h + maps * k) * (net > 0)))
        filters = _starts([s[0] for s in shapes])
        blocks = _starts([-(-s[1] // BLOCK) for s in shapes])
        results = _starts([_up(w.numel()) for w in weights])
        # The nets' gradients follow one another as their tensors do.
        self.inner = [_starts([_up(x.numel()) for x in own[1:]]) for own in self.own]
        gradients = _starts([inner[-1] for inner in self.inner]) if self.own else [0] * len(done)
        begins = [results, _starts(records), _starts(slopes), gradients]
        self.filters, self.blocks, self.results = filters[-1], blocks[-1], results
        self.records, self.slopes, self.gradients = (begin[-1] for begin in begins[1:])
        self.starts = gradients
        rows = []
        for i, (shape, weight) in enumerate(zip(shapes, weights, strict=True)):
            own = self.own[i] if self.own else ()
            row = [filters[i], blocks[i], *shape, _distance(weight, weights[0])]
            row += [begin[i] for begin in begins]
            row += [_distance(x, tensors[0]) for x in own]
            rows.append((*row, *[0] * (len(grouped.FIELDS) - len(row))))
        self.table = _table(tuple(rows), weights[0].device)
        self.base = tensors[0] if tensors else weights[0]
        constants = first.constants(weights[0])
        self.hidden = constants.get("BH")
        self.constants = constants | {"BL": triton.next_power_of_2(len(done))}


def _distance(x: Tensor, base: Tensor) -> int:
    return (x.data_ptr() - base.data_ptr()) // x.itemsize


def _part(flat: Tensor, start: int, x: Tensor) -> Tensor:
    """A part of ``flat``, of x's shape and memory format: no view, so that it may be written to."""
    storage, start = flat.untyped_storage(), flat.storage_offset() + start
    return flat.new_empty(0).set_(storage, start, x.shape, x.stride())


class Group(Function):
    """One step of several layers: their weights, then the parts' tensors, to the results."""

    @staticmethod
    def forward(ctx, done, *given):
        weights, tensors = given[: len(done)], given[len(done) :]
        layout = Layout(done, weights, tensors)
        new, count, constants = weights[0].new_empty, len(done), dict(layout.constants)
        y, record = new(layout.results[-1]), new(layout.records)
        reads = weights[0], layout.base, layout.table
        with torch.cuda.device_of(y):
            if "FACTOR" in constants:
                find = constants.copy()
                find.pop("FACTOR")
                launch(
                    grouped.find_largest,
                    layout.filters,
                    weights[0],
                    layout.table,
                    record,
                    count,
                    **find,
                )
                constants.pop("STANDARDIZE")
                kernel = grouped.excite_artanh
            else:
                kernel = grouped.excite
            launch(kernel, layout.filters, *reads, y, record, count, **constants)
        ctx.save_for_backward(*given, record)
        ctx.done, ctx.layout = done, layout
        ctx.set_materialize_grads(False)
        parts = zip(layout.results, weights, strict=False)
        return tuple(_part(y, start, weight) for start, weight in parts)

    @staticmethod
    def backward(ctx, *upstream):
        *given, record = ctx.saved_tensors
        if torch.is_grad_enabled() or recorded():
            return None, *_derived(ctx, given, upstream)
        layout, count = ctx.layout, len(ctx.done)
        weights, constants = given[:count], dict(layout.constants)
        new = record.new_empty
        with torch.cuda.device_of(record):
            g = _gathered(upstream, weights, layout)
            d_w, slopes = new(layout.results[-1]), new(layout.slopes)
            reads = weights[0], layout.base, layout.table, g, record
            if "FACTOR" in constants:
                sums = constants.copy()
                sums.pop("STANDARDIZE")
                launch(grouped.sum_artanh, layout.filters, *reads, slopes, count, **sums)
                kernel = grouped.excite_artanh_backward
            else:
                kernel = grouped.excite_backward
            launch(kernel, layout.filters, *reads, d_w, slopes, count, **constants)
            found = [_part(d_w, *part) for part in zip(layout.results, weights, strict=False)]
            found += _of_nets(ctx, layout, record, slopes)
        asked = [g is not None for g in upstream]
        asked += [one for one in asked for _ in layout.own[0]] if layout.own else []
        wanted = zip(found, ctx.needs_input_grad[1:], asked, strict=True)
        return None, *(x if want and one else None for x, want, one in wanted)


def _gathered(upstream: tuple, weights: list[Tensor], layout: Layout) -> Tensor:
    """The results' gradients as the results lie."""
    if len(weights) == 1:
        return fused.laid(upstream[0], weights[0])
    flat = weights[0].new_empty(layout.results[-1])
    parts = [_part(flat, *part) for part in zip(layout.results, weights, strict=False)]
    there = [i for i, g in enumerate(upstream) if g is not None]
    torch._foreach_copy_([parts[i] for i in there], [upstream[i] for i in there])
    for i in set(range(len(parts))) - set(there):
        parts[i].zero_()
    return flat


def _of_nets(ctx, layout: Layout, record: Tensor, slopes: Tensor) -> list[Tensor | None]:
    """The gradients of the parts' tensors."""
    count, net = len(ctx.done), ctx.done[0].net
    asked = ctx.needs_input_grad[1 + count :]
    if not (net and any(asked)):
        return [None] * len(asked)
    flat = record.new_empty(layout.gradients)
    reads = layout.table, record, slopes, flat, count
    tile = layout.constants
    block = {"BC": BLOCK, "BN": BLOCK, "BH": tile["BH"], "BL": tile["BL"]}
    launch(grouped.nets_backward, layout.blocks, *reads, NET=net, SLOPE=tile["SLOPE"], **block)
    if net > 1:
        launch(grouped.spatial_backward, count, *reads, BK=max(16, tile["BK"]), BN=BLOCK)
    found = []
    for start, own, inner in zip(layout.starts, layout.own, layout.inner, strict=False):
        parts = zip(own[1:], inner, strict=False)
        found += [None, *(_part(flat, start + begin, x) for x, begin in parts)]
    return found


def _derived(ctx, given: list[Tensor], upstream: tuple) -> tuple:
    """The gradients by autograd, to be differentiated again."""
    wanted, count = ctx.needs_input_grad[1:], len(ctx.done)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [x.view_as(x) if want else x for x, want in zip(given, wanted, strict=True)]
        tensors, outputs = inputs[count:], []
        for step, weight in zip(ctx.done, inputs, strict=False):
            x = DeferredWeight(spatial(weight))
            x = x.standardized() if step.standardize else x
            own = {name: tensors.pop(0) for name in step.names}
            if step.part is not None:
                x = functional_call(step.part, own, (x,))
            outputs.append(x.dense().view_as(weight))
        pairs = [(y, g) for y, g in zip(outputs, upstream, strict=True) if g is not None]
        outputs, upstream = zip(*pairs, strict=True)
        asked = [x for x, want in zip(inputs, wanted, strict=True) if want]
        shares = torch.autograd.grad(
            outputs, asked, upstream, create_graph=again, allow_unused=True
        )
    shares = iter(shares)
    return tuple(next(shares) if want else None for want in wanted)
