"""A plan's network: its model, and the excitation that its ``we`` asks for."""

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import nn

from study.files import root
from study.plan import pretrained
from study.plan.keys import chained
from wexlib import models
from wexlib.attach import attend, excite
from wexlib.attention import ATTENTIONS, SE, Attention
from wexlib.excitation import Global, Location, Standardize
from wexlib.magnitude import Magnitude
from wexlib.parametrization import Excitation
from wexlib.where import CONVOLUTION, select, slots_of

ATTENTION_KEYS = ("activation", "gate", "reduction", "order")
#: What the attention nets of a stacked excitation are excited by themselves; of ``location`` the
#: nets may be excited by what comes next.
STACKED = {
    "location": lambda inner: (Standardize(), Location(SE(), stacked=inner)),
    "magnitude": lambda inner: (Standardize(), Magnitude()),
}


def derive(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose: the first bytes of SHA-256 of ``"purpose seed"``."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _attention(name: str, we: dict) -> Attention | Global:
    kind = ATTENTIONS.get(name, Global)
    given = {key: we[key] for key in ATTENTION_KEYS if key in kind.__dataclass_fields__}
    # Shared by all layers, a net for any width; or the authors' nets, averaged.
    return kind(**given, **({"width": None} if we["shared"] else {}))


def _location(we: dict) -> list[Excitation]:
    options = {key: we[key] for key in ("skips", "control", "start")}
    options["stacked"] = ()
    for name in reversed(chained(we["stacked"])):
        options["stacked"] = STACKED[name](options["stacked"])
    made = [_attention(name, we) for name in chained(we["attention"])]
    return [m if isinstance(m, Global) else Location(m, **options) for m in made]


def _magnitude(we: dict) -> list[Excitation]:
    return [Magnitude(we["magnitude"], eps=we["eps"])]


#: The excitations of each key of ``we`` that is not off, in the order in which they are applied.
EXCITATIONS = {
    "standardize": lambda we: [Standardize()],
    "attention": _location,
    "magnitude": _magnitude,
}


def excitations(we: dict) -> list[Excitation]:
    """What a plan's ``we`` excites weights by, in the order in which it is applied."""
    off = ["attention"] if we["on"] == "features" else []
    on = [key for key in EXCITATIONS if key not in off and we[key] not in (False, "none")]
    return [excitation for key in on for excitation in EXCITATIONS[key](we)]


#: The layers that ``we.layers`` names.
LAYERS = {
    "conv": None,
    "linear": (nn.Linear, nn.MultiheadAttention),
    "conv+linear": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention),
}
#: The classes of residual blocks, ours and torchvision's, whose outputs are attended.
BLOCKS = ("BasicBlock", "Bottleneck")


def _layers(we: dict):
    """Which weights are excited, for :func:`wexlib.excite`."""
    kinds, pattern = LAYERS[we["layers"]], we["where"]
    if pattern is None:
        return kinds
    return lambda name, layer: (
        isinstance(layer, kinds or CONVOLUTION) and re.search(pattern, name.rpartition(".")[0])
    )


def _blocks(we: dict) -> Callable[[str, nn.Module], bool]:
    """Which modules' outputs are attended, for :func:`wexlib.attend`."""
    return lambda name, module: (
        type(module).__name__ in BLOCKS and re.search(we["where"] or "", name) is not None
    )


def attach(model: nn.Module, we: dict, seed: int) -> nn.Module:
    """Excite ``model`` as a plan's ``we`` asks, at the start that ``seed`` gives the attention."""
    generator = torch.Generator().manual_seed(derive(seed, "attention"))
    if chain := excitations(we):
        excite(model, chain, where=_layers(we), shared=we["shared"], generator=generator)
    if we["on"] == "features":
        attention = _attention(we["attention"], we)
        attend(model, attention, where=_blocks(we), generator=generator)
    return model


def build(
    plan: dict, seed: int, *, classes: int, image_size: Sequence[int], plain: bool = False
) -> nn.Module:
    """The plan's model, excited unless ``plain``, on the CPU, at the start that ``seed`` gives."""
    torch.manual_seed(derive(seed, "backbone"))
    model = _model(plan["model"], plan["model_options"], classes, image_size)
    if origin := plan["pretrained"]:
        pretrained.start_from(model, pretrained.read(plan["model"], origin), origin)
    return model if plain else attach(model, plan["we"], seed)


def _model(name: str, options: dict, classes: int, image_size: Sequence[int]) -> nn.Module:
    """A model of :mod:`wexlib.models`, or what the function ``module:function`` makes."""
    if ":" in name:
        return own_function(name)(classes, **options)
    return models.build(name, classes=classes, image_size=image_size, **options)


def own_function(name: str) -> Callable[..., nn.Module]:
    """The function that ``module:function`` names, of the project's folder or installed.

    Raises:
        ValueError: there is no such module, or no such function in it.
    """
    module, _, function = name.partition(":")
    if str(root()) not in sys.path:
        sys.path.append(str(root()))  # a notebook's kernel starts elsewhere
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model {name}: {error}: expected module:function, of a module in the project's folder "
            "or installed"
        ) from None


# --- Tried when it is planned -------------------------------------------------------------------


@cache
def model_error(name: str, options: str, we: str) -> str:
    """Why a model cannot be built, or has no such layers, tried without memory; "" if it can.

    ``options`` are JSON, and so is ``we`` of its layers, on and where.
    """
    try:
        with torch.device("meta"):
            model = _model(name, json.loads(options), 10, (32, 32))
        _check_places(model, name, json.loads(we))
    except Exception as error:  # noqa: BLE001 - models of others raise what they like
        return _sentence(error)
    return ""


def _check_places(model: nn.Module, name: str, we: dict) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name}: expected a torch module, got {type(model).__name__}")
    select(model, LAYERS[we["layers"]])
    if we["on"] == "features":
        kind, named, matches = f"block ({', '.join(BLOCKS)})", model.named_modules(), _blocks(we)
    elif we["where"]:
        kind, named = (
            f"layer of we.layers: {we['layers']}",
            ((s.name, s.module) for s in slots_of(model)),
        )
        matches = _layers(we)
    else:
        return
    if not any(matches(*each) for each in named):
        inside = f" with {we['where']!r} in its name" if we["where"] else ""
        raise ValueError(f"{name} has no {kind}{inside}: choose another we.where, or another model")


@cache
def excitation_error(we: str) -> str:
    """Why an excitation cannot be built, tried on a small layer; "" if it can. ``we`` is JSON."""
    try:
        anywhere = {"layers": "conv", "where": None, "on": "weights"}
        attach(nn.Conv2d(16, 16, 3), json.loads(we) | anywhere, seed=0)
    except Exception as error:  # noqa: BLE001
        return _sentence(error)
    return ""


def _sentence(error: Exception) -> str:
    """The first line of an error; where its kind says most, that too."""
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {line}"
