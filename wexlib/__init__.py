"""Weight excitation: attention computed on a network's weights instead of its feature maps.

>>> from wexlib import excite, fold, Standardize, Location, SE
>>> excite(model, [Standardize(), Location(SE())])   # train it
>>> fold(model)                                      # ship it: plain layers, plain weights
"""

from wexlib.attach import attend, excite, fold, remove
from wexlib.attention import BAM, CBAM, SE, Triplet
from wexlib.checkpoint import load, save
from wexlib.control import average, parameter_groups, pause, precompute, resume
from wexlib.describe import describe, inspect
from wexlib.excitation import Global, Location, Standardize
from wexlib.magnitude import Magnitude

__version__ = "0.2.0"

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
    "inspect",
    "load",
    "parameter_groups",
    "pause",
    "precompute",
    "remove",
    "resume",
    "save",
]
