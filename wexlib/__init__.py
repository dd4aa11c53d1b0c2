"""Weight excitation: attention computed on a network's weights instead of its feature maps.

    >>> from wexlib import excite, fold, Standardize, Location, SE
    >>> excite(model, [Standardize(), Location(SE())])   # train it
    >>> fold(model)                                      # ship it: plain layers, plain weights

The names below are imported when first used, so that the pipeline's light steps never load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wexlib.attach import attend, average, describe, excite, fold, pause, precompute, resume
    from wexlib.attention import BAM, CBAM, SE, Triplet
    from wexlib.excitation import Location, Magnitude, Standardize
    from wexlib.record import load
    from wexlib.sharing import Global

__version__ = "0.1.0"

__all__ = [
    "BAM",
    "CBAM",
    "SE",
    "Global",
    "Location",
    "Magnitude",
    "Standardize",
    "Triplet",
    "attend",
    "average",
    "describe",
    "excite",
    "fold",
    "load",
    "pause",
    "precompute",
    "resume",
]

#: The module of each public name.
MODULE_OF = {
    **dict.fromkeys(
        ("attend", "average", "describe", "excite", "fold", "pause", "precompute", "resume"),
        "attach",
    ),
    **dict.fromkeys(("BAM", "CBAM", "SE", "Triplet"), "attention"),
    **dict.fromkeys(("Location", "Magnitude", "Standardize"), "excitation"),
    "Global": "sharing",
    "load": "record",
}


def __getattr__(name: str) -> object:
    if name in MODULE_OF:
        return getattr(import_module(f"wexlib.{MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'wexlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
