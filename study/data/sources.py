"""Where each dataset comes from: whole, in memory, before it is cut into splits.

Nothing here depends on a library's random functions: every draw is taken from the bits of PCG64,
so a dataset and its seed give the same bytes on every machine.
"""

import hashlib
import os
import pickle
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Source:
    """A dataset whole: images (N, C, H, W) uint8, labels (N,) int64, and what is to be said of it.

    ``mean`` and ``sd`` are one number a channel, of pixels scaled to [0, 1]. ``pad`` and ``flip``
    are the augmentation that suits it: the zero padding of random crops, in pixels, and whether a
    mirrored image still shows the same thing.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    about: str
    origin: str
    class_names: list[str]
    mean: list[float]
    sd: list[float]
    pad: int
    flip: bool
    task: str = "classification"


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: list[str],
    *,
    about: str = "",
    origin: str = "",
    pad: int = 0,
    flip: bool = False,
) -> Source:
    """A source of images (N, C, H, W) uint8 and labels (N,) that are already arrays.

    It is normalized by the mean and the standard deviation of its training images. Under a name in
    :data:`DATASETS` it is a dataset like the others: ``DATASETS["mine"] = lambda seed: source``.

    Raises:
        ValueError: arrays of another kind or shape, or a label that names no class.
    """
    for split, (images, labels) in (("train", train), ("test", test)):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != train[0].shape[1:]:
            raise ValueError(
                f"{split} images are {images.dtype} {images.shape}: expected uint8 (N, C, H, W), "
                "of one shape for train and test"
            )
        if labels.shape != (len(images),) or not np.isin(labels, range(len(class_names))).all():
            raise ValueError(
                f"{split} labels do not fit: expected {len(images)} whole numbers from 0 to "
                f"{len(class_names) - 1}, one an image"
            )
    mean, sd = moments(train[0])
    return Source(
        *((images, labels.astype(np.int64)) for images, labels in (train, test)),
        about=about,
        origin=origin,
        class_names=list(class_names),
        mean=[round(x, 4) for x in mean],
        sd=[round(x, 4) for x in sd],
        pad=pad,
        flip=flip,
    )


def moments(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of (N, C, H, W) pixels, scaled to [0, 1].

    Counted by value, so that they are the same to the last digit everywhere.
    """
    values = np.arange(256)
    mean, sd = [], []
    for channel in images.swapaxes(0, 1):
        counts = np.bincount(channel.ravel(), minlength=256)
        first, second = (int(counts @ values**k) / channel.size for k in (1, 2))
        mean.append(first / 255)
        sd.append((second - first**2) ** 0.5 / 255)
    return mean, sd


# --- draws ------------------------------------------------------------------------------------


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


# --- digits, which come with scikit-learn ------------------------------------------------------


def digit_scans(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The 1,797 scans, 8×8 with values 0 to 16, cut into 6 parts for train and 4 for test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    test = stratified(labels, round(0.4 * len(labels)), seed, "test scans")
    train = np.setdiff1d(np.arange(len(labels)), test)
    return {"train": (scans[train], labels[train]), "test": (scans[test], labels[test])}


def _digits(about: str, class_names: list[str], train: tuple, test: tuple) -> Source:
    """Grey images (N, H, W) as three equal channels."""
    splits = [(np.repeat(grey[:, None], 3, axis=1), labels) for grey, labels in (train, test)]
    origin = "scikit-learn's load_digits: Optical Recognition of Handwritten Digits, UCI"
    return from_arrays(*splits, class_names, about=about, origin=origin, pad=0)


def _digits10(seed: int) -> Source:
    scans = digit_scans(seed)
    splits = [(images * 15, labels) for images, labels in scans.values()]
    about = "Ten handwritten digits, real scans of 8×8 pixels; train and test show different scans."
    return _digits(about, [str(digit) for digit in range(10)], *splits)


#: Images of each of digits100's classes.
PAIRS = {"train": 100, "test": 20}
#: The noise on a pixel of digits100 is uniform in -NOISE … NOISE, of 255.
NOISE = 32


def _digits100(seed: int) -> Source:
    splits = [
        _pairs(*scans, PAIRS[split], seed, split) for split, scans in digit_scans(seed).items()
    ]
    about = (
        "The hundred two-digit numbers, each of two real scans of handwritten digits side by "
        "side, with noise; train and test are composed of different scans."
    )
    return _digits(about, [f"{number:02d}" for number in range(100)], *splits)


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


# --- CIFAR, from a local copy or from its authors' site -----------------------------------------


def _cifar(name: str, about: str) -> Callable[[int], Source]:
    def source(seed: int) -> Source:
        from torchvision import datasets

        official = getattr(datasets, name)
        read = _originals(official)
        batches = {
            split: [pickle.loads(read(*file), encoding="latin1") for file in files]
            for split, files in (("train", official.train_list), ("test", official.test_list))
        }
        key = "fine_labels" if "fine_labels" in batches["test"][0] else "labels"
        arrays = {
            split: (
                np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32),
                np.concatenate([part[key] for part in parts]).astype(np.int64),
            )
            for split, parts in batches.items()
        }
        names = pickle.loads(
            read(official.meta["filename"], official.meta["md5"]), encoding="latin1"
        )[official.meta["key"]]
        return Source(
            **arrays,
            about=about,
            origin=official.url,
            class_names=list(names),
            # The authors' code has these for both, rounded, with CIFAR-10's mean.
            mean=[0.4914, 0.4822, 0.4465],
            sd=[0.2023, 0.1994, 0.2010],
            pad=4,
            flip=True,
        )

    return source


def _originals(official: type) -> Callable[[str, str], bytes]:
    """A reader of the dataset's files by name and MD5, which opens none that is not the original.

    The MD5 of each file is what counts, so an archive that was packed again is as good.
    """
    mirror = os.environ.get("WEXLIB_DATA")
    if not mirror:
        archive = _download(official)
    else:
        folder, archive = Path(mirror) / official.base_folder, Path(mirror) / official.filename
        if folder.is_dir():
            return lambda name, md5: _checked((folder / name).read_bytes, folder / name, md5)
        if not archive.is_file():
            raise FileNotFoundError(
                f"WEXLIB_DATA names {mirror}, which holds neither {official.base_folder}/ nor "
                f"{official.filename}: put one there, from {official.url}"
            )
    contents: dict[str, bytes] = {}

    def member(name: str) -> bytes:
        if not contents:
            with tarfile.open(archive, "r|gz") as tar:
                for entry in tar:
                    if entry.isfile():
                        contents[Path(entry.name).name] = tar.extractfile(entry).read()
        if name not in contents:
            raise FileNotFoundError(name)
        return contents[name]

    return lambda name, md5: _checked(lambda: member(name), archive, md5, name)


def _checked(read: Callable[[], bytes], path: Path, md5: str, member: str = "") -> bytes:
    """The bytes that ``read`` gives, once their MD5 is right."""
    what = f"{member} of {path}" if member else str(path)
    advice = "delete it, and fetch or copy it again"
    try:
        contents = read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ValueError(f"{what} {reason} (is the copy complete?): {advice}") from error
    found = hashlib.md5(contents, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(f"{what} is not the original (MD5 {found}, expected {md5}): {advice}")
    return contents


def _download(official: type) -> Path:
    """The official archive in the user's cache, fetched whole or not at all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wexlib"
    archive = cache / official.filename
    if archive.is_file():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".{official.filename}.{os.getpid()}"
    mirror = (
        "or get it elsewhere, put it in a folder, archive or extracted, and name the folder in "
        "WEXLIB_DATA"
    )
    print(f"downloading {official.url}", flush=True)
    try:
        with urllib.request.urlopen(official.url, timeout=60) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != official.tgz_md5:
            raise ConnectionError(
                f"what came from {official.url} is incomplete or changed (MD5 {found}, expected "
                f"{official.tgz_md5}): try again, {mirror}"
            )
        partial.rename(archive)
    except ConnectionError:
        raise
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{official.url} cannot be downloaded ({error}): connect to the network, {mirror}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return archive


#: Name to the function that gives the whole dataset, from a seed.
DATASETS: dict[str, Callable[[int], Source]] = {
    "digits10": _digits10,
    "digits100": _digits100,
    "cifar10": _cifar(
        "CIFAR10", "CIFAR-10: 60,000 photographs of 32×32 pixels in ten classes (Krizhevsky 2009)."
    ),
    "cifar100": _cifar(
        "CIFAR100",
        "CIFAR-100: 60,000 photographs of 32×32 pixels in 100 classes (Krizhevsky 2009).",
    ),
}
