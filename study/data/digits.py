"""The embedded datasets, composed of scikit-learn's 1,797 scans of handwritten digits.

Digits and pairs of digits stand in for photographs, scenes with masks for PASCAL VOC (semantic
segmentation), moving digits for Mini-Kinetics and Jester (actions, gestures). The scans of train
are never in test, and every draw follows from the seed.
"""

import numpy as np

from study.data.base import Source, draw, from_arrays, stratified
from wexlib.names import choose

SPLITS = ("train", "test")
#: Side of a scene and of a frame, and of a digit in it, in pixels.
SIDE, DIGIT = 48, 16
#: Pixels that a digit moves from one frame to the next.
STEP = 3
#: Where to, as (rows, columns).
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def digit_scans(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The 1,797 scans, 8×8 with values 0 to 16, cut into 6 parts for train and 4 for test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    test = stratified(labels, round(0.4 * len(labels)), seed, "test scans")
    train = np.setdiff1d(np.arange(len(labels)), test)
    return {"train": (scans[train], labels[train]), "test": (scans[test], labels[test])}


def _grey(
    about: str, class_names: list[str], train: tuple, test: tuple, **options: object
) -> Source:
    """Grey images (N, H, W), or clips (N, T, H, W), as three equal channels."""
    splits = [(np.repeat(grey[:, None], 3, axis=1), targets) for grey, targets in (train, test)]
    origin = "scikit-learn's load_digits: Optical Recognition of Handwritten Digits, UCI"
    return from_arrays(*splits, class_names, about=about, origin=origin, **options)


def digits10(seed: int) -> Source:
    scans = digit_scans(seed)
    splits = [(images * 15, labels) for images, labels in scans.values()]
    about = "Ten handwritten digits, real scans of 8×8 pixels; train and test show different scans."
    return _grey(about, [str(digit) for digit in range(10)], *splits)


#: Images of each of digits100's classes.
PAIRS = {"train": 100, "test": 20}
#: The noise on a pixel of digits100 is uniform in -NOISE … NOISE, of 255.
NOISE = 32


def digits100(seed: int) -> Source:
    splits = [
        _pairs(*scans, PAIRS[split], seed, split) for split, scans in digit_scans(seed).items()
    ]
    about = (
        "The hundred two-digit numbers, each of two real scans of handwritten digits side by "
        "side, with noise; train and test are composed of different scans."
    )
    return _grey(about, [f"{number:02d}" for number in range(100)], *splits)


def _pairs(
    scans: np.ndarray, digits: np.ndarray, each: int, seed: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """``each`` images (8, 16) for each of the numbers 00 to 99: tens on the left, ones right."""
    labels = np.tile(np.arange(100), each)
    counts = np.bincount(digits)
    by_digit = np.argsort(digits, kind="stable")
    first = np.cumsum(counts) - counts
    halves = []
    for side, digit in (("left", labels // 10), ("right", labels % 10)):
        which = draw(len(labels), 1 << 53, seed, f"{split} {side} scan") % counts[digit]
        halves.append(15 * scans[by_digit[first[digit] + which]].astype(np.int64))
    canvas = np.concatenate(halves, axis=2)
    canvas += draw(canvas.shape, 2 * NOISE + 1, seed, f"{split} noise") - NOISE
    return canvas.clip(0, 255).astype(np.uint8), labels


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


#: Images and clips of the sets of scenes and of moving digits.
SCENES = {"train": 2000, "test": 500}
CLIPS = {"train": 1000, "test": 400}
#: Frames of a moving digit's clip.
FRAMES = 8


def scene_set(seed: int) -> Source:
    splits = [scenes(split, count, seed=seed) for split, count in SCENES.items()]
    about = (
        "Scenes of 48×48 pixels with one to four handwritten digits, real scans, and a mask that "
        "names the digit whose ink a pixel shows; train and test show different scans."
    )
    names = ["background", *map(str, range(10))]
    return _grey(about, names, *splits, task="segmentation", pad=4)


def clip_set(seed: int) -> Source:
    splits = [moving_digits(split, n, frames=FRAMES, seed=seed) for split, n in CLIPS.items()]
    about = (
        "Clips of 8 frames of 48×48 pixels: a handwritten digit, a real scan, moves to one of four "
        "sides; train and test show different scans."
    )
    return _grey(about, list(DIRECTIONS), *splits, task="video", pad=4)
