"""Prepared datasets, and the loader that feeds them to a model from its own device."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch.nn import functional as F

from study.data import disk
from study.files import PLAYGROUND, digest
from wexlib.names import choose

SPLITS = ("train", "validation", "test")
#: The target of a pixel that is of no class.
IGNORED = 255


@dataclass(frozen=True)
class Data:
    """The splits of a prepared dataset: inputs and targets of each, and its ``meta.json``.

    Inputs are images (N, C, H, W) or clips (N, C, T, H, W), uint8; targets labels (N,) int64, or
    masks (N, H, W) uint8, 255 where a pixel is of no class. Of what is :attr:`streamed` they are
    rows of :func:`study.data.disk.table`, and labels or the paths of masks.
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
    def streamed(self) -> bool:
        """Whether its files are read when they are needed."""
        return "stream" in self.meta

    @property
    def root(self) -> Path:
        """The folder that a streamed dataset's paths begin at."""
        home = self.meta["stream"] or os.environ.get("WEXLIB_DATA", "")
        if not Path(home).is_dir() or not home:
            raise FileNotFoundError(
                f"{self.meta['dataset']} is read from its files, and the folder of WEXLIB_DATA or "
                f"of one's own, {home!r}, is not there: bring it back, or set WEXLIB_DATA"
            )
        return Path(home)

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
    if folder.name == PLAYGROUND:
        stage = "data"
    advice = f"run dvc checkout --force {folder}, or dvc repro --force --single-item {stage}"
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta["digest"] != digest(meta):
            raise ValueError("its digest is another")
        shape, masks = tuple(meta["image_shape"]), meta["task"] == "segmentation"
        kinds = {
            "images": (np.uint8, shape),
            **({"masks": (np.uint8, shape[1:])} if masks else {"labels": (np.int64, ())}),
        }
        splits = {}
        for split in SPLITS:
            n, arrays = meta["sizes"][split], []
            if "stream" in meta:
                path = folder / f"{split}.csv"
                with path.open("rb") as file:
                    _check(file, meta, path)
                arrays = disk.read_manifest(path, masks=masks)
            for kind, (dtype, rest) in kinds.items() if "stream" not in meta else ():
                path = folder / f"{split}_{kind}.npy"
                with path.open("rb") as file:
                    _check(file, meta, path)
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


def _check(file: BinaryIO, meta: dict, path: Path) -> None:
    if hashlib.file_digest(file, "sha256").hexdigest() != meta["sha256"][path.name]:
        raise ValueError("its SHA-256 is not that in meta.json")


def generator_of(seed: int, *numbers: int) -> torch.Generator:
    """A generator that follows from a seed and what the numbers count: an epoch, an image."""
    state = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


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


class Batches:
    """What every loader has: a length in batches, and the rows of each, in their order.

    Set :attr:`epoch` before each epoch; without it, epochs repeat. :attr:`first` is the number of
    batches that are left out at its beginning. Of each batch this process gets its share of the
    rows: ``part`` is its number and how many there are.

    Raises:
        ValueError: no images in the split, or a batch size out of range.
    """

    def __init__(
        self,
        data: Data,
        split: str,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ):
        if not data.count(split):
            raise ValueError(f"{data.meta['dataset']} was prepared with no images for {split}")
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.epoch = self.first = 0
        self.batch_size, self.shuffle, self.seed, self.part = batch_size, shuffle, seed, part
        self.device, self._count = torch.device(device), data.count(split)
        dimensions = len(data.meta["image_shape"])
        self._normalize = Normalize(data.meta, self.device, dimensions)
        self._memory_format = memory_format(channels_last, dimensions)

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        if self.shuffle:
            return torch.randperm(self._count, generator=generator)
        return torch.arange(self._count)

    def _shares(self) -> Iterator[slice]:
        """Of the epoch's order, what each batch has for this process."""
        rank, world = self.part
        for start in range(self.first * self.batch_size, self._count, self.batch_size):
            rows = min(self.batch_size, self._count - start)
            yield slice(start + rows * rank // world, start + rows * (rank + 1) // world)


class Loader(Batches):
    """Batches of a split, cut from one uint8 tensor on the device: inputs and targets.

    Inputs are images (B, C, H, W) or clips (B, C, T, H, W) in ``dtype``, normalized by the
    dataset's mean and standard deviation; targets labels (B,) or masks (B, H, W), int64. The last
    batch may be smaller. ``augment`` crops each image, or all frames of a clip alike, at random
    from its zero-padded self (``pad`` pixels a side, zeros before the normalization; 255 in a mask)
    and mirrors every second one (``flip``); both default to what suits the dataset.

    The order and the augmentation are a function of ``seed`` and :attr:`epoch` alone: drawn on the
    CPU, one draw an image, by a generator of their own, so every device and whatever else draws
    random numbers sees the same.

    Raises:
        ValueError: no images in the split, or a batch size or padding out of range.
    """

    def __init__(
        self,
        data: Data,
        split: str,
        *,
        augment: bool = False,
        pad: int | None = None,
        flip: bool | None = None,
        dtype: torch.dtype = torch.float32,
        **options: object,
    ):
        super().__init__(data, split, **options)
        self.dtype = dtype
        self.pad = (data.meta["pad"] if pad is None else pad) if augment else 0
        self.flip = (data.meta["flip"] if flip is None else flip) if augment else False
        images, targets = torch.from_numpy(data.images(split)), torch.from_numpy(data.labels(split))
        if self.pad < 0:
            raise ValueError(f"expected no negative padding, got {self.pad}")
        self._shape, self._augmented = images.shape[1:], self.pad > 0 or self.flip
        self._images = images.flatten(1, -3).to(self.device)
        self._targets = targets.to(self.device)
        if self._augmented:
            self._images = self._crops(self._images, 0)
            if targets.dim() > 1:
                self._targets = self._crops(self._targets[:, None], IGNORED)

    def _crops(self, images: torch.Tensor, outside: int) -> torch.Tensor:
        """Every crop of every image and, N places on, of its mirror image, as a view.

        (2N, C, 2·pad + 1, 2·pad + 1, H, W), or N of them where nothing is mirrored.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, [self.pad] * 4, value=outside)
        if self.flip:
            padded = torch.cat([padded, padded.flip(3)])
        return padded.unfold(2, height, 1).unfold(3, width, 1)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n, device = self._count, self._targets.device
        generator = generator_of(self.seed, self.epoch)
        order = self._order(generator)
        mirrored = torch.randint(2, (n,), generator=generator)
        corners = torch.randint(2 * self.pad + 1, (2, n), generator=generator)
        source = (order + n * mirrored if self.flip else order).to(device)
        order, (top, left) = order.to(device), corners.to(device)
        for batch in self._shares():
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


class Files(torch.utils.data.Dataset):
    """The files of a streamed split, as uint8 tensors of one shape, and their targets.

    An item is asked for by its epoch and its place. Its crop and whether it is mirrored follow from
    the seed, the epoch and the place alone, whichever process reads it. What cannot be read gives
    the error, since a worker's own would come wrapped in its traceback.
    """

    def __init__(self, data: Data, split: str, augment: bool, seed: int):
        self.rows, self.targets = data.splits[split]
        self.root, self.task, self.shape = data.root, data.task, data.meta["image_shape"]
        self.seed, self.transform = seed, transform(data.meta, augment)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, object] | Exception:
        epoch, place = key
        try:
            inputs, target = self._read(place)
        except (ValueError, OSError) as error:
            return error
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator_of(self.seed, epoch, place).get_state())
            inputs, target = self.transform(inputs, target)
        if self.task == "video":
            inputs = inputs.transpose(0, 1)
        return inputs.as_subclass(torch.Tensor), target

    def collate(self, items: list) -> tuple[torch.Tensor, torch.Tensor] | Exception:
        if broken := [item for item in items if isinstance(item, Exception)]:
            return broken[0]
        if not items:  # a share of a batch that is smaller than the number of processes
            places = self.shape[1:] if self.task == "segmentation" else ()
            return torch.empty(0, *self.shape), torch.empty(0, *places)
        return torch.utils.data.default_collate(items)

    def _read(self, place: int) -> tuple:
        from torchvision import tv_tensors

        name, size, _ = self.rows[place].tolist()
        path, target = self.root / os.fsdecode(name), self.targets[place]
        if not path.is_dir() and path.is_file() and path.stat().st_size != size:
            raise ValueError(f"{path} has changed since it was prepared: prepare the dataset anew")
        if self.task == "video":
            return tv_tensors.Video(disk.clip(path, self.shape[1])), int(target)
        image = tv_tensors.Image(np.array(disk.picture(path)).transpose(2, 0, 1))
        if self.task == "classification":
            return image, int(target)
        mask = disk.picture(self.root / os.fsdecode(target), None)
        return image, tv_tensors.Mask(np.array(mask))


def transform(meta: dict, augment: bool) -> Callable:
    """What brings a file's image and its mask, or a clip, to the dataset's shape.

    Images are cropped at random to 8 to 100 % of their area, with masks to 25 to 100 %, and
    resized; clips are resized and cropped. Without ``augment`` the middle is cut out; with masks
    nothing is: the image, reduced where it is too large, gets a margin whose pixels are ignored.
    """
    from torchvision.transforms import v2

    size, resize, masks = meta["image_shape"][-2:], meta["resize"], meta["task"] == "segmentation"
    if not augment:
        return _whole(meta) if masks else v2.Compose([v2.Resize(resize), v2.CenterCrop(size)])
    if meta["task"] == "video":
        steps = [v2.Resize(resize), v2.RandomCrop(size)]
    else:
        steps = [v2.RandomResizedCrop(size, scale=(0.25 if masks else 0.08, 1))]
    return v2.Compose([*steps, v2.RandomHorizontalFlip(0.5 if meta["flip"] else 0)])


def _whole(meta: dict) -> Callable:
    from torchvision.transforms.v2 import functional

    height, width = meta["image_shape"][-2:]
    fill = [round(255 * mean) for mean in meta["mean"]]  # near 0 once normalized

    def fit(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, w = image.shape[-2:]
        if (scale := min(height / h, width / w)) < 1:
            h, w = (min(round(scale * h), height), min(round(scale * w), width))
            image, mask = (functional.resize(part, [h, w]) for part in (image, mask))
        margin = [0, 0, width - w, height - h]
        return functional.pad(image, margin, fill), functional.pad(mask, margin, IGNORED)

    return fit


class Stream(Batches):
    """Batches of a split whose files are read when they are needed: inputs and targets.

    As :class:`Loader` gives them. Worker processes read, decode and augment (:class:`Files`), and
    PyTorch's DataLoader puts them in order; on a GPU they wait in pinned memory, and the copy does
    not wait for the step before. The order is drawn as :class:`Loader` draws it, and what
    :attr:`first` leaves out is not read.

    Raises:
        ValueError: no files in the split, a batch size out of range; in iteration, a file that is
            broken or has changed.
        FileNotFoundError: the dataset's folder is not there; in iteration, a file is not.
    """

    def __init__(self, data: Data, split: str, *, augment: bool = False, **options: object):
        super().__init__(data, split, **options)
        #: Processes that read; 0 reads in this one.
        self.workers = min(max(len(os.sched_getaffinity(0)) // self.part[1], 1), 16)
        self._files = Files(data, split, augment, self.seed)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order(generator_of(self.seed, self.epoch))
        for batch in self._shares():
            yield [(self.epoch, place) for place in order[batch].tolist()]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = torch.utils.data.DataLoader(
            self._files,
            batch_sampler=self._batches(),
            num_workers=self.workers,
            collate_fn=self._files.collate,
            pin_memory=self.device.type == "cuda",
            generator=generator_of(self.seed, self.epoch),  # or it draws from the global one
        )
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            images, targets = (part.to(self.device, non_blocking=True) for part in batch)
            images = self._normalize(images)
            yield images.contiguous(memory_format=self._memory_format), targets.long()


def examples(data: Data, split: str, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, uint8 and as they are evaluated, at these places of a split."""
    if not data.streamed:
        return data.images(split)[places], data.labels(split)[places]
    files = Files(data, split, augment=False, seed=0)
    read = files.collate([files[0, place] for place in places])
    if isinstance(read, Exception):
        raise read
    return tuple(part.numpy() for part in read)


#: What reads a data set that does not fit in memory; "own": a folder of one's own.
STREAMS = {
    "imagenet": Stream,
    "voc": Stream,
    "kinetics": Stream,
    "jester": Stream,
    "own": Stream,
}


def loader(data: Data, split: str, **options: object) -> Batches:
    """The batches of a split, with what :class:`Loader` takes.

    It has a length, the number of batches of an epoch, and what is set before one is iterated:
    ``epoch``, and ``first``, the number of its batches to leave out.
    """
    name = data.meta["dataset"]
    kind = STREAMS[name if name in STREAMS else "own"] if data.streamed else Loader
    return kind(data, split, **options)
