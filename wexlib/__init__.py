"""Weight excitation: attention computed on a network's weights instead of its feature maps.

>>> from wexlib import excite, fold, Standardize, Location, SE
>>> excite(model, [Standardize(), Location(SE())])   # train it
>>> fold(model)                                      # ship it: plain layers, plain weights
"""

from wexlib.attach import attend, average, describe, excite, fold, pause, precompute, resume
from wexlib.attention import BAM, CBAM, SE, Triplet
from wexlib.excitation import Location, Magnitude, Standardize
from wexlib.sharing import Global

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
    "pause",
    "precompute",
    "resume",
]
