"""What is measured of the excitations: each function gives the rows of one CSV.

Forms of a model: ``plain``; ``control``, a second plain one, whose ratio shows what the machine
disturbs; ``naive``, see :mod:`benchmarks.naive`; ``ours``, by wexlib, in training with the weights
computed first; ``layer by layer``, ours without that; ``folded``, ours after ``wexlib.fold``.
Ratios are to ``plain`` in the same round; ``_low`` and ``_high`` are quartiles.
"""

import copy
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import wexlib
from benchmarks import naive
from benchmarks.counting import Held, Operations, Traffic
from benchmarks.measure import WARM, bandwidth, compared, interleaved, quartiles
from wexlib import CBAM, SE, Location, Magnitude, Standardize, models
from wexlib.ops.capture import Captured
from wexlib.parametrization import chain
from wexlib.related import DynamicConv2d, ODConv2d, replace
from wexlib.where import excited

NOVEL = Location(CBAM(activation="leaky_relu"), skips=True)
#: What is excited how: wexlib's excitation, and the naive layer.
METHODS = {
    "SE": ([Standardize(), Location(SE())], naive.SE),
    "CBAM with skips": ([Standardize(), NOVEL], naive.NovelCBAM),
    "magnitude": ([Standardize(), Magnitude()], naive.Magnitude),
}
#: Reads and writes of the weight that cannot be avoided. Forward: one read for the statistics, one
#: more for spatial attention, which follows the channel gate; one read and one write for the
#: result. Backward: two reads of the weight and of its gradient, and one write.
FLOOR = {
    name: {"forward": 3 + (name == "CBAM with skips"), "backward": 5, "both": 8} for name in METHODS
}
FLOOR["CBAM with skips"]["both"] = 9
#: The most that an excited training step may take of a plain one, by the batch.
CPU_BARS = {
    "SE": {32: 1.06, 128: 1.02},
    "CBAM with skips": {32: 1.10, 128: 1.03},
    "magnitude": {32: 1.06, 128: 1.02},
}
#: Of a captured step on a GPU, in bfloat16, deterministic; and of one's own loop with precompute.
GPU_BARS = {
    "SE": {512: 1.03, 128: 1.08},
    "CBAM with skips": {512: 1.06, 128: 1.15},
    "magnitude": {512: 1.03, 128: 1.08},
}
LOOP_BARS = {512: 1.10}


class Setting(NamedTuple):
    """One way to train: naive layers, ours layer by layer, and the captured step, or not."""

    batch: int
    channels_last: bool = False
    bf16: bool = False
    naive: bool = False
    captured: bool = False


@dataclass(frozen=True)
class Size:
    """How much is measured: ``FULL``, or ``QUICK`` to try the command; ``GPU`` what 4 minutes of
    one allow, and ``TRY_GPU`` that without one."""

    rounds: int
    width: int
    cpu: tuple[Setting, ...]
    gpu: tuple[Setting, ...]
    inference: tuple[int, ...]
    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    depths: tuple[str, ...]


FULL = Size(
    rounds=15,
    width=64,
    cpu=(
        Setting(8, channels_last=True),
        Setting(32, naive=True),
        Setting(32, channels_last=True, naive=True),
        Setting(128, channels_last=True),
        Setting(32, channels_last=True, bf16=True),
    ),
    gpu=(
        Setting(32, naive=True),
        Setting(128, channels_last=True, naive=True),
        Setting(512, bf16=True, naive=True),
        Setting(512, channels_last=True, bf16=True, naive=True, captured=True),
        Setting(128, channels_last=True, bf16=True, naive=True, captured=True),
    ),
    inference=(1, 32, 256),
    widths=(64, 128, 256, 512),
    kernels=(1, 3, 7),
    depths=("resnet18", "resnet34", "resnet50"),
)
QUICK = Size(
    rounds=2,
    width=8,
    cpu=(Setting(4, naive=True), Setting(4, channels_last=True, bf16=True)),
    gpu=(Setting(4, channels_last=True, bf16=True, naive=True),),
    inference=(1, 4),
    widths=(8, 16),
    kernels=(1, 3),
    depths=("resnet18",),
)
GPU = replace_fields(
    FULL,
    rounds=9,
    gpu=tuple(s for s in FULL.gpu if s.captured),
    inference=(512,),
)
TRY_GPU = replace_fields(
    QUICK,
    cpu=(Setting(4, channels_last=True, bf16=True, naive=True, captured=True),),
    inference=(4,),
)


def settings(size: Size, device: torch.device) -> tuple[Setting, ...]:
    """The settings for a device; bfloat16 only where the processor computes in it."""
    if device.type == "cuda":
        return size.gpu
    fast = torch.cpu.get_capabilities().get("avx512_bf16") or size in (QUICK, TRY_GPU)
    return tuple(s for s in size.cpu if fast or not s.bf16)


def deterministic() -> None:
    """On a GPU: kernels that give the same bits each time, as a run's, and none that is tried."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)  # naive layers have kernels that vary
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


# --- Models and what is done with them -----------------------------------------------------------


def network(
    size: Size, device: torch.device, change: Callable = lambda model: model, last: bool = False
) -> nn.Module:
    """CIFAR ResNet-18 from one start, changed by ``change``."""
    torch.manual_seed(0)
    model = change(models.build("resnet18", classes=10, width=size.width))
    return model.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)


def images(batch: int, device: torch.device, last: bool) -> Tensor:
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return x.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)


def optimizer_of(model: nn.Module, fused: bool | None = True) -> torch.optim.Optimizer:
    options = {"momentum": 0.9, "weight_decay": 5e-4, "fused": fused}
    return torch.optim.SGD(model.parameters(), lr=0.01, **options)


def training(
    model: nn.Module,
    x: Tensor,
    bf16: bool = False,
    first: bool = True,
    fused: bool | None = True,
    captured: bool = False,
) -> Callable[[], None]:
    """A step: forward, backward, update (SGD with momentum and decay), as in study.train.loop.

    ``first``: with the weights that wexlib excites computed before the first layer. ``captured``:
    as one CUDA graph, where there is a GPU.
    """
    labels = torch.arange(len(x), device=x.device) % 10
    optimizer = optimizer_of(model, fused)
    model.train()

    def step(x, labels):
        before = wexlib.precompute(model) if first else nullcontext()
        with before, torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            scores = model(x)
        loss = F.cross_entropy(scores.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return partial(Captured(step) if captured else step, x, labels)


def inference(model: nn.Module, x: Tensor) -> Callable[[], None]:
    model.eval()

    @torch.inference_mode()
    def call():
        model(x)

    return call


def changes(form: str) -> dict[str, Callable]:
    """For each method what makes a plain model excited, by wexlib or naively."""
    if form == "naive":
        return {name: partial(naive.excite, layer=layer) for name, (_, layer) in METHODS.items()}
    return {name: partial(wexlib.excite, excitation=parts) for name, (parts, _) in METHODS.items()}


LAYER_BY_LAYER = "layer by layer"
PLAIN = {("plain", "plain"): lambda model: model, ("plain", "control"): lambda model: model}


def _forms(*forms: str) -> dict[tuple[str, str], Callable]:
    return PLAIN | {(name, form): c for form in forms for name, c in changes(form).items()}


def _rows(times: dict, **common) -> list[dict]:
    rows = compared(times, ("plain", "plain"))
    return [common | {"method": name, "form": form} | row for (name, form), row in rows.items()]


# --- One function a CSV --------------------------------------------------------------------------


def train(size: Size, device: torch.device) -> list[dict]:
    """The time of a training step, and its ratio to the plain network's in the same way.

    ``way`` is eager or captured. ``tflops``: the plain network's products and convolutions, over
    the time.
    """
    rows, (_, flops) = [], operations(network(size, device), device)
    for setting in settings(size, device):
        for way in ("eager", "captured")[: 1 + setting.captured]:
            common = {
                "device": device.type,
                "batch": setting.batch,
                "memory_format": "channels_last" if setting.channels_last else "contiguous",
                "precision": "bf16" if setting.bf16 else "float32",
                "way": way,
            }
            times = interleaved(steps(size, device, setting, way), size.rounds, device)
            for row in _rows(times, **common):
                tflops = flops * setting.batch / row["ms"] / 1e9
                rows.append(row | {"tflops": tflops, "bar": _bar(row, setting)})
    return rows


def steps(size: Size, device: torch.device, setting: Setting, way: str) -> dict:
    """The steps of a setting, by method and form."""
    batch, last, bf16, with_naive, _ = setting
    forms = ["ours", *[LAYER_BY_LAYER] * (way == "eager"), "naive"][: 3 if with_naive else 1]
    x = images(batch, device, last)
    return {
        (name, form): training(
            network(size, device, change, last),
            x,
            bf16,
            first=form == "ours",
            captured=way == "captured",
        )
        for (name, form), change in _forms(*forms).items()
    }


def _bar(row: dict, setting: Setting) -> float | None:
    """The most that the ratio may be."""
    if row["form"] != "ours":
        return None
    if row["device"] == "cpu":
        return None if setting.bf16 else CPU_BARS[row["method"]].get(setting.batch)
    if not setting.captured:
        return None
    bars = GPU_BARS[row["method"]] if row["way"] == "captured" else LOOP_BARS
    return bars.get(setting.batch)


def operations(model: nn.Module, device: torch.device) -> tuple[int, int]:
    """Floating-point operations of one image: forward, and forward and backward."""
    with FlopCounterMode(display=False) as forward:
        scores = model(torch.zeros(2, 3, 32, 32, device=device))
    with FlopCounterMode(display=False) as backward:
        scores.sum().backward()
    one_way = forward.get_total_flops() // 2
    return one_way, one_way + backward.get_total_flops() // 2


def launches(size: Size, device: torch.device) -> list[dict]:
    """What a training step launches, counted, without a clock.

    On a GPU its kernels, by the profiler, and as ``host`` what Python launches: each, or a graph.
    Elsewhere torch's operations and, among them, wexlib's loops, of which a GPU makes a kernel.
    """
    rows, setting = [], settings(size, device)[-1]
    for way in ("eager", "captured"):
        for (method, form), step in steps(size, device, setting, way).items():
            if form == "control":
                continue
            for _ in range(WARM):
                step()
            kernels, loops, host = _count(step, device)
            rows.append(
                {"device": device.type, "way": way, "method": method, "form": form}
                | {"counted": "kernels" if device.type == "cuda" else "operations and loops"}
                | {"kernels": kernels, "loops": loops, "host": host}
            )
    return rows


def _count(step: Callable[[], None], device: torch.device) -> tuple[int, int | None, int | None]:
    """Kernels of a step, loops among them, launches by Python; None for what cannot be told."""
    if device.type == "cuda":
        kinds = torch.profiler.ProfilerActivity
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
        on_gpu = torch.autograd.DeviceType.CUDA
        others = ("Memcpy", "Memset", "Optimizer.", "ProfilerStep")  # copies and annotations
        names = [(e.device_type == on_gpu, e.name) for e in profile.events()]
        kernels = sum(on and not name.startswith(others) for on, name in names)
        calls = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
        return kernels, None, sum(name.startswith(calls) for on, name in names if not on)
    with Operations() as counted:
        step()
    return counted.torchs + counted.loops, counted.loops, None


def recipe(size: Size, device: torch.device) -> list[dict]:
    """What choices of a recipe make of a plain training step, each alone and all together."""
    bf16 = any(s.bf16 for s in settings(size, device))
    batch = max(s.batch for s in settings(size, device) if s.naive)
    # channels_last, bf16, fused; None is torch's own choice of an optimizer
    none = (False, False, None)
    choices = {"none": none, "none, again": none, "fused optimizer": (False, False, True)}
    choices |= {"channels_last": (True, False, None)}
    choices |= {"bf16": (False, True, None)} if bf16 else {}
    choices["all"] = (True, bf16, True)
    steps = {}
    for name, (last, half, fused) in choices.items():
        x = images(batch, device, last)
        steps[name] = training(network(size, device, last=last), x, half, fused=fused)
    rows = compared(interleaved(steps, size.rounds, device), "none")
    common = {"device": device.type, "batch": batch}
    return [common | {"choice": name} | row for name, row in rows.items()]


def infer(size: Size, device: torch.device) -> list[dict]:
    """The time of inference: folded, and excited anew at every call, against plain."""
    folded = {
        (name, "folded"): lambda model, change=change: wexlib.fold(change(model))
        for name, change in changes("ours").items()
    }
    rows = []
    for batch in size.inference:
        # Excited anew is what folding saves: at the largest batch it is not measured again.
        again = ("ours", "naive") if batch != max(size.inference) else ()
        x = images(batch, device, False)
        cases = {
            key: inference(network(size, device, change), x)
            for key, change in (_forms(*again) | folded).items()
        }
        times = interleaved(cases, size.rounds, device)
        rows += _rows(times, device=device.type, batch=batch)
    return rows


def scaling(size: Size, device: torch.device) -> list[dict]:
    """The time of the excited weights alone, forward and backward, and the bandwidth's floor."""
    speed = bandwidth(device)
    wide = max(size.widths)
    swept = [("width", w, [nn.Conv2d(w, w, 3)]) for w in size.widths]
    swept += [("kernel", k, [nn.Conv2d(wide // 2, wide // 2, k)]) for k in size.kernels]
    rows = []
    for axis, value, layers in [*swept, *_depths(size)]:
        cases = {}
        for name, (excitation, layer) in METHODS.items():
            for form, build in (("ours", chain(excitation).build), ("naive", layer)):
                cases[name, form] = _weights(layers, build, device)
        weights = sum(m.weight.nbytes for m in layers)
        for (name, form), times in interleaved(cases, size.rounds, device).items():
            floor = FLOOR[name]["both"] * weights / speed / 1e6
            rows.append(
                {"device": device.type, "axis": axis, "value": value, "method": name, "form": form}
                | quartiles(times, "ms")
                | {"weights_mb": weights / 1e6, "floor_ms": floor, "bandwidth_gb_s": speed}
            )
    return rows


def _depths(size: Size) -> list[tuple[str, int, list[nn.Module]]]:
    swept = []
    for name in size.depths:
        # Only our own model has a width to choose; the others are torchvision's.
        options = {"width": size.width} if name in models.MODELS else {}
        model = models.build(name, classes=10, **options)
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        swept.append(("depth", len(layers), layers))
    return swept


def _weights(layers: list[nn.Module], build: Callable, device: torch.device) -> Callable[[], None]:
    parts = []
    for layer in layers:
        weight = layer.weight.detach().to(device).requires_grad_()
        module = build(layer.weight, layer.groups).to(device)
        gradient = torch.ones_like(weight)
        parts.append((module, [weight, *module.parameters()], gradient))

    def call():
        for module, inputs, gradient in parts:
            torch.autograd.grad(module(inputs[0]), inputs, gradient)

    return call


def passes(size: Size, device: torch.device) -> list[dict]:
    """Bytes moved over the bytes of the weight, counted on the CPU from the operations."""
    width = max(size.widths)
    rows = []
    for last in (False, True):
        for name, (excitation, layer) in METHODS.items():
            for form, build in (("ours", chain(excitation).build), ("naive", layer)):
                conv = nn.Conv2d(width, width, 3, bias=False)
                if last:
                    conv = conv.to(memory_format=torch.channels_last)
                counts = _passes(conv, build(conv.weight, 1))
                for way, count in counts.items():
                    rows.append(
                        {
                            "method": name,
                            "form": form,
                            "memory_format": "channels_last" if last else "contiguous",
                            "way": way,
                            "passes": count,
                            "floor": FLOOR[name][way],
                        }
                    )
    return rows


def _passes(conv: nn.Conv2d, module: nn.Module) -> dict[str, float]:
    weight = conv.weight.detach().requires_grad_()
    with Traffic() as forward:
        out = module(weight)
    gradient = torch.ones_like(out)
    with Traffic() as backward:
        torch.autograd.grad(out, [weight, *module.parameters()], gradient)
    counts = {"forward": forward.bytes / weight.nbytes, "backward": backward.bytes / weight.nbytes}
    return counts | {"both": sum(counts.values())}


def memory(size: Size, device: torch.device) -> list[dict]:
    """The most that a training step holds, and how much more than plain, in weights' bytes."""
    rows = []
    for batch in sorted({s.batch for s in settings(size, device) if s.naive}):
        plain = None
        for (name, form), change in _forms("ours", "naive").items():
            if form == "control":
                continue
            model = network(size, device, change)
            slots = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
            weights = sum(m.weight.nbytes for m in slots)
            peak = _peak(training(model, images(batch, device, False)), device)
            plain = peak if plain is None else plain
            rows.append(
                {
                    "device": device.type,
                    "batch": batch,
                    "method": name,
                    "form": form,
                    "peak_mb": peak / 1e6,
                    "more_mb": (peak - plain) / 1e6,
                    "weights_mb": weights / 1e6,
                    "multiple": (peak - plain) / weights,
                    "bar": 3.0 if form == "ours" else None,
                }
            )
    return rows


def _peak(step: Callable[[], None], device: torch.device) -> int:
    if device.type == "cuda":
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    with Held() as held:  # two steps: in the second, the optimizer's state is there
        step()
        step()
    return held.peak


def compile(size: Size, device: torch.device) -> list[dict]:
    """The time to compile a training step, and the compiled step's against the plain one's."""
    batch, last, bf16, _ = settings(size, device)[-1]
    x, cases, first = images(batch, device, last), {}, {}
    for key, change in _forms("ours").items():
        step = training(torch.compile(network(size, device, change, last)), x, bf16)
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        cases[key], first[key] = step, time.perf_counter() - began
    rows = _rows(interleaved(cases, size.rounds, device), device=device.type, batch=batch)
    return [row | {"first_step_s": first[row["method"], row["form"]]} for row in rows]


#: One weight of each kind that a network has: stem, layers of growing width, 1x1, grouped's share,
#: linear, and those of signals and volumes.
SHAPES = (
    (64, 3, 7, 7),
    (64, 64, 3, 3),
    (128, 64, 3, 3),
    (512, 256, 3, 3),
    (256, 128, 1, 1),
    (64, 16, 3, 3),
    (100, 512),
    (32, 16, 3, 3, 3),
)
ALL = {
    "standardization": Standardize(),
    **{name: parts for name, (parts, _) in METHODS.items()},
    "CBAM": [Standardize(), Location(CBAM())],
    "BAM": [Standardize(), Location(wexlib.BAM())],
    "triplet": [Standardize(), Location(wexlib.Triplet())],
    "global": [Standardize(), wexlib.Global()],
    "learnable magnitude": [Standardize(), Magnitude("learnable")],
    "location and magnitude": [Standardize(), NOVEL, Magnitude()],
    "SE, not standardized": Location(SE()),
}
#: The most that a number may deviate, over the largest of its tensor.
EXACT = {torch.float64: 1e-9, torch.float32: 1e-3}


def exact(size: Size, device: torch.device) -> list[dict]:
    """The worst deviation of excited weights and gradients from a CPU's in float64.

    Over the largest number of the tensor, over all shapes and both memory formats.
    """
    torch.backends.cudnn.allow_tf32 = False  # the nets' convolutions; a run leaves it on
    shapes = SHAPES if size.width == FULL.width else [(8, *shape[1:]) for shape in SHAPES[:3]]
    rows = []
    for method, parts in ALL.items():
        found = torch.tensor([_deviations(parts, shape, device) for shape in shapes]).amax(0)
        for (dtype, bar), (forward, gradient) in zip(EXACT.items(), found.tolist(), strict=True):
            row = {"device": device.type, "method": method, "dtype": str(dtype)[len("torch.") :]}
            row |= {"forward": forward, "gradient": gradient}
            rows.append(row | {"bar": bar, "shapes": len(shapes)})
    torch.backends.cudnn.allow_tf32 = True
    return rows


def _deviations(parts, shape: tuple, device: torch.device) -> list[list[float]]:
    """For each dtype that of the excited weight, and that of the worst gradient."""
    generator = torch.Generator().manual_seed(0)
    # Numbers that every dtype has.
    weight, upstream = (torch.randn(shape, generator=generator).double() for _ in range(2))
    reference = chain(parts).build(weight.float(), generator=generator).double()
    expected = _differentiated(reference, weight, upstream)
    rows = []
    for dtype in EXACT:
        module, worst = copy.deepcopy(reference).to(device, dtype), [0.0, 0.0]
        for order in (torch.contiguous_format, *[torch.channels_last] * (len(shape) == 4)):
            given = [
                x.to(device, dtype).contiguous(memory_format=order) for x in (weight, upstream)
            ]
            errors = [
                ((a.cpu().double() - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()
                for a, b in zip(_differentiated(module, *given), expected, strict=True)
            ]
            worst = [max(worst[0], errors[0]), max(worst[1], *errors[1:])]
        rows.append(worst)
    return rows


def _differentiated(module: nn.Module, weight: Tensor, upstream: Tensor) -> list[Tensor]:
    """The excited weight, and the gradients."""
    weight = weight.clone(memory_format=torch.preserve_format).requires_grad_()
    inputs = [weight, *module.parameters()]
    out = module(weight)
    found = torch.autograd.grad(out, inputs, upstream, allow_unused=True)
    return [out.detach(), *(g for g in found if g is not None)]


def bits(size: Size, device: torch.device) -> list[dict]:
    """Whether two trainings from one start end in the same bits, and captured ones where eager do.

    ``apart``: how many numbers of the model differ.
    """
    setting, count = settings(size, device)[-1], 12 if size.width == FULL.width else 6
    x, rows = images(setting.batch, device, setting.channels_last), []
    for method, change in {"plain": lambda model: model, **changes("ours")}.items():
        ends = []
        for captured in (False, False, True, True):
            model = network(size, device, change, setting.channels_last)
            step = training(model, x, setting.bf16, captured=captured)
            for _ in range(count):
                step()
            ends.append([t.detach().clone() for t in model.state_dict().values()])
        pairs = {"eager twice": (0, 1), "captured twice": (2, 3), "eager and captured": (0, 2)}
        for what, (a, b) in pairs.items():
            apart = sum((p != q).sum().item() for p, q in zip(ends[a], ends[b], strict=True))
            rows.append(
                {"device": device.type, "method": method, "what": what, "steps": count}
                | {"apart": apart, "numbers": sum(t.numel() for t in ends[0])}
            )
    return rows


def cost(size: Size, device: torch.device) -> list[dict]:
    """Chapter 2's table: attention on features and on weights, and dynamic convolutions.

    Parameters are those that are trained; FLOPs those of products and convolutions for one image
    at inference, where weights are folded.
    """
    attentions = {"SE": SE(), "CBAM": CBAM(), "BAM": wexlib.BAM(), "triplet": wexlib.Triplet()}
    blocks = partial(wexlib.attend, where=r"^layer[1-4]\.[01]$")
    methods = {
        "plain": lambda model: model,
        **{f"feature {n}": partial(blocks, attention=a) for n, a in attentions.items()},
        "weight standardization": partial(wexlib.excite, excitation=Standardize()),
        **{
            f"weight {n}": partial(wexlib.excite, excitation=Location(a))
            for n, a in attentions.items()
        },
        "weight CBAM with skips": partial(wexlib.excite, excitation=NOVEL),
        "weight magnitude": partial(wexlib.excite, excitation=Magnitude()),
        "dynamic convolution": partial(replace, layer=DynamicConv2d),
        "ODConv": partial(replace, layer=ODConv2d),
    }
    batch = 32 if size is FULL else 4
    x = images(batch, device, False)
    rows, steps, calls = {}, {}, {}
    for name, change in methods.items():
        model = network(size, device, change)
        steps[name] = training(model, x)
        parameters = sum(p.numel() for p in model.parameters())
        model = wexlib.fold(network(size, device, change))
        calls[name] = inference(model, x)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x[:1])
        rows[name] = {"method": name, "parameters": parameters, "flops": counter.get_total_flops()}
    for kind, cases in (("train", steps), ("inference", calls)):
        for name, times in interleaved(cases, size.rounds, device).items():
            named = quartiles(times, "ms")
            rows[name] |= {
                f"{kind}_{end}": named[key]
                for end, key in (("ms", "ms"), ("low", "ms_low"), ("high", "ms_high"))
            }
    return [row | {"batch": batch} for row in rows.values()]


def excitation_of(model: nn.Module) -> list[Tensor]:
    """The excited weights of ``model``, computed."""
    return [getattr(slot.module, slot.attribute) for slot in excited(model)]
