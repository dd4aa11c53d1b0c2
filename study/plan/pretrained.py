"""Trained weights that a run starts from: of a checkpoint, or torchvision's."""

import pickle

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from study.files import root
from wexlib import models
from wexlib.attach import fold
from wexlib.checkpoint import METADATA, load
from wexlib.where import CONVOLUTION

TORCHVISION = "torchvision"
#: Models of ours that have torchvision's layers and names, and torchvision's names of them.
SAME = {"resnet18_imagenet": "resnet18"}


def check(model: str, origin: str) -> None:
    """Whether there are such weights, without a look at them.

    Raises:
        ValueError: there are none.
    """
    if origin == TORCHVISION:
        _torchvision(model)
    elif not (root() / origin).is_file():
        raise ValueError(
            f"pretrained: {origin} is no file: expected {TORCHVISION}, or the path of a checkpoint"
        )


def _torchvision(model: str):
    """Torchvision's default weights of a model."""
    from torchvision.models import get_model_weights

    name = SAME.get(model, model)
    if name == model in models.MODELS or ":" in model:
        raise ValueError(
            f"pretrained: torchvision has no weights of {model}: name a checkpoint of it, or take "
            f"{', '.join(SAME)}, or a model of torchvision"
        )
    return get_model_weights(name).DEFAULT


def read(model: str, origin: str) -> dict[str, Tensor]:
    """The ``state_dict`` of a plain model, of torchvision or of a file.

    The file is ``.safetensors`` with the state_dict's names, or what :func:`wexlib.save` wrote,
    whose excitations are folded; else what ``torch.save`` wrote of a state_dict.
    """
    if origin == TORCHVISION:
        return dict(_torchvision(model).get_state_dict(progress=False, check_hash=True))
    path = root() / origin
    try:
        if path.suffix != ".safetensors":
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        with safe_open(path, framework="pt") as file:
            ours = METADATA in (file.metadata() or {})
        return dict(fold(load(path)).state_dict()) if ours else load_file(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        raise ValueError(
            f"pretrained: {origin} holds no state_dict: expected what torch.save or safetensors "
            "wrote of one"
        ) from error


def start_from(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load a plain model's ``state_dict``; the head, its last layer, may be another and stays.

    Raises:
        ValueError: another tensor is missing, unknown, or of another shape.
    """
    own = model.state_dict()
    layers = [n for n, m in model.named_modules() if isinstance(m, (CONVOLUTION, nn.Linear))]
    head = layers[-1]
    fits = {name: t for name, t in state.items() if name in own and own[name].shape == t.shape}
    names = own.keys() | state.keys()
    wrong = sorted(n for n in names - fits.keys() if n.rpartition(".")[0] != head)
    if wrong:
        there, here = (tuple(s[wrong[0]].shape) if wrong[0] in s else "not" for s in (state, own))
        raise ValueError(
            f"pretrained: {wrong[0]} is {there} in {origin} and {here} in the model: expected all "
            f"tensors to fit but those of its head, {head}"
        )
    model.load_state_dict(fits, strict=False)
