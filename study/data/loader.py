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
#: The target of a pixel that is of no class.
IGNORED = 255


@dataclass(frozen=True)
class Data:
    """The splits of a prepared dataset: inputs and targets of each, and its ``meta.json``.

    Inputs are images (N, C, H, W) or clips (N, C, T, H, W), uint8; targets labels (N,) int64, or
    masks (N, H, W) uint8, 255 where a pixel is of no class.
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
    def task(self) -> str:
        """classification, segmentation or video."""
        return self.meta["task"]

    @property
    def classes(self) -> int:
        return self.meta["classes"]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.meta["image_shape"][-2:])


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


def generator_of(seed: int, *numbers: int) -> torch.Generator:
    """A generator that follows from a seed and what the numbers count: an epoch, an image."""
    state = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def shares(count: int, batch_size: int, first: int, part: tuple[int, int]) -> Iterator[slice]:
    """The rows of each batch, from the batch ``first`` on, that belong to ``part``."""
    rank, world = part
    for start in range(first * batch_size, count, batch_size):
        rows = min(batch_size, count - start)
        yield slice(start + rows * rank // world, start + rows * (rank + 1) // world)


def memory_format(channels_last: bool, dimensions: int) -> torch.memory_format:
    """That of batches of images (3 dimensions) or clips (4)."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if dimensions == 3 else torch.channels_last_3d


class Normalize:
    """uint8 batches to float32 by (x/255 - mean)/sd: one multiplication and one addition."""

    def __init__(self, meta: dict, device: torch.device | str, dimensions: int):
        mean, sd = (torch.tensor(meta[key], dtype=torch.float64) for key in ("mean", "sd"))
        shape = (-1, *[1] * (dimensions - 1))
        self.scale = (1 / (255 * sd)).to(device, torch.float32).view(shape)
        self.shift = (-mean / sd).to(device, torch.float32).view(shape)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32).mul_(self.scale).add_(self.shift)


class Loader:
    """Batches of a split, cut from one uint8 tensor on the device: inputs and targets.

    Inputs are images (B, C, H, W) or clips (B, C, T, H, W) in ``dtype``, normalized by the
    dataset's mean and standard deviation; targets labels (B,) or masks (B, H, W), int64. The last
    batch may be smaller. ``augment`` crops each image, or all frames of a clip alike, at random
    from its zero-padded self (``pad`` pixels a side, zeros before the normalization; 255 in a mask)
    and mirrors every second one (``flip``); both default to what suits the dataset.

    The order and the augmentation are a function of ``seed`` and :attr:`epoch` alone: drawn on the
    CPU, one draw an image, by a generator of their own, so every device and whatever else draws
    random numbers sees the same. Set :attr:`epoch` before each epoch; without it, epochs repeat.
    :attr:`first` is the number of batches that are left out at its beginning. Of each batch this
    process gets its share of the rows: ``part`` is its number and how many there are.

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
        part: tuple[int, int] = (0, 1),
    ):
        self.epoch = self.first = 0
        self.batch_size, self.shuffle, self.seed, self.dtype = batch_size, shuffle, seed, dtype
        self.part, self.device = part, device
        self.pad = (data.meta["pad"] if pad is None else pad) if augment else 0
        self.flip = (data.meta["flip"] if flip is None else flip) if augment else False
        images, targets = torch.from_numpy(data.images(split)), torch.from_numpy(data.labels(split))
        if not len(images):
            raise ValueError(f"{data.meta['dataset']} was prepared with no images for {split}")
        if batch_size < 1 or self.pad < 0:
            raise ValueError(
                f"expected a batch size of at least 1 and no negative padding, got {batch_size} "
                f"and {self.pad}"
            )
        self._count, self._shape = len(images), images.shape[1:]
        self._augmented = self.pad > 0 or self.flip
        self._images, self._targets = images.flatten(1, -3).to(device), targets.to(device)
        if self._augmented:
            self._images = self._crops(self._images, 0)
            if targets.dim() > 1:
                self._targets = self._crops(self._targets[:, None], IGNORED)
        self._normalize = Normalize(data.meta, device, len(self._shape))
        self._memory_format = memory_format(channels_last, len(self._shape))

    def _crops(self, images: torch.Tensor, outside: int) -> torch.Tensor:
        """Every crop of every image and, N places on, of its mirror image, as a view.

        (2N, C, 2·pad + 1, 2·pad + 1, H, W), or N of them where nothing is mirrored.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, [self.pad] * 4, value=outside)
        if self.flip:
            padded = torch.cat([padded, padded.flip(3)])
        return padded.unfold(2, height, 1).unfold(3, width, 1)

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n, device = self._count, self._targets.device
        generator = generator_of(self.seed, self.epoch)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        mirrored = torch.randint(2, (n,), generator=generator)
        corners = torch.randint(2 * self.pad + 1, (2, n), generator=generator)
        source = (order + n * mirrored if self.flip else order).to(device)
        order, (top, left) = order.to(device), corners.to(device)
        for batch in shares(n, self.batch_size, self.first, self.part):
            crop = source[batch], slice(None), top[batch], left[batch]
            if self._augmented:
                images = self._images[crop]
            else:
                images = self._images.index_select(0, order[batch])
            if self._augmented and self._targets.dim() > 1:
                targets = self._targets[crop].squeeze(1)
            else:
                targets = self._targets[order[batch]]
            # On the CPU, channels last is three times as fast after the arithmetic as before it.
            images = self._normalize(images.view(-1, *self._shape))
            yield images.to(self.dtype, memory_format=self._memory_format), targets.long()


def loader(data: Data, split: str, **options) -> "Loader":
    """The batches of a split, with what :class:`Loader` takes.

    It has a length, the number of batches of an epoch, and what is set before one is iterated:
    ``epoch``, and ``first``, the number of its batches to leave out.
    """
    return Loader(data, split, **options)
