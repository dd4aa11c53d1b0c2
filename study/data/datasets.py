"""Prepare a dataset: cut its splits, and write them as plain arrays that prove themselves.

Of what does not fit in memory a manifest is written, the list of its files.
"""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np

from study.data.base import Source, reduced, stratified
from study.data.disk import write_manifest
from study.data.sources import find
from study.files import digest


def prepare(
    dataset: str,
    folder: str | Path,
    *,
    size: int | None = None,
    train: int | None = None,
    validation: int | None = 0,
    test: int | None = None,
    seed: int = 0,
) -> None:
    """Write a dataset as ``<split>_images.npy``, ``<split>_labels.npy`` and ``meta.json``.

    Masks are in ``<split>_masks.npy``. What comes from files has a ``<split>.csv``, which lists
    them with their digests; where that is a stream there are no arrays.

    Validation is taken from the dataset's own validation split, or cut from the training images
    where it has none, each class in proportion; ``train`` and ``test`` limit the others to such a
    subset of so many. ``None`` takes all that is left; of validation, all of its own. With ``size``
    the images are reduced to so many pixels a side (:func:`study.data.base.reduced`).

    Args:
        dataset: what :func:`study.data.sources.find` takes.

    Raises:
        ValueError: an unknown dataset, a size that does not divide its own, more images than there
            are, fewer than its publisher counts where all are asked for, or a file that is broken
            or not the original.
        FileNotFoundError: the dataset, or a file of it, is not in the folder of ``WEXLIB_DATA``.
        ConnectionError: the dataset cannot be downloaded.
    """
    source = find(dataset)(seed)
    if size:
        source = reduced(source, size)
    parts = {"train": source.train, "validation": source.validation or source.train}
    parts["test"] = source.test
    total = {split: len(targets) for split, (_, targets) in parts.items()}
    if validation is None:
        validation = total["validation"] if source.validation else 0
    cut = 0 if source.validation else validation
    wanted = {
        "train": total["train"] - cut if train is None else train,
        "validation": validation,
        "test": total["test"] if test is None else test,
    }
    _check_sizes(dataset, source, total, wanted, cut)
    _check_official(dataset, source, total, train is None, test is None)

    labels = {split: _labels(targets) for split, (_, targets) in parts.items()}
    index = {"validation": stratified(labels["validation"], validation, seed, "validation")}
    rest = np.arange(total["train"])
    if cut:
        rest = np.setdiff1d(rest, index["validation"])
    index["train"] = rest[stratified(labels["train"][rest], wanted["train"], seed, "train")]
    index["test"] = stratified(labels["test"], wanted["test"], seed, "test")
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for split, (inputs, targets) in parts.items():
            chosen = index[split]
            if source.files:
                own = "train" if split not in source.files else split
                rows = source.files[own][chosen]
                write_manifest(temporary / f"{split}.csv", rows, targets[chosen])
            if source.stream:
                continue
            kind = "masks" if source.task == "segmentation" else "labels"
            for name, array in (("images", inputs[chosen]), (kind, targets[chosen])):
                buffer = io.BytesIO()  # NumPy does not say that a disk is full
                np.save(buffer, array)
                (temporary / f"{split}_{name}.npy").write_bytes(buffer.getbuffer())
        meta = {
            "dataset": dataset,
            "task": source.task,
            "about": source.about,
            "origin": source.origin,
            "seed": seed,
            "sizes": {split: len(index[split]) for split in parts},
            "image_shape": list(source.train[0].shape[1:]),
            "classes": len(source.class_names),
            "class_names": source.class_names,
            "mean": source.mean,
            "sd": source.sd,
            "pad": source.pad,
            "flip": source.flip,
        }
        if source.stream:
            meta |= {"stream": source.stream["home"], "resize": source.stream["resize"]}
            meta["image_shape"] = source.stream["image_shape"]
        if source.overlap:
            name, there = source.overlap
            meta["overlap"] = {"with": name} | {s: int(there[s][index[s]].sum()) for s in there}
        files = sorted([*temporary.glob("*.npy"), *temporary.glob("*.csv")])
        meta["sha256"] = {path.name: _sha256(path) for path in files}
        meta["digest"] = digest(meta)
        text = json.dumps(meta, indent=1, ensure_ascii=False) + "\n"
        (temporary / "meta.json").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _labels(targets: np.ndarray) -> np.ndarray:
    """Classes to cut by: masks are all of one."""
    return targets if targets.dtype == np.int64 else np.zeros(len(targets), np.int64)


def _check_sizes(
    dataset: str, source: Source, total: dict[str, int], wanted: dict[str, int], cut: int
) -> None:
    train, validation, test = (wanted[split] for split in ("train", "validation", "test"))
    if train < 1 or test < 1 or validation < 0 or train + cut > total["train"]:
        raise ValueError(
            f"{dataset} has {total['train']} training images: expected at least one for train, at "
            f"least one for test and no more than all, got train {train} + validation {validation}"
        )
    if validation > total["validation"]:
        raise ValueError(
            f"{dataset} has {total['validation']} validation images, got validation {validation}: "
            "ask for fewer"
        )
    if test > total["test"]:
        raise ValueError(
            f"{dataset} has {total['test']} test images, got test {test}: ask for fewer"
        )


def _check_official(
    dataset: str, source: Source, total: dict[str, int], all_train: bool, all_test: bool
) -> None:
    """What is incomplete may be used by asking for a number, never unawares."""
    for split, asked in (("train", all_train), ("test", all_test)):
        official = (source.official or total).get(split)
        if asked and total[split] != official:
            raise ValueError(
                f"{dataset} is incomplete: {total[split]} of {official} {split} images are there; "
                f"extract it again, or ask for a number of them by {split}"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
