"""A plan's network: its model, and the excitation that its ``we`` asks for."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from wexlib import models
from wexlib.attach import excite
from wexlib.attention import ATTENTIONS, SE
from wexlib.excitation import Global, Location, Standardize
from wexlib.magnitude import Magnitude
from wexlib.parametrization import Excitation
from wexlib.where import select

ATTENTION_KEYS = ("activation", "gate", "reduction", "order")
#: What the attention nets of a stacked excitation are excited by themselves.
STACKED = {
    "none": (),
    "location": (Standardize(), Location(SE())),
    "magnitude": (Standardize(), Magnitude()),
}


def derive(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose: the first bytes of SHA-256 of ``"purpose seed"``."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _location(we: dict) -> Excitation:
    kind = ATTENTIONS.get(we["attention"], Global)
    given = {key: we[key] for key in ATTENTION_KEYS if key in kind.__dataclass_fields__}
    if kind is Global:
        # Shared by all layers, a net for any width; or the authors' nets, averaged.
        return Global(**given, **({"width": None} if we["shared"] else {}))
    options = {key: we[key] for key in ("skips", "control", "start")}
    return Location(kind(**given), stacked=STACKED[we["stacked"]], **options)


def _magnitude(we: dict) -> Excitation:
    return Magnitude(we["magnitude"], eps=we["eps"])


#: The excitation of each key of ``we`` that is not off, in the order in which they are applied.
EXCITATIONS = {
    "standardize": lambda we: Standardize(),
    "attention": _location,
    "magnitude": _magnitude,
}


def excitations(we: dict) -> list[Excitation]:
    """The excitations that a plan's ``we`` asks for, in the order in which they are applied."""
    return [make(we) for key, make in EXCITATIONS.items() if we[key] not in (False, "none")]


#: The layers that ``we.layers`` names.
LAYERS = {
    "conv": None,
    "linear": (nn.Linear, nn.MultiheadAttention),
    "conv+linear": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention),
}


def attach(model: nn.Module, we: dict, seed: int) -> nn.Module:
    """Excite ``model`` as a plan's ``we`` asks, at the start that ``seed`` gives the attention."""
    if chain := excitations(we):
        generator = torch.Generator().manual_seed(derive(seed, "attention"))
        where = LAYERS[we["layers"]]
        excite(model, chain, where=where, shared=we["shared"], generator=generator)
    return model


def build(
    plan: dict, seed: int, *, classes: int, image_size: Sequence[int], plain: bool = False
) -> nn.Module:
    """The plan's model, excited unless ``plain``, on the CPU, at the start that ``seed`` gives."""
    torch.manual_seed(derive(seed, "backbone"))
    model = models.build(
        plan["model"], classes=classes, image_size=image_size, **plan["model_options"]
    )
    return model if plain else attach(model, plan["we"], seed)


@cache
def model_error(name: str, options: str, layers: str) -> str:
    """Why a model cannot be built, or has no such layers, tried without memory; "" if it can.

    ``options`` are JSON.
    """
    try:
        with torch.device("meta"):
            select(
                models.build(name, classes=10, image_size=(32, 32), **json.loads(options)),
                LAYERS[layers],
            )
    except Exception as error:  # noqa: BLE001 - models of others raise what they like
        return _sentence(error)
    return ""


@cache
def excitation_error(we: str) -> str:
    """Why an excitation cannot be built, tried on a small layer; "" if it can. ``we`` is JSON."""
    try:
        attach(nn.Conv2d(16, 16, 3), json.loads(we) | {"layers": "conv"}, seed=0)
    except Exception as error:  # noqa: BLE001
        return _sentence(error)
    return ""


def _sentence(error: Exception) -> str:
    """The first line of an error; where its kind says most, that too."""
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {line}"
