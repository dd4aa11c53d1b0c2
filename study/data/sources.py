"""Where each dataset comes from, by its name."""

import hashlib
import inspect
import os
import pickle
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np

from study.data import digits, disk, folders
from study.data.base import Source, from_arrays
from wexlib.names import choose

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


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wexlib"


def _download(official: type) -> Path:
    """The official archive in the user's cache, fetched whole or not at all."""
    cache = _cache()
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


# --- torchvision's others, by name ---------------------------------------------------------------


def _torchvision(name: str, seed: int) -> Source:
    """A classification set of torchvision, as arrays of the median of the images' shorter sides.

    They are brought to 64 pixels at most. Read below ``WEXLIB_DATA``, else downloaded by
    torchvision.
    """
    from torchvision import datasets

    kind = getattr(datasets, choose(name, datasets.__all__, "dataset of torchvision"))
    takes = inspect.signature(kind).parameters
    home = os.environ.get("WEXLIB_DATA")
    options = {"root": home or _cache()} | ({"download": not home} if "download" in takes else {})
    made, pictures = {}, {}
    for split in ("train", "test"):
        if "train" in takes:
            options["train"] = split == "train"
        elif "split" in takes:
            options["split"] = split
        else:
            raise ValueError(f"torchvision's {name} has no test split: expected a set that has one")
        try:
            made[split] = kind(**options)
            pictures[split] = [(image.convert("RGB"), int(label)) for image, label in made[split]]
        except (AttributeError, TypeError):
            raise ValueError(f"torchvision's {name} is not of images with a label each") from None
        except (RuntimeError, OSError, ValueError) as error:
            raise FileNotFoundError(
                f"torchvision's {name} cannot be read below {options['root']} "
                f"({' '.join(str(error).split())}): put its files there, as torchvision lays them "
                "out, and name the folder in WEXLIB_DATA"
            ) from None
    side = min(folders.SMALL, int(np.median([min(image.size) for image, _ in pictures["train"]])))
    names = getattr(made["train"], "classes", None)
    names = names or [str(i) for i in range(1 + max(label for _, label in pictures["train"]))]
    splits = {
        split: (
            np.stack([disk.pixels(image, (side, side)) for image, _ in pairs]),
            np.array([label for _, label in pairs]),
        )
        for split, pairs in pictures.items()
    }
    about = f"torchvision's {name}, {side}×{side} pixels."
    url = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{name}.html"
    # Whether a mirrored image shows the same thing is not known.
    return from_arrays(**splits, class_names=names, about=about, origin=url, pad=side // 8)


#: Name to the function that gives the whole dataset, from a seed.
DATASETS: dict[str, Callable[[int], Source]] = {
    "digits10": digits.digits10,
    "digits100": digits.digits100,
    "scenes": digits.scene_set,
    "moving-digits": digits.clip_set,
    "cifar10": _cifar(
        "CIFAR10", "CIFAR-10: 60,000 photographs of 32×32 pixels in ten classes (Krizhevsky 2009)."
    ),
    "cifar100": _cifar(
        "CIFAR100",
        "CIFAR-100: 60,000 photographs of 32×32 pixels in 100 classes (Krizhevsky 2009).",
    ),
    "cinic10": folders.cinic10,
    "tiny-imagenet": folders.tiny_imagenet,
    "imagenet": folders.imagenet,
    "voc": folders.voc,
    "kinetics": folders.kinetics,
    "jester": folders.jester,
}


def find(dataset: str) -> Callable[[int], Source]:
    """The function that gives a dataset, from a seed.

    ``dataset`` is a name of :data:`DATASETS`, ``torchvision:`` and the name of one of torchvision's
    classes, or the path of a folder of images, which has a ``/``.

    Raises:
        ValueError: an unknown name.
    """
    if "/" in str(dataset):
        return partial(folders.own, dataset)
    if str(dataset).startswith("torchvision:"):
        return partial(_torchvision, dataset.partition(":")[2])
    return DATASETS[choose(dataset, DATASETS, "dataset")]
