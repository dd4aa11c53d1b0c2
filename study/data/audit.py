"""What a dataset is like, from its arrays: sizes, classes, means, constant and equal images."""

import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from study.data.loader import SPLITS, Data
from study.data.sources import moments


def summary(datasets: Mapping[str, Data]) -> pd.DataFrame:
    """A row for each dataset and split that has images.

    Columns: set, data, split, images, shape (channels × height × width), classes, least and most
    (images of a class), mean and sd (one number a channel, of pixels scaled to [0, 1]), constant
    (images of one colour, as broken files give them), strange (labels that name no class), sha256
    (of the images' file, the first 12 digits).
    """
    rows = []
    for name, data in datasets.items():
        for split in SPLITS:
            images, labels = data.images(split), data.labels(split)
            if not len(images):
                continue
            known = (labels >= 0) & (labels < data.classes)
            counts = np.bincount(labels[known], minlength=data.classes)
            mean, sd = moments(images)
            rows.append(
                {
                    "set": name,
                    "data": data.meta["dataset"],
                    "split": split,
                    "images": len(images),
                    "shape": " × ".join(map(str, images.shape[1:])),
                    "classes": int((counts > 0).sum()),
                    "least": counts.min(),
                    "most": counts.max(),
                    "mean": mean,
                    "sd": sd,
                    "constant": constant(images),
                    "strange": int((~known).sum()),
                    "sha256": data.meta["sha256"][f"{split}_images.npy"][:12],
                }
            )
    return pd.DataFrame(rows)


def constant(images: np.ndarray) -> int:
    """The number of images whose channels each have one value."""
    flat = images.reshape(*images.shape[:2], -1)
    return int((flat.min(2) == flat.max(2)).all(1).sum())


def equal_images(datasets: Mapping[str, Data]) -> pd.DataFrame:
    """How many images of a split (row) are in another (column), equal in every pixel.

    On the diagonal: how many are in their own split once more. Rows and columns are named "set,
    split".
    """
    digests = {
        f"{name}, {split}": Counter(
            hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            for image in data.images(split)
        )
        for name, data in datasets.items()
        for split in SPLITS
        if len(data.images(split))
    }

    def shared(a: str, b: str) -> int:
        if a == b:
            return sum(n for n in digests[a].values() if n > 1)
        return sum(n for digest, n in digests[a].items() if digest in digests[b])

    return pd.DataFrame({b: {a: shared(a, b) for a in digests} for b in digests})


def class_counts(datasets: Mapping[str, Data]) -> pd.DataFrame:
    """Columns set, split, class (its number) and images, a row for each."""
    return pd.DataFrame(
        [
            {"set": name, "split": split, "class": label, "images": int(n)}
            for name, data in datasets.items()
            for split in SPLITS
            for label, n in enumerate(np.bincount(data.labels(split), minlength=data.classes))
        ]
    )
