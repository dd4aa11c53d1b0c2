"""What a dataset is like, from its arrays: sizes, classes, means, constant and equal images."""

import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from study.data.base import moments
from study.data.loader import IGNORED, SPLITS, Data


def summary(datasets: Mapping[str, Data]) -> pd.DataFrame:
    """A row for each dataset and split that has images.

    Columns: set, data, split, images, shape (channels × frames × height × width), classes, least
    and most (images of a class), mean and sd (one number a channel, of pixels scaled to [0, 1]),
    constant (images of one colour, as broken files give them), strange (labels that name no class;
    of masks, pixels), sha256 (of the images' file, or of the list of files, the first 12 digits).
    What a stream's files hold is not read: there mean, sd and constant are None.
    """
    rows = []
    for name, data in datasets.items():
        for split in SPLITS:
            if not data.count(split):
                continue
            counts, strange = occurrences(data, split)
            file = f"{split}.csv" if data.streamed else f"{split}_images.npy"
            pixels = None if data.streamed else data.images(split)
            mean, sd = (None, None) if data.streamed else moments(pixels)
            rows.append(
                {
                    "set": name,
                    "data": data.meta["dataset"],
                    "split": split,
                    "images": data.count(split),
                    "shape": " × ".join(map(str, data.meta["image_shape"])),
                    "classes": None if counts is None else int((counts > 0).sum()),
                    "least": None if counts is None else counts.min(),
                    "most": None if counts is None else counts.max(),
                    "mean": mean,
                    "sd": sd,
                    "constant": None if data.streamed else constant(pixels),
                    "strange": strange,
                    "sha256": data.meta["sha256"][file][:12],
                }
            )
    return pd.DataFrame(rows)


def occurrences(data: Data, split: str) -> tuple[np.ndarray | None, int | None]:
    """The number of images that each class is in, and of labels that name none.

    Of masks, pixels that name none; of masks that are files, nothing.
    """
    targets = data.labels(split)
    if targets.dtype.kind == "S":
        return None, None
    known = targets[(targets >= 0) & (targets < data.classes)]
    strange = targets.size - known.size - int((targets == IGNORED).sum()) * (targets.ndim > 1)
    if targets.ndim == 1:
        return np.bincount(known, minlength=data.classes), strange
    present = [np.bincount(np.unique(mask), minlength=256)[: data.classes] for mask in targets]
    return np.zeros(data.classes, np.int64) + sum(present), strange


def constant(images: np.ndarray) -> int:
    """The number of images whose channels each have one value."""
    flat = images.reshape(*images.shape[:2], -1)
    return int((flat.min(2) == flat.max(2)).all(1).sum())


def equal_images(datasets: Mapping[str, Data]) -> pd.DataFrame:
    """How many images of a split (row) are in another (column), equal in every pixel.

    On the diagonal: how many are in their own split once more. Rows and columns are named "set,
    split". Of a stream the files are compared, where their digests are known.
    """
    digests = {
        f"{name}, {split}": Counter(found)
        for name, data in datasets.items()
        for split in SPLITS
        if (found := _digests(data, split))
    }

    def shared(a: str, b: str) -> int:
        if a == b:
            return sum(n for n in digests[a].values() if n > 1)
        return sum(n for digest, n in digests[a].items() if digest in digests[b])

    return pd.DataFrame({b: {a: shared(a, b) for a in digests} for b in digests})


def _digests(data: Data, split: str) -> list[bytes]:
    if data.streamed:
        return [digest for digest in data.images(split)["sha256"].tolist() if digest]
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in data.images(split)
    ]


def class_counts(datasets: Mapping[str, Data]) -> pd.DataFrame:
    """Columns set, split, class (its number) and images, a row for each.

    Of masks: the images that the class is in.
    """
    return pd.DataFrame(
        [
            {"set": name, "split": split, "class": label, "images": int(n)}
            for name, data in datasets.items()
            for split in SPLITS
            for label, n in enumerate(_counts(data, split))
        ]
    )


def _counts(data: Data, split: str) -> np.ndarray:
    counts, _ = occurrences(data, split)
    return np.zeros(0) if counts is None else counts
