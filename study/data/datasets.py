"""Prepare a dataset: cut its splits, and write them as plain arrays that prove themselves."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np

from study.data.sources import DATASETS, stratified
from study.files import digest
from wexlib.names import choose


def prepare(
    dataset: str,
    folder: str | Path,
    *,
    train: int | None = None,
    validation: int = 0,
    test: int | None = None,
    seed: int = 0,
) -> None:
    """Write a dataset as ``<split>_images.npy``, ``<split>_labels.npy`` and ``meta.json``.

    Validation is cut from the training images, each class in proportion, and ``train`` and
    ``test`` limit the others to such a subset of so many images; ``None`` takes all that is left.
    The folder appears whole or not at all.

    Raises:
        ValueError: an unknown dataset, more images than there are, or a file that is not the
            original.
        FileNotFoundError: ``WEXLIB_DATA`` names a folder without the dataset.
        ConnectionError: the dataset cannot be downloaded.
    """
    source = DATASETS[choose(dataset, DATASETS, "dataset")](seed)
    total = len(source.train[1])
    train = total - validation if train is None else train
    test = len(source.test[1]) if test is None else test
    _check_sizes(dataset, total, len(source.test[1]), train, validation, test)

    labels = source.train[1]
    held_out = stratified(labels, validation, seed, "validation")
    rest = np.setdiff1d(np.arange(total), held_out)
    chosen = rest[stratified(labels[rest], train, seed, "train")]
    indices = {
        "train": (source.train, chosen),
        "validation": (source.train, held_out),
        "test": (source.test, stratified(source.test[1], test, seed, "test")),
    }
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for split, ((images, labels), index) in indices.items():
            for kind, array in (("images", images[index]), ("labels", labels[index])):
                buffer = io.BytesIO()  # NumPy does not say that a disk is full
                np.save(buffer, array)
                (temporary / f"{split}_{kind}.npy").write_bytes(buffer.getbuffer())
        meta = {
            "dataset": dataset,
            "task": source.task,
            "about": source.about,
            "origin": source.origin,
            "seed": seed,
            "sizes": {split: len(index) for split, (_, index) in indices.items()},
            "image_shape": list(source.train[0].shape[1:]),
            "classes": len(source.class_names),
            "class_names": source.class_names,
            "mean": source.mean,
            "sd": source.sd,
            "pad": source.pad,
            "flip": source.flip,
            "sha256": {path.name: _sha256(path) for path in sorted(temporary.glob("*.npy"))},
        }
        meta["digest"] = digest(meta)
        text = json.dumps(meta, indent=1, ensure_ascii=False) + "\n"
        (temporary / "meta.json").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_sizes(
    dataset: str, total: int, total_test: int, train: int, validation: int, test: int
) -> None:
    if train < 1 or test < 1 or validation < 0 or train + validation > total:
        raise ValueError(
            f"{dataset} has {total} training images: expected at least one for train, at least "
            f"one for test and no more than all, got train {train} + validation {validation}"
        )
    if test > total_test:
        raise ValueError(f"{dataset} has {total_test} test images, got test {test}: ask for fewer")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
