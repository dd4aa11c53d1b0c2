"""Prepared datasets, and the loader that feeds them to a model from its own device."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from study.files import digest
from wexlib.names import choose

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """The splits of a prepared dataset: images (N, C, H, W) uint8 and labels (N,) int64 of each.

    ``meta`` is its ``meta.json``.
    """

    meta: dict
    splits: dict[str, tuple[np.ndarray, np.ndarray]]

    def images(self, split: str) -> np.ndarray:
        return self.splits[choose(split, SPLITS, "split")][0]

    def labels(self, split: str) -> np.ndarray:
        return self.splits[choose(split, SPLITS, "split")][1]

    def count(self, split: str) -> int:
        return len(self.labels(split))

    @property
    def classes(self) -> int:
        return self.meta["classes"]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.meta["image_shape"][1:])


def load(folder: str | Path) -> Data:
    """Read what :func:`study.data.datasets.prepare` wrote, once every file proves unchanged.

    Raises:
        FileNotFoundError, ValueError: a file is missing or not what was prepared; the sentence
            names the file and the commands that bring it back.
    """
    folder = Path(folder)
    stage = f"data@{folder.parent.name}-{folder.name}"
    advice = f"run dvc checkout --force {folder}, or dvc repro --force --single-item {stage}"
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta["digest"] != digest(meta):
            raise ValueError("its digest is another")
        shape = tuple(meta["image_shape"])
        splits = {}
        for split in SPLITS:
            arrays = []
            n = meta["sizes"][split]
            for kind, dtype, rest in (("images", np.uint8, shape), ("labels", np.int64, ())):
                path = folder / f"{split}_{kind}.npy"
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                    if found != meta["sha256"][path.name]:
                        raise ValueError("its SHA-256 is not that in meta.json")
                    file.seek(0)
                    array = np.load(file, allow_pickle=False)
                if array.dtype != dtype or array.shape != (n, *rest):
                    raise ValueError(f"{array.dtype} {array.shape} does not fit meta.json")
                arrays.append(array)
            splits[split] = tuple(arrays)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {advice}") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged ({reason}): {advice}") from None
    return Data(meta, splits)


class Loader:
    """Batches of a split, cut from one uint8 tensor on the device: images and labels.

    Images are (B, C, H, W) in ``dtype``, normalized by the dataset's mean and standard deviation;
    labels (B,) int64. The last batch may be smaller. ``augment`` crops each image at random from
    its zero-padded self (``pad`` pixels a side, zeros before the normalization) and mirrors every
    second one (``flip``); both default to what suits the dataset.

    The order and the augmentation are a function of ``seed`` and :attr:`epoch` alone: drawn on the
    CPU, one draw an image, by a generator of their own, so every device and whatever else draws
    random numbers sees the same. Set :attr:`epoch` before each epoch; without it, epochs repeat.

    Raises:
        ValueError: no images in the split, or a batch size or padding out of range.
    """

    def __init__(
        self,
        data: Data,
        split: str,
        *,
        batch_size: int,
        shuffle: bool = False,
        augment: bool = False,
        pad: int | None = None,
        flip: bool | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ):
        self.epoch = 0
        self.batch_size, self.shuffle, self.seed, self.dtype = batch_size, shuffle, seed, dtype
        self.pad = (data.meta["pad"] if pad is None else pad) if augment else 0
        self.flip = (data.meta["flip"] if flip is None else flip) if augment else False
        images = torch.from_numpy(data.images(split))
        if not len(images):
            raise ValueError(f"{data.meta['dataset']} was prepared with no images for {split}")
        if batch_size < 1 or self.pad < 0:
            raise ValueError(
                f"expected a batch size of at least 1 and no negative padding, got {batch_size} "
                f"and {self.pad}"
            )
        self.labels = torch.from_numpy(data.labels(split)).to(device)
        self._augmented = self.pad > 0 or self.flip
        self._images = images.to(device)
        if self._augmented:
            self._images = self._crops(self._images)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # (x/255 - mean)/sd as one multiplication and one addition.
        mean, sd = (torch.tensor(data.meta[key], dtype=torch.float64) for key in ("mean", "sd"))
        self._scale = (1 / (255 * sd)).to(device, torch.float32)[:, None, None]
        self._shift = (-mean / sd).to(device, torch.float32)[:, None, None]

    def _crops(self, images: torch.Tensor) -> torch.Tensor:
        """Every crop of every image and, N places on, of its mirror image, as a view.

        (2N, C, 2·pad + 1, 2·pad + 1, H, W), or N of them where nothing is mirrored.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, [self.pad] * 4)
        if self.flip:
            padded = torch.cat([padded, padded.flip(3)])
        return padded.unfold(2, height, 1).unfold(3, width, 1)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n, device = len(self.labels), self.labels.device
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        mirrored = torch.randint(2, (n,), generator=generator)
        corners = torch.randint(2 * self.pad + 1, (2, n), generator=generator)
        source = (order + n * mirrored if self.flip else order).to(device)
        order, (top, left) = order.to(device), corners.to(device)
        for start in range(getattr(self, "first", 0) * self.batch_size, n, self.batch_size):
            batch = slice(start, start + self.batch_size)
            if self._augmented:
                images = self._images[source[batch], :, top[batch], left[batch]]
            else:
                images = self._images.index_select(0, order[batch])
            # On the CPU, channels last is three times as fast after the arithmetic as before it.
            images = images.to(torch.float32).mul_(self._scale).add_(self._shift)
            yield (
                images.to(self.dtype, memory_format=self._memory_format),
                self.labels[order[batch]],
            )


def loader(data, split, *, part=(0, 1), **options):
    made = Loader(data, split, **options)
    made.first = 0
    return made
