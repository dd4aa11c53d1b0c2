"""Images from disk, a second: the study's stream, plain torchvision, and what a step needs."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.cases import FULL, Size
from benchmarks.measure import interleaved, quartiles
from study.data.datasets import prepare
from study.data.loader import Stream, load

#: ImageNet's usual size, and the largest that a crop is cut from when it is kept as pixels.
HEIGHT, WIDTH, KEPT = 375, 500, 256


def _photographs(folder: Path, count: int) -> None:
    """JPEGs of ImageNet's size and weight (about 94 kB): colours that change slowly, and noise."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(count + 8):
        coarse = generator.integers(0, 256, (24, 32, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), 3), float)
        noisy = smooth + generator.normal(0, 12, (HEIGHT, WIDTH, 1))
        path = folder / ("train" if i < count else "test") / f"class{i % 4}" / f"{i}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


class Pixels(torch.utils.data.Dataset):
    """The same images decoded beforehand, 256 pixels a side, in one file mapped into memory."""

    def __init__(self, path: Path, count: int, transform: Callable):
        shape = (count, 3, KEPT, KEPT)
        self.images, self.transform = np.memmap(path, np.uint8, "w+", shape=shape), transform
        self.images[:] = np.random.default_rng(0).integers(0, 256, shape[1:], np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(torch.from_numpy(self.images[i].copy())), 0


def _megabytes() -> float:
    """What this process and its workers hold, pages that are shared counted once; Linux."""
    total = 0.0
    for process in ["self", *(child.pid for child in multiprocessing.active_children())]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def loading(size: Size, device: torch.device) -> list[dict]:
    """Images a second of JPEGs on disk, cropped at random to 224 pixels, and the memory it takes.

    ``share`` is that of what a training step of ResNet-18 takes in on the device.
    """
    from torchvision import datasets, models
    from torchvision.transforms import v2

    count, batch = (128, 16) if size is FULL else (16, 8)
    workers = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _photographs(folder / "images", count)
        prepare(f"{folder}/images", folder / "prepared")
        data = load(folder / "prepared")
        crop = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(0.5)]
        ready = [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.meta["mean"], data.meta["sd"]),
        ]
        plain = v2.Compose([*crop, v2.PILToTensor(), *ready])
        pictures = datasets.ImageFolder(folder / "images" / "train", plain)
        pixels = Pixels(folder / "pixels", count, v2.Compose([*crop, *ready]))
        loaders: dict[str, Iterable] = {}
        for n in (0, workers):
            options = {"batch_size": batch, "shuffle": True}
            stream = Stream(data, "train", augment=True, device=device, **options)
            stream.workers = n
            loaders[f"study.data.loader.Stream, {n} workers"] = stream
            for what, files in (
                ("ImageFolder", pictures),
                ("pixels in memory-mapped file", pixels),
            ):
                loaders[f"torchvision, {what}, {n} workers"] = torch.utils.data.DataLoader(
                    files, num_workers=n, pin_memory=device.type == "cuda", **options
                )
        held = dict.fromkeys(loaders, 0.0)

        def read(loader: str) -> None:
            for images, labels in loaders[loader]:
                images.to(device), labels.to(device)
                held[loader] = max(held[loader], _megabytes())

        rounds = min(size.rounds, 3)  # a round is an epoch
        cases = {loader: lambda loader=loader: read(loader) for loader in loaders}
        times = interleaved(cases, rounds, device)
    model = models.resnet18().to(device)
    inputs = torch.rand(batch, 3, 224, 224, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()

    need = batch / interleaved({"": step}, rounds, device)[""]
    return [
        {"device": device.type, "loader": loader}
        | quartiles(1000 * count / milliseconds, "images_per_s")
        | {"share": count / np.median(milliseconds) / np.median(need)}
        | {"megabytes": held[loader], "batch": batch, "rounds": rounds}
        for loader, milliseconds in times.items()
    ]
