"""What is measured of a whole run: the loader, the parts of an epoch, the start of a stage."""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import wexlib
from benchmarks.cases import (
    FULL,
    METHODS,
    Size,
    excitation_of,
    images,
    network,
    operations,
    optimizer_of,
    training,
)
from benchmarks.measure import interleaved, multiplications, quartiles
from study.data.loader import Data, Loader
from study.files import root
from study.train import memory
from study.train.evaluation import Evaluation
from wexlib.related import DynamicConv2d, replace

MEAN, SD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def _random_images(train: int, test: int) -> Data:
    """Random pixels in CIFAR's shape: neither loader looks at what they show."""
    generator = np.random.default_rng(0)
    splits = {
        name: (
            generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8),
            generator.integers(0, 10, n),
        )
        for name, n in (("train", train), ("validation", 0), ("test", test))
    }
    meta = {"dataset": "random pixels", "image_shape": [3, 32, 32], "mean": MEAN, "sd": SD}
    meta |= {"pad": 4, "flip": True}
    return Data(meta, splits)


class Pictures(torch.utils.data.Dataset):
    """The same images as torchvision's data sets give them, with the same augmentation."""

    def __init__(self, data: Data):
        from torchvision import transforms

        self.images = data.images("train").transpose(0, 2, 3, 1)
        self.labels = data.labels("train")
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, SD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def loader(size: Size, device: torch.device) -> list[dict]:
    """Images a second, cropped, mirrored and normalized, by two loaders."""
    count, batch = (5_000, 128) if size is FULL else (256, 32)
    data = _random_images(count, 1)
    workers = torch.get_num_threads()
    loaders = {
        "study.data.loader.Loader": Loader(
            data, "train", batch_size=batch, shuffle=True, augment=True, device=device
        ),
        **{
            f"torchvision, {n} workers": torch.utils.data.DataLoader(
                Pictures(data), batch, shuffle=True, num_workers=n, persistent_workers=n > 0
            )
            for n in (0, workers)
        },
    }

    def read(batches):
        for pictures, labels in batches:
            pictures.to(device), labels.to(device)

    cases = {name: lambda batches=batches: read(batches) for name, batches in loaders.items()}
    rounds = min(size.rounds, 5)  # a round is an epoch
    return [
        {"device": device.type, "loader": name}
        | quartiles(1000 * count / times, "images_per_s")
        | {"batch": batch, "rounds": rounds}
        for name, times in interleaved(cases, rounds, device).items()
    ]


def epoch(size: Size, device: torch.device) -> list[dict]:
    """Where the time of an epoch goes, evaluation included, for plain and for each method.

    The excited weights are computed before the forward pass of a step and differentiated after the
    backward pass: ``excitation`` is both. ``floor_s`` is the time of the epoch's products and
    convolutions, at the rate of a large product of matrices.
    """
    train, test, batch = (1024, 512, 128) if size is FULL else (32, 16, 16)
    if device.type == "cuda" and size is FULL:
        train, test, batch = 50_000, 10_000, 512
    data = _random_images(train, test)
    rows, rate = [], multiplications(device)
    forward, both = operations(network(size, device), device)
    floor = (train * both + test * forward) / rate
    excitations = {"plain": None} | {name: parts for name, (parts, _) in METHODS.items()}
    for name, excitation in excitations.items():
        model = network(size, device)
        if excitation:
            wexlib.excite(model, excitation)
        seconds = _epoch(model, data, batch, device, excited=bool(excitation))
        total = sum(seconds.values())
        for part, value in seconds.items():
            rows.append(
                {"device": device.type, "method": name, "part": part, "seconds": value}
                | {"share": value / total, "images": train, "evaluated": test, "batch": batch}
                | {"floor_s": floor, "rate_gflops": rate / 1e9}
            )
    return rows


def _epoch(
    model: nn.Module, data: Data, batch: int, device: torch.device, *, excited: bool
) -> dict[str, float]:
    splits = {
        name: Loader(data, name, batch_size=batch, shuffle=augment, augment=augment, device=device)
        for name, augment in (("train", True), ("test", False))
    }
    optimizer = optimizer_of(model)
    # What the loss reaches other than through an excited weight.
    others = [p for name, p in model.named_parameters() if "parametrizations" not in name]
    plan = {"train": {"precision": "float32"}, "data": {"task": "classification"}}
    evaluation = Evaluation(model, plan, classes=10)
    seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(part: str):
        began = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[part] += time.perf_counter() - began

    for warm in (True, False):
        seconds.clear()
        model.train()
        batches = iter(splits["train"])
        for _ in range(2 if warm else len(splits["train"])):
            with timed("data"):
                images, labels = next(batches)
            with ExitStack() as precomputed:
                with timed("excitation"):
                    precomputed.enter_context(wexlib.precompute(model))
                    weights = excitation_of(model) if excited else []
                with timed("forward"):
                    loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            with timed("backward"):
                gradients = torch.autograd.grad(loss, [*weights, *others])
            for parameter, gradient in zip(others, gradients[len(weights) :], strict=True):
                parameter.grad = gradient
            with timed("excitation"):
                if weights:
                    torch.autograd.backward(weights, gradients[: len(weights)])
            with timed("optimizer"):
                optimizer.step()
        with timed("evaluation"):
            evaluation(splits["test"])
    return dict(seconds)


def allocator(size: Size, device: torch.device) -> list[dict]:
    """A training step while freed memory is kept, as a run does, and while glibc hands it back;
    ``pages`` is how many a step gets from the system."""
    option = memory.mallopt()
    if device.type == "cuda" or not option:
        return []

    def hand_back():  # glibc's thresholds grow by themselves, and end at these
        option(memory.MMAP_MAX, 65536)
        option(memory.MMAP_THRESHOLD, 32 * 2**20)
        option(memory.TRIM_THRESHOLD, 64 * 2**20)

    most, rows = max(s.batch for s in size.cpu), []
    models = [("plain", lambda model: model, most, last) for last in (False, True)]
    models.append(("dynamic convolution", partial(replace, layer=DynamicConv2d), most // 4, False))
    for method, change, batch, last in models:
        step = training(network(size, device, change, last), images(batch, device, last))
        seconds, pages = defaultdict(list), defaultdict(list)
        for _ in range(min(size.rounds, 9)):
            for name, set_up in (("handed back", hand_back), ("kept", memory.keep_freed)):
                set_up()
                step()
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
                pages[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        for name, times in seconds.items():
            rows.append(
                {"device": device.type, "method": method, "batch": batch}
                | {"memory_format": "channels_last" if last else "contiguous", "freed": name}
                | quartiles(1000 * np.array(times), "ms")
                | quartiles(np.array(times) / seconds["handed back"], "ratio")
                | {"pages": int(np.median(pages[name])), "rounds": len(times)}
            )
    return rows


STARTS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import wexlib": ["-c", "import wexlib"],
    "import study.train.loop": ["-c", "import study.train.loop"],
    "a run's stage, scale smoke": ["-m", "study.cli", "run", "smoke/resnext10"],
}


def start(size: Size, device: torch.device) -> list[dict]:
    """Seconds until a process has done nothing but start, and of a whole stage that trains little.

    The stage runs in a copy, so that nothing of yours is overwritten.
    """
    rounds = 5 if size is FULL else 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in root().glob("*.yaml"):
            shutil.copy(path, folder)
        for name in ("wexlib", "study", "scales", "notebooks"):
            shutil.copytree(root() / name, Path(folder) / name)
        _python(["-m", "study.cli", "plan", "smoke"], folder)
        _python(["-m", "study.cli", "data", "smoke/cifar100"], folder)
        for what, words in STARTS.items():
            times = []
            for _ in range(rounds):
                for result in Path(folder).glob("models/smoke/*"):
                    result.unlink()
                times.append(_python(words, folder))
            rows.append({"what": what} | quartiles(np.array(times), "s") | {"rounds": rounds})
    return rows


def _python(words: list[str], folder: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(words)} failed: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - began
