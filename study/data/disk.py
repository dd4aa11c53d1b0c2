"""Files of images, masks and clips: lists of them with their digests, and how one is read."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from study.data.base import Split

if TYPE_CHECKING:
    import torch
    from PIL import Image

PICTURES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEOS = {".avi", ".mkv", ".mov", ".mp4", ".webm"}
AGAIN = "delete it, fetch or copy it again, and prepare the dataset anew"
# --- folders and their files -------------------------------------------------------------------


def classes_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, one a class, in order.

    Raises:
        ValueError: there is none.
    """
    names = sorted(p.name for p in os.scandir(folder) if p.is_dir() and p.name[0] != ".")
    if not names:
        raise ValueError(f"{folder} has no folders: expected one for each class, with its files")
    return names


def files_of(
    root: Path, split: str, classes: Sequence[str], kinds: set[str], within: str = ""
) -> tuple[list[str], np.ndarray]:
    """Paths ``<split>/<class>/<within>/<file>`` of such files below ``root``, and their labels.

    Raises:
        ValueError: the folder of a class is missing, or has no such file.
    """
    paths, labels = [], []
    for label, name in enumerate(classes):
        folder = root / split / name / within
        found = []
        if folder.is_dir():
            found = sorted(
                p.name for p in os.scandir(folder) if Path(p.name).suffix.lower() in kinds
            )
        if not found:
            raise ValueError(
                f"{folder} has none of the files {', '.join(sorted(kinds))}: expected those of "
                f"the class {name} (is the copy complete?)"
            )
        paths += [(folder / file).relative_to(root).as_posix() for file in found]
        labels += [label] * len(found)
    return paths, np.array(labels, np.int64)


def table(root: Path, paths: Iterable[str], *, digests: bool) -> np.ndarray:
    """Rows of path, bytes and, if asked, sha256: a file each, or a folder of frames.

    Raises:
        FileNotFoundError, ValueError: a file is missing or empty; it is named.
    """

    def row(path: str) -> tuple[bytes, int, str]:
        place = root / path
        try:
            if place.is_dir():
                size = sum(file.stat().st_size for file in os.scandir(place))
            else:
                size = place.stat().st_size
            if not size:
                raise ValueError(f"{place} is empty: {AGAIN}")
            digest = hashlib.sha256(place.read_bytes()).hexdigest() if digests else ""
        except FileNotFoundError:
            raise FileNotFoundError(f"{place} is missing (is the copy complete?)") from None
        return os.fsencode(path), size, digest

    with ThreadPoolExecutor() as pool:
        return _as_rows(list(pool.map(row, paths)))


def _as_rows(rows: list[tuple[bytes, int, str]]) -> np.ndarray:
    path, digest = (max((len(row[i]) for row in rows), default=0) for i in (0, 2))
    return np.array(
        rows, [("path", f"S{path or 1}"), ("bytes", np.int64), ("sha256", f"S{digest or 1}")]
    )


def write_manifest(path: Path, rows: np.ndarray, targets: np.ndarray) -> None:
    """A CSV with a row a file: path, bytes, sha256 and target, a label or the path of a mask."""
    masks = targets.dtype.kind == "S"
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*rows.dtype.names, "target"])
        for row, target in zip(rows, targets.tolist(), strict=True):
            name, size, digest = row.tolist()
            writer.writerow(
                [os.fsdecode(name), size, digest.decode(), os.fsdecode(target) if masks else target]
            )


def read_manifest(path: Path, *, masks: bool) -> Split:
    """What :func:`write_manifest` wrote."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))[1:]
    known = _as_rows([(os.fsencode(name), int(size), digest) for name, size, digest, _ in rows])
    targets = [row[3] for row in rows]
    if masks:
        return known, np.array([os.fsencode(target) for target in targets], "S")
    return known, np.array(targets, np.int64)


# --- one file ----------------------------------------------------------------------------------


def picture(path: Path, mode: str | None = "RGB") -> "Image.Image":
    """An image, whole; ``mode`` None leaves its values as they are: a mask's numbers.

    Raises:
        FileNotFoundError, ValueError: it is missing or broken; it is named.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(path.read_bytes()))
        image.load()
        return image.convert(mode) if mode else image
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing (is the copy complete?)") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is a broken image (of no known format): {AGAIN}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is a broken image ({error}): {AGAIN}") from None


def evenly(count: int, total: int) -> np.ndarray:
    """The middles of ``count`` equal parts of ``total`` frames: ⌊(i + ½)·total/count⌋."""
    return (2 * np.arange(count) + 1) * total // (2 * count)


def clip(path: Path, frames: int) -> "torch.Tensor":
    """So many frames of a video, or of a folder of frames, evenly spaced: (T, C, H, W) uint8.

    Raises:
        FileNotFoundError, ValueError: it is missing or broken; it is named.
    """
    import torch

    if path.is_dir():
        names = sorted(p.name for p in os.scandir(path) if Path(p.name).suffix.lower() in PICTURES)
        if not names:
            raise ValueError(f"{path} has no frames (is the copy complete?)")
        chosen = [np.asarray(picture(path / names[i])) for i in evenly(frames, len(names))]
    else:
        chosen = _decoded(path, frames)
    return torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2)


def _decoded(path: Path, frames: int) -> list[np.ndarray]:
    """Frames (H, W, C) of a video, which is read twice: its packets to count, then its pictures."""
    import av

    try:
        with av.open(path) as file:
            total = sum(packet.size > 0 for packet in file.demux(video=0))
        wanted, chosen = evenly(frames, total).tolist(), []
        with av.open(path) as file:
            for i, frame in enumerate(file.decode(video=0)):
                if i in wanted:
                    chosen += [frame.to_ndarray(format="rgb24")] * wanted.count(i)
                if len(chosen) == frames:
                    break
        if not chosen:
            raise ValueError("no frame can be decoded")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing (is the copy complete?)") from None
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is a broken video ({error}): {AGAIN}") from None
    return chosen + chosen[-1:] * (frames - len(chosen))


def pixels(image: "Image.Image", size: tuple[int, int]) -> np.ndarray:
    """An image as (3, H, W) uint8, resized and cut in the middle where it is of another size."""
    from PIL import Image, ImageOps

    if image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def arrays(
    root: Path, rows: np.ndarray, size: tuple[int, int], *, resize: bool = False
) -> np.ndarray:
    """Images (N, 3, H, W) uint8 of files, brought to ``size`` if that is asked.

    Raises:
        FileNotFoundError, ValueError: a file is missing, broken or of another size; it is named.
    """
    images = np.empty((len(rows), 3, *size), np.uint8)

    def fill(i: int) -> None:
        path = root / os.fsdecode(rows["path"][i])
        image = picture(path)
        if image.size != size[::-1] and not resize:
            found, expected = (f"{h}×{w}" for w, h in (image.size, size[::-1]))
            raise ValueError(f"{path} has {found} pixels, expected {expected}: {AGAIN}")
        images[i] = pixels(image, size)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(len(rows))):
            pass
    return images
