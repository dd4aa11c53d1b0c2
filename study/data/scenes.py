"""Digits composed for tasks that are no classification of images, as the thesis's sets are.

Scenes with masks stand in for PASCAL VOC (semantic segmentation), moving digits for Mini-Kinetics
and Jester (actions, gestures). The scans are scikit-learn's, those of train never in test, and
every draw follows from the seed.
"""

import numpy as np

from study.data.sources import digit_scans, draw
from wexlib.names import choose

SPLITS = ("train", "test")
#: Side of a scene and of a frame, and of a digit in it, in pixels.
SIDE, DIGIT = 48, 16
#: Pixels that a digit moves from one frame to the next.
STEP = 3
#: Where to, as (rows, columns).
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def _scans(split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The split's scans at twice their size, (N, 16, 16) of 0 to 240, and their digits."""
    scans, digits = digit_scans(seed)[choose(split, SPLITS, "split")]
    return (15 * scans).repeat(2, axis=1).repeat(2, axis=2), digits


def scenes(
    split: str, count: int, *, most: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of one to ``most`` digits, one in front of the other where they meet.

    Returns:
        images: (count, 48, 48) uint8, 0 where there is no ink.
        masks: (count, 48, 48) uint8, for each pixel 0 for the background or 1 + the digit whose ink
            it shows.

    Raises:
        ValueError: an unknown split.
    """
    scans, digits = _scans(split, seed)
    number = 1 + draw(count, most, seed, f"{split} scene number")
    which = draw((count, most), len(scans), seed, f"{split} scene scan")
    corner = draw((count, most, 2), SIDE - DIGIT + 1, seed, f"{split} scene corner")
    images = np.zeros((count, SIDE, SIDE), np.uint8)
    masks = np.zeros_like(images)
    for image, mask, n, scan, corners in zip(images, masks, number, which, corner, strict=True):
        for i, (top, left) in zip(scan[:n], corners[:n], strict=True):
            window = (slice(top, top + DIGIT), slice(left, left + DIGIT))
            ink = scans[i] > 0
            image[window][ink] = scans[i][ink]
            mask[window][ink] = 1 + digits[i]
    return images, masks


def moving_digits(
    split: str, count: int, *, frames: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Clips of one digit that moves by 3 pixels a frame; the label is where to.

    Returns:
        clips: (count, frames, 48, 48) uint8.
        labels: (count,) int64, the place in :data:`DIRECTIONS`; no single frame tells it.

    Raises:
        ValueError: an unknown split, or more frames than fit into the picture.
    """
    scans, _ = _scans(split, seed)
    path = STEP * (frames - 1)
    room = SIDE - DIGIT - path
    if frames < 1 or room < 0:
        raise ValueError(f"frames is {frames}: expected 1 to {(SIDE - DIGIT) // STEP + 1}")
    which = draw(count, len(scans), seed, f"{split} clip scan")
    labels = draw(count, len(DIRECTIONS), seed, f"{split} clip direction")
    along = draw(count, room + 1, seed, f"{split} clip start")
    across = draw(count, SIDE - DIGIT + 1, seed, f"{split} clip line")
    clips = np.zeros((count, frames, SIDE, SIDE), np.uint8)
    steps = list(DIRECTIONS.values())
    for clip, scan, label, start, line in zip(clips, which, labels, along, across, strict=True):
        rows, columns = steps[label]
        first = start if rows + columns > 0 else start + path
        for t, frame in enumerate(clip):
            moved = first + STEP * t * (rows + columns)
            top, left = (moved, line) if rows else (line, moved)
            frame[top : top + DIGIT, left : left + DIGIT] = scans[scan]
    return clips, labels
