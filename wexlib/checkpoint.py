"""Checkpoints that say what they hold: a model is rebuilt from its file alone."""

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wexlib import models as library
from wexlib.attach import attend, excite
from wexlib.attention import BAM, CBAM, SE, Triplet
from wexlib.excitation import Global, Location, Standardize
from wexlib.magnitude import Magnitude
from wexlib.names import choose
from wexlib.parametrization import Chain
from wexlib.where import GATHER, check_whole, slots_of

#: The key in the file's metadata of a text: a SHA-256, a blank, and the JSON that it is of. It is
#: one key, as safetensors writes several in an order of chance, and equal models are equal files.
METADATA = "wexlib"
#: What a checkpoint's excitations are made of; a class of your own is one more entry.
KINDS: dict[str, type] = {
    "Chain": Chain,
    "Standardize": Standardize,
    "Location": Location,
    "Magnitude": Magnitude,
    "Global": Global,
    "SE": SE,
    "CBAM": CBAM,
    "BAM": BAM,
    "Triplet": Triplet,
}


def to_json(value: object) -> object:
    """An excitation or attention as what JSON holds: the name of its class, and its fields.

    Raises:
        TypeError: a field is neither of these, nor a text, a number, True, False or None.
    """
    if is_dataclass(value):
        given = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **given}
    if isinstance(value, tuple | list):
        return [to_json(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} cannot be saved: expected a text, a number, True, False or None")


def from_json(value: object) -> object:
    """What :func:`to_json` was given.

    Raises:
        ValueError: a class that :data:`KINDS` has not, or fields that are not its own.
    """
    if isinstance(value, list):
        return tuple(from_json(part) for part in value)
    if not isinstance(value, dict):
        return value
    given = {key: from_json(part) for key, part in value.items()}
    kind = KINDS[choose(given.pop("class", None), KINDS, "class of an excitation")]
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} cannot be made of {given}: {error}") from None


def _excitations(model: nn.Module) -> list[dict]:
    """What is excited by what: a row for each excitation, and for each shared one."""
    slots = [slot for slot in slots_of(model) if slot.excitation]
    uses = Counter(core for slot in slots for core in slot.excitation.cores)
    found: dict[object, dict] = {}
    for slot in slots:
        excitation, core = slot.excitation.excitation, slot.excitation.cores[0]
        shared = uses[core] > 1
        axis = slot.excitation.axis
        row = {"excitation": to_json(excitation), "shared": shared, "axis": axis, "weights": []}
        found.setdefault(core if shared else (excitation, axis), row)["weights"].append(slot.name)
    return list(found.values())


def _attentions(model: nn.Module) -> list[dict]:
    """Which feature maps are attended by what: a row for each attention."""
    found: dict[object, dict] = {}
    for name, module in model.named_modules():
        if attended := getattr(module, "feature_attention", None):
            attention = attended.attention
            row = {"attention": to_json(attention), "modules": []}
            found.setdefault(attention, row)["modules"].append(name)
    return list(found.values())


def _checksum(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].flatten()
        digest.update(f"{key} {tensor.dtype} {tuple(state[key].shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def save(
    path: str | Path,
    models: nn.Module | Mapping[int, nn.Module],
    *,
    model: str,
    classes: int,
    image_size: int | Sequence[int] | None = None,
    options: Mapping[str, object] | None = None,
) -> None:
    """Write a ``.safetensors`` file from which :func:`load` rebuilds a model, or one of several.

        >>> net = excite(models.build("resnet18", classes=10), Location(SE()))
        >>> save("net.safetensors", net, model="resnet18", classes=10)

    Tensors are named ``<seed>.<name in the state_dict>``. The metadata hold the model, what its
    weights are excited by and its feature maps attended, read from the model itself, and a checksum
    of each seed's tensors.

    Args:
        path: the file.
        models: a model, or those of one kind by the seeds that they were trained with; a single
            one has the seed 0.
        model, classes, image_size, options: what :func:`wexlib.models.build` built it of; a model
            of your own has any other name, and :func:`load` is then given the plain model.

    Raises:
        TypeError: an excitation that JSON does not hold.
        ValueError: the models are excited by different excitations.
    """
    models = {0: models} if isinstance(models, nn.Module) else dict(models)
    for one in models.values():
        check_whole(one, GATHER.format("save"))
    states = {
        seed: {key: t.detach().cpu().contiguous().clone() for key, t in one.state_dict().items()}
        for seed, one in models.items()
    }
    attached, *others = [(_excitations(one), _attentions(one)) for one in models.values()]
    if any(other != attached for other in others):
        raise ValueError("the models are excited differently: save each in a file of its own")
    metadata = {
        "model": model,
        "classes": classes,
        "image_size": image_size if isinstance(image_size, int | None) else list(image_size),
        "options": dict(options or {}),
        "excitations": attached[0],
        "seeds": list(models),
        "checksums": {str(seed): _checksum(state) for seed, state in states.items()},
    }
    if attached[1]:
        metadata["attentions"] = attached[1]
    tensors = {f"{seed}.{key}": t for seed, state in states.items() for key, t in state.items()}
    text = json.dumps(metadata, sort_keys=True)
    save_file(tensors, path, {METADATA: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"})


def load(path: str | Path, seed: int | None = None, *, model: nn.Module | None = None) -> nn.Module:
    """The model of a checkpoint, excited as it was saved, in evaluation mode, on the CPU.

    Torch's global random stream stays as it is.

    Args:
        path: a file of :func:`save`.
        seed: which of its models; the first unless given.
        model: a plain model of your own, which is excited in place and filled; without it, that of
            :func:`wexlib.models.build` which the file names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, :func:`save` did not write it, it has no such seed, or it names
            an excitation or a model that is not known; ``model`` does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: expected a file that wexlib.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if METADATA not in texts:
                raise ValueError(f"{path} does not say what model it holds: wexlib.save does")
            digest, _, text = texts[METADATA].partition(" ")
            if hashlib.sha256(text.encode()).hexdigest() != digest:
                raise ValueError(f"{path} is damaged, its metadata are others: bring it anew")
            metadata = json.loads(text)
            seeds = metadata["seeds"]
            seed = seeds[0] if seed is None else seed
            if seed not in seeds:
                raise ValueError(f"{path} has the seeds {seeds}, not {seed}")
            prefix = f"{seed}."
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            # Copied to where torch puts tensors: sums depend on it in their last bits.
            state = OrderedDict(
                (name.removeprefix(prefix), file.get_tensor(name).clone()) for name in names
            )
    except SafetensorError:
        raise ValueError(f"{path} is damaged, or no .safetensors file: bring it anew") from None
    if _checksum(state) != metadata["checksums"][str(seed)]:
        raise ValueError(f"{path} is damaged, its checksum is another: bring it anew")
    size = {"classes": metadata["classes"], "image_size": metadata["image_size"]}
    with torch.random.fork_rng(devices=[]):
        if model is None:
            if ":" in metadata["model"]:
                raise ValueError(
                    f"{path} holds a model of your own, {metadata['model']}: make it plain, and "
                    "load the file by load(path, model=it)"
                )
            model = library.build(metadata["model"], **size, **metadata["options"])
        for row in metadata["excitations"]:
            axis = from_json(row.get("axis"))
            excitation = from_json(row["excitation"])
            excite(model, excitation, where=_in(row["weights"]), axis=axis, shared=row["shared"])
        for row in metadata.get("attentions", []):
            attend(model, from_json(row["attention"]), where=_in(row["modules"]))
    state._metadata = model.state_dict()._metadata  # what it is excited by was just read
    try:
        model.load_state_dict(state, assign=True)  # in the dtype that it was saved in
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} does not fit the model: {first}") from None
    return model.eval()


def _in(names: Sequence[str]) -> Callable[[str, nn.Module], bool]:
    known = set(names)
    return lambda name, _: name in known
