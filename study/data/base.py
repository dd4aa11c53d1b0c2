"""A dataset whole, before it is cut into splits, and the draws that cut it.

Nothing here depends on a library's random functions: every draw is taken from the bits of PCG64,
so a dataset and its seed give the same bytes on every machine.
"""

from dataclasses import dataclass, replace

import numpy as np

Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Source:
    """A dataset whole: inputs and targets of its splits, and what is to be said of it.

    Inputs are images (N, C, H, W) or clips (N, C, T, H, W), uint8; targets labels (N,) int64, or
    masks (N, H, W) uint8 with 255 where a pixel is of no class. ``validation`` is the set's own;
    without one, prepare cuts it from train. ``mean`` and ``sd`` are one number a channel, of pixels
    scaled to [0, 1]. ``pad`` and ``flip`` are the augmentation that suits it: the zero padding of
    random crops, in pixels, and whether a mirrored image still shows the same thing.

    What comes from files names them in ``files``, rows of :func:`study.data.disk.table` for each
    split. What does not fit in memory has a ``stream``, which says how they are read, and those
    rows as its inputs; a mask is then the path of its file. ``official`` is how many inputs its
    publisher counts in a split; ``overlap`` is a name, and for each split whether a file is there
    too.
    """

    train: Split
    test: Split
    about: str
    origin: str
    class_names: list[str]
    mean: list[float]
    sd: list[float]
    pad: int
    flip: bool
    task: str = "classification"
    validation: Split | None = None
    files: dict[str, np.ndarray] | None = None
    stream: dict | None = None
    official: dict[str, int] | None = None
    overlap: tuple[str, dict[str, np.ndarray]] | None = None


def from_arrays(
    train: Split,
    test: Split,
    class_names: list[str],
    *,
    about: str = "",
    origin: str = "",
    pad: int = 0,
    flip: bool = False,
    **more: object,
) -> Source:
    """A source of images (N, C, H, W) uint8 and labels (N,) that are already arrays.

    It is normalized by the mean and the standard deviation of its training images. Under a name in
    ``DATASETS`` it is a dataset like the others: ``DATASETS["mine"] = lambda seed: source``.
    Clips, masks and what else a :class:`Source` holds are given by its names.

    Raises:
        ValueError: arrays of another kind or shape, or a label that names no class.
    """
    task, own = more.get("task", "classification"), more.get("validation")
    splits = {"train": train, "test": test} | ({"validation": own} if own else {})
    axes, masks = "N, C, T, H, W" if task == "video" else "N, C, H, W", task == "segmentation"
    for split, (images, targets) in splits.items():
        if (images.dtype, images.ndim) != (np.uint8, 1 + axes.count(",")) or (
            images.shape[1:] != train[0].shape[1:]
        ):
            raise ValueError(
                f"{split} images are {images.dtype} {images.shape}: expected uint8 ({axes}), of "
                "one shape for train and test"
            )
        shape = (len(images), *images.shape[2:]) if masks else (len(images),)
        known = [*range(len(class_names)), *[255] * masks]
        if targets.shape != shape or not np.isin(targets, known).all():
            what, each = ("masks", "a pixel, or 255") if masks else ("labels", "an image")
            raise ValueError(
                f"{split} {what} do not fit: expected {len(images)} whole numbers from 0 to "
                f"{len(class_names) - 1}, one {each}"
            )
    mean, sd = moments(train[0])
    kept = {
        split: (images, targets.astype(np.uint8 if masks else np.int64))
        for split, (images, targets) in splits.items()
    }
    return Source(
        about=about,
        origin=origin,
        class_names=list(class_names),
        mean=[round(x, 4) for x in mean],
        sd=[round(x, 4) for x in sd],
        pad=pad,
        flip=flip,
        **more | kept,
    )


def reduced(source: Source, size: int) -> Source:
    """A source whose images have ``size`` pixels a side: means of squares of its own pixels,
    rounded half up.

    Raises:
        ValueError: it has no labelled, square images in memory, or a side that ``size`` does not
            divide.
    """
    side = source.train[0].shape[-1]
    if (
        source.stream
        or source.task != "classification"
        or source.train[0].shape[-2:] != (side,) * 2
    ):
        raise ValueError("size is for square images with labels, in memory: leave it out")
    if not 1 <= size <= side or side % size:
        raise ValueError(f"expected a size that divides {side} pixels, got {size}")
    k = side // size

    def means(split: Split | None) -> Split | None:
        if split is None:
            return None
        images = split[0].reshape(*split[0].shape[:2], size, k, size, k)
        total = images.sum((3, 5), dtype=np.uint32)
        return ((2 * total + k * k) // (2 * k * k)).astype(np.uint8), split[1]

    return replace(
        source,
        train=means(source.train),
        validation=means(source.validation),
        test=means(source.test),
        about=f"{source.about} Reduced to {size}×{size}, each pixel the mean of {k}×{k}.",
        pad=-(-source.pad // k),
    )


def moments(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of (N, C, H, W) pixels, scaled to [0, 1].

    Counted by value, so that they are the same to the last digit everywhere.
    """
    values = np.arange(256)
    mean, sd = [], []
    for channel in images.swapaxes(0, 1):
        parts = np.array_split(channel, 1 + channel.size // 2**24)  # bincount takes 8 bytes a pixel
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in parts)
        first, second = (int(counts @ values**k) / channel.size for k in (1, 2))
        mean.append(first / 255)
        sd.append((second - first**2) ** 0.5 / 255)
    return mean, sd


def draw(shape: int | tuple[int, ...], below: int, seed: int, purpose: str) -> np.ndarray:
    """Integers in [0, below), int64, from a stream of PCG64's bits that is ``purpose``'s own.

    NumPy keeps those bits the same for ever, which it does not promise of ``Generator``'s methods.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, *purpose.encode()]))
    drawn = (bits.random_raw(int(np.prod(shape))) >> np.uint64(11)).astype(np.int64)
    return drawn.reshape(shape) % below


def stratified(labels: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Ascending indices of ``count`` labels, each class within one of its proportional share.

    Class c gets ⌊count·n_c/n⌋, and the largest remainders one more (the lower class on a tie).
    """
    counts = np.bincount(labels)
    share, remainder = np.divmod(count * counts, max(len(labels), 1))
    share[np.argsort(-remainder, kind="stable")[: count - share.sum()]] += 1
    shuffled = np.argsort(draw(len(labels), 1 << 53, seed, purpose), kind="stable")
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    return np.sort(order[place < share[labels[order]]])
