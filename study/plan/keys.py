"""What the keys of a run may hold: a check gives the value, or a sentence that names the key."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module

from wexlib.names import choose


def number(low: float, high: float = math.inf, *, whole: bool = False, strict: bool = False):
    kind = "a whole number" if whole else "a number"
    above = f"above {low:g}" if strict else f"of at least {low:g}"
    bound = above + ("" if high == math.inf else f" and at most {high:g}")

    def check(value: object, key: str) -> float | int:
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value > high or value < low:
            good = False
        if not good or (strict and value == low):
            raise ValueError(f"{key}: expected {kind} {bound}, got {value!r}")
        return value if whole else float(value)

    return check


def flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false, got {value!r}")
    return value


def one_of(*allowed: str):
    def check(value: object, key: str) -> str:
        return choose(value, allowed, key)

    return check


def _name_in(module: str, table: str, *extra: str):
    """One of the names in ``wexlib.<module>.<table>``: imported only when a plan is made."""

    def check(value: object, key: str) -> str:
        return choose(value, [*extra, *getattr(import_module(f"wexlib.{module}"), table)], key)

    return check


def text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: expected a text, got {value!r}")
    return value


def optional(check):
    """``null``, or what ``check`` takes."""
    return lambda value, key: None if value is None else check(value, key)


def list_of(check):
    def check_all(value: object, key: str) -> list:
        if not isinstance(value, list):
            raise ValueError(f"{key}: expected a list, got {value!r}")
        return [check(item, f"{key}.{i}") for i, item in enumerate(value)]

    return check_all


def _one_or_chain(check):
    """One, or a list of several."""
    every = list_of(check)

    def check_all(value: object, key: str) -> str | list:
        if not isinstance(value, list):
            return check(value, key)
        if len(value) < 2 or "none" in value:
            raise ValueError(f"{key}: expected a name, or a list of two or more, got {value!r}")
        return every(value, key)

    return check_all


def chained(value: str | list[str]) -> list[str]:
    """What :func:`_one_or_chain` lets through, as a list; nothing for ``none``."""
    return value if isinstance(value, list) else [] if value == "none" else [value]


def _pattern(value: object, key: str) -> str:
    try:
        re.compile(text(value, key))
    except re.error as error:
        raise ValueError(f"{key}: {value!r} is no regular expression: {error}") from None
    return value


def seeds(value: object, key: str) -> list[int]:
    """``3`` means the seeds 0, 1, 2; a list names them."""
    if isinstance(value, list):
        seeds = list_of(number(0, whole=True))(value, key)
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"{key}: expected different seeds, at least one, got {value!r}")
        return seeds
    return list(range(number(1, 1000, whole=True)(value, key)))


#: The excitation of a run: key -> (check, default). The defaults excite nothing.
WE = {
    "standardize": (flag, False),
    "attention": (_one_or_chain(_name_in("attention", "ATTENTIONS", "none", "global")), "none"),
    "on": (one_of("weights", "features"), "weights"),
    "skips": (flag, False),
    "shared": (flag, False),
    "stacked": (_one_or_chain(one_of("none", "location", "magnitude")), "none"),
    "order": (_name_in("attention", "ORDERS"), "sequential"),
    "control": (_name_in("excitation", "CONTROLS"), "none"),
    "start": (_name_in("excitation", "STARTS"), "random"),
    "activation": (_name_in("names", "ACTIVATIONS"), "relu"),
    "gate": (_name_in("names", "ACTIVATIONS"), "sigmoid"),
    "reduction": (number(1, whole=True), 16),
    "magnitude": (_name_in("magnitude", "FUNCTIONS", "none"), "none"),
    "eps": (number(0, strict=True), 0.1),
    "layers": (one_of("conv", "linear", "conv+linear"), "conv"),
    "where": (optional(_pattern), None),
    "pretrain": (number(0), 0),
    "pause": (number(0), 0),
    "ramp": (number(0), 0),
}

_OF_LOCATION = ("skips", "stacked", "control", "start")
#: What attention on feature maps has not, in its published form.
_OF_WEIGHTS = (*_OF_LOCATION, "shared", "pause", "ramp")

#: The training of a run: key -> check. Every key has its value in a recipe of ``params.yaml``.
TRAIN = {
    "epochs": number(1, whole=True),
    "batch": number(2, whole=True),
    "optimizer": one_of("sgd", "adam", "adamw"),
    "lr": number(0, strict=True),
    "momentum": number(0, 1),
    "weight_decay": number(0),
    "schedule": one_of("constant", "step", "cosine", "onecycle"),
    "milestones": list_of(number(1, whole=True)),
    "gamma": number(0, 1, strict=True),
    "precision": one_of("float32", "bf16", "fp16"),
    "channels_last": flag,
    "sync_batch_norm": flag,
}
#: Those that a recipe may leave out, and what they are then.
_TRAIN_DEFAULTS = {"sync_batch_norm": False}


def mapping(value: object, key: str, allowed: Iterable[str] | None = None) -> dict:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: expected keys and values, got {value!r}")
    for name in value if allowed is not None else ():
        choose(name, allowed, f"key in {key}:")
    return dict(value)


def checked(
    value: object, checks: Mapping[str, Callable], place: str, needed: Iterable[str] = ()
) -> dict:
    """Keys and values, each by its check; ``needed`` ones must be there."""
    given = mapping(value, place, checks)
    for key in needed:
        if key not in given:
            raise ValueError(f"{place}: {key} is missing: expected {', '.join(needed)}")
    return {key: checks[key](part, f"{place}: {key}") for key, part in given.items()}


def excitation(value: object, key: str) -> dict:
    given = mapping(value, key, WE)
    we = {
        name: check(given.get(name, default), f"{key}.{name}")
        for name, (check, default) in WE.items()
    }
    _check_combination(we, key)
    return we


def _check_combination(we: dict, key: str) -> None:
    attentions, given = chained(we["attention"]), f"{key}.attention is {we['attention']}"
    changed = [name for name, (_, default) in WE.items() if we[name] != default]
    for name in changed:
        if name in _OF_LOCATION and not set(attentions) - {"global"}:
            raise ValueError(
                f"{key}.{name}: {we[name]!r} needs an attention of a layer's own, and {given}"
            )
        if name in _OF_WEIGHTS and we["on"] == "features":
            raise ValueError(
                f"{key}.{name}: {we[name]!r} is of weights: leave it out with {key}.on: features"
            )
    if we["on"] == "features" and (len(attentions) != 1 or attentions == ["global"]):
        raise ValueError(f"{key}.on: features needs one of se, cbam, bam, triplet, and {given}")
    if we["order"] != "sequential" and "cbam" not in attentions:
        raise ValueError(f"{key}.order: {we['order']!r} needs {key}.attention: cbam")
    if we["shared"] and attentions != ["global"]:
        raise ValueError(f"{key}.shared: true needs {key}.attention: global")
    if "magnitude" in chained(we["stacked"])[:-1]:
        raise ValueError(f"{key}.stacked: magnitude has no nets to excite: name it last")
    if (we["pause"] or we["ramp"]) and not attentions and we["magnitude"] == "none":
        raise ValueError(f"{key}.pause: nothing to pause: {key} has no attention and no magnitude")


def epochs_of(we: dict, epochs: int, key: str) -> dict:
    """``pretrain``, ``pause`` and ``ramp`` in whole epochs; below 1 they are shares of the run."""
    resolved = {}
    for name in ("pretrain", "pause", "ramp"):
        value = we[name]
        if value >= 1 and value != round(value):
            raise ValueError(
                f"{key}.{name}: expected whole epochs, or below 1 a share of the run's, got {value}"
            )
        resolved[name] = round(value * epochs if value < 1 else value)
    late = max(resolved, key=resolved.get)
    if sum(resolved.values()) >= epochs:
        raise ValueError(
            f"{key}.{late}: pretrain, pause and ramp take {sum(resolved.values())} epochs of "
            f"{epochs}: leave at least one with the excitation on"
        )
    return we | resolved


def training(layers: list[tuple[str, object]]) -> dict:
    """Later layers win; ``null`` leaves what was."""
    merged, origin = dict(_TRAIN_DEFAULTS), {}
    for key, layer in layers:
        for name, value in mapping(layer, key, TRAIN).items():
            if value is not None:
                merged[name], origin[name] = TRAIN[name](value, f"{key}.{name}"), key
    missing = [name for name in TRAIN if name not in merged and name not in ("milestones", "gamma")]
    if missing:
        raise ValueError(f"{layers[0][0]}: {', '.join(missing)} is missing: give it a value there")
    if merged["schedule"] == "step":
        if not merged.get("milestones") or "gamma" not in merged:
            raise ValueError(
                f"{origin['schedule']}.schedule: step needs milestones (epochs) and a gamma"
            )
    else:
        merged.pop("milestones", None), merged.pop("gamma", None)
    if merged["optimizer"] != "sgd":
        merged.pop("momentum")
    return merged
