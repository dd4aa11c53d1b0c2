"""Data sets that lie in folders as their publishers lay them out, or as anyone does."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from study.data.base import Source, Split, from_arrays, stratified
from study.data.disk import (
    PICTURES,
    VIDEOS,
    arrays,
    classes_in,
    files_of,
    picture,
    table,
)

#: Mean and standard deviation that torchvision's models take, of images and of clips.
IMAGENET = {"mean": [0.485, 0.456, 0.406], "sd": [0.229, 0.224, 0.225]}
KINETICS = {"mean": [0.43216, 0.394666, 0.37645], "sd": [0.22803, 0.22145, 0.216989]}
#: Images of one's own up to this side are kept as arrays.
SMALL = 64


@dataclass(frozen=True)
class Needs:
    """What a set needs below ``WEXLIB_DATA``: a path and what is in it, its space, its address."""

    path: str
    holds: str
    space: str
    url: str

    def home(self, dataset: str) -> Path:
        """The folder that ``WEXLIB_DATA`` names.

        Raises:
            FileNotFoundError: it has no such path, or is not named.
        """
        named = os.environ.get("WEXLIB_DATA")
        if not named or not (Path(named) / self.path).exists():
            found = f"names {named}, which has no {self.path}" if named else "is not set"
            raise FileNotFoundError(
                f"{dataset} is not here, and WEXLIB_DATA {found}: it needs {self.holds} "
                f"({self.space}), from {self.url}, in a folder that WEXLIB_DATA names"
            )
        return Path(named)


NEEDS = {
    "cinic10": Needs(
        "CINIC-10",
        "CINIC-10/{train,valid,test}/<class>/*.png",
        "1.1 GB",
        "https://datashare.ed.ac.uk/handle/10283/3192",
    ),
    "tiny-imagenet": Needs(
        "tiny-imagenet-200",
        "tiny-imagenet-200/{train,val} with wnids.txt, words.txt and val/val_annotations.txt",
        "0.5 GB",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    "imagenet": Needs(
        "imagenet",
        "ILSVRC 2012 as imagenet/{train,val}/<WordNet id>/*.JPEG, torchvision's layout",
        "145 GB",
        "https://image-net.org",
    ),
    "voc": Needs(
        "VOCdevkit/VOC2012",
        "VOCdevkit/VOC2012/{ImageSets/Segmentation,JPEGImages,SegmentationClass}",
        "2 GB",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    ),
    "kinetics": Needs(
        "kinetics",
        "kinetics/{train,val}/<class>/*.mp4, of Mini-Kinetics' 200 classes or all of Kinetics-400",
        "30 GB, or 450 GB",
        "https://github.com/cvdfoundation/kinetics-dataset",
    ),
    "jester": Needs(
        "20bn-jester-v1",
        "20bn-jester-v1/<number>/*.jpg, beside it jester-v1-{labels,train,validation}.csv",
        "23 GB",
        "https://www.qualcomm.com/developer/software/jester-dataset",
    ),
}


# --- sets of small images, as arrays --------------------------------------------------------------


def cinic10(seed: int) -> Source:
    needs = NEEDS["cinic10"]
    root = needs.home("cinic10")
    names, files, splits = classes_in(root / "CINIC-10" / "train"), {}, {}
    for split, folder in (("train", "train"), ("validation", "valid"), ("test", "test")):
        paths, labels = files_of(root, f"CINIC-10/{folder}", names, {".png"})
        files[split] = table(root, paths, digests=True)
        splits[split] = arrays(root, files[split], (32, 32)), labels
    # What CINIC-10 took from CIFAR-10 is named cifar10-train-… and cifar10-test-….
    of_cifar = {
        split: np.char.find(rows["path"], b"/cifar10-test-") >= 0 for split, rows in files.items()
    }
    return from_arrays(
        **splits,
        class_names=names,
        about="CINIC-10: 270,000 images of 32×32 pixels in ten classes, of CIFAR-10 and ImageNet "
        "(Darlow et al. 2018).",
        origin=needs.url,
        pad=4,
        flip=True,
        files=files,
        official=dict.fromkeys(splits, 90_000),
        overlap=("CIFAR-10's test images", of_cifar),
    )


def tiny_imagenet(seed: int) -> Source:
    needs = NEEDS["tiny-imagenet"]
    root, name = needs.home("tiny-imagenet"), needs.path
    ids = lines(root / name / "wnids.txt")
    words = dict(line.split("\t", 1) for line in lines(root / name / "words.txt"))
    paths, labels = files_of(root, f"{name}/train", sorted(ids), {".jpeg"}, "images")
    said = [line.split("\t") for line in lines(root / name / "val" / "val_annotations.txt")]
    shown = [f"{name}/val/images/{file}" for file, *_ in said]
    number = {wnid: label for label, wnid in enumerate(sorted(ids))}
    files = {
        split: table(root, p, digests=True) for split, p in (("train", paths), ("test", shown))
    }
    images = {split: arrays(root, rows, (64, 64)) for split, rows in files.items()}
    return from_arrays(
        (images["train"], labels),
        (images["test"], np.array([number[wnid] for _, wnid, *_ in said], np.int64)),
        [words[wnid].split(",")[0] for wnid in sorted(ids)],
        about="Tiny ImageNet: 110,000 images of 64×64 pixels in 200 classes; its validation images "
        "are the test (Stanford's CS231n).",
        origin=needs.url,
        pad=8,
        flip=True,
        files=files,
        official={"train": 100_000, "test": 10_000},
    )


def lines(path: Path) -> list[str]:
    """A text file's lines that are not empty.

    Raises:
        FileNotFoundError: it is missing; it is named.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing (is the copy complete?)") from None


# --- sets that are streamed -----------------------------------------------------------------------


def imagenet(seed: int) -> Source:
    needs = NEEDS["imagenet"]
    root = needs.home("imagenet")
    ids = classes_in(root / "imagenet" / "train")
    listed = {
        split: files_of(root, f"imagenet/{folder}", ids, PICTURES)
        for split, folder in (("train", "train"), ("test", "val"))
    }
    return streamed(
        root,
        {split: (table(root, p, digests=False), labels) for split, (p, labels) in listed.items()},
        _words(ids),
        about="ImageNet (ILSVRC 2012): 1,331,167 photographs in 1,000 classes; its validation "
        "images are the test (Russakovsky et al. 2015).",
        origin=needs.url,
        shape=(3, 224, 224),
        resize=256,
        flip=True,
        official={"train": 1_281_167, "test": 50_000},
        **IMAGENET,
    )


def _words(ids: list[str]) -> list[str]:
    """The names of ImageNet's classes, in the order of their ids, as torchvision has them."""
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.DEFAULT.meta["categories"]
    return list(names) if len(ids) == len(names) else ids


def streamed(
    root: Path,
    splits: dict[str, Split],
    class_names: list[str],
    *,
    shape: tuple[int, ...],
    resize: int | None,
    home: str = "",
    **more: object,
) -> Source:
    """A source of files that are read when they are needed, from below ``WEXLIB_DATA`` or ``home``.

    ``shape`` is that of an input, (C, H, W) or (C, T, H, W), and ``resize`` the length to which its
    shorter side is brought before the middle is cut out.
    """
    stream = {"home": home, "image_shape": list(shape), "resize": resize}
    files = {split: rows for split, (rows, _) in splits.items()}
    return Source(
        **splits, class_names=class_names, stream=stream, files=files, **{"pad": 0} | more
    )


VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()


def voc(seed: int) -> Source:
    needs = NEEDS["voc"]
    root, name = needs.home("voc"), needs.path
    splits = {}
    for split, file in (("train", "train.txt"), ("test", "val.txt")):
        ids = [line.strip() for line in lines(root / name / "ImageSets" / "Segmentation" / file)]
        rows = table(root, [f"{name}/JPEGImages/{i}.jpg" for i in ids], digests=True)
        masks = [f"{name}/SegmentationClass/{i}.png" for i in ids]
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(partial(_check_mask, root), rows["path"].tolist(), masks):
                pass
        splits[split] = rows, np.array(masks, "S")
    return streamed(
        root,
        splits,
        VOC,
        about="PASCAL VOC 2012: 2,913 photographs with masks of 20 classes and the background; its "
        "validation images are the test (Everingham et al. 2010).",
        origin=needs.url,
        shape=(3, 512, 512),
        resize=None,
        flip=True,
        task="segmentation",
        official={"train": 1464, "test": 1449},
        **IMAGENET,
    )


def _check_mask(root: Path, image: bytes, mask: str) -> None:
    """Read both, which must be of one size, and the mask of known classes."""
    size, shown = picture(root / os.fsdecode(image)).size, picture(root / mask, None)
    if shown.size != size or not np.isin(shown, [*range(len(VOC)), 255]).all():
        raise ValueError(
            f"{root / mask} is no mask of its image: expected its size, and classes 0 to 20 or 255"
        )


def kinetics(seed: int) -> Source:
    root = NEEDS["kinetics"].home("kinetics")
    names = [
        line
        for line in lines(Path(__file__).with_name("mini_kinetics.txt"))
        if not line.startswith("#")
    ]
    splits = {}
    for split, folder in (("train", "train"), ("test", "val")):
        there = {name.replace("_", " "): name for name in classes_in(root / "kinetics" / folder)}
        folders = [there.get(name, name) for name in names]
        paths, labels = files_of(root, f"kinetics/{folder}", folders, VIDEOS)
        splits[split] = table(root, paths, digests=False), labels
    return streamed(
        root,
        splits,
        names,
        about="Mini-Kinetics: videos of 200 actions, of Kinetics-400; its validation videos are "
        "the test (Xie et al. 2018).",
        origin="https://github.com/s9xie/Mini-Kinetics-200",
        shape=(3, 16, 112, 112),
        resize=128,
        flip=True,
        task="video",
        **KINETICS,
    )


def jester(seed: int) -> Source:
    needs = NEEDS["jester"]
    root, name = needs.home("jester"), needs.path
    names = [line.strip() for line in lines(root / "jester-v1-labels.csv")]
    number, splits = {name: label for label, name in enumerate(names)}, {}
    for split, file in (("train", "train"), ("test", "validation")):
        path = root / f"jester-v1-{file}.csv"
        said = [line.strip().split(";") for line in lines(path)]
        if unknown := {label for _, label in said} - number.keys():
            raise ValueError(
                f"{path} has the label {min(unknown)!r}, which jester-v1-labels.csv has not"
            )
        rows = table(root, [f"{name}/{i}" for i, _ in said], digests=False)
        splits[split] = rows, np.array([number[label] for _, label in said], np.int64)
    return streamed(
        root,
        splits,
        names,
        about="Jester: videos of 27 hand gestures; its validation videos are the test (Materzynska "
        "et al. 2019).",
        origin=needs.url,
        shape=(3, 16, 112, 112),
        resize=128,
        flip=False,  # a swipe to the left is not one to the right
        task="video",
        **KINETICS,
    )


# --- a folder of one's own ------------------------------------------------------------------------


def own(folder: str, seed: int) -> Source:
    """Images by class: ``train``, ``test`` and, if there is one, ``val`` or ``validation``, each
    with a folder a class; or these alone, cut into 70, 15 and 15 parts of a hundred.

    Up to 64 pixels they become arrays of the median of their shorter sides; larger ones are
    streamed, 224 pixels.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"dataset: {folder} is no folder: expected one that has a folder for each class, or "
            "folders train, val and test that have"
        )
    places = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
    found = {
        split: next((name for name in names if (root / name).is_dir()), None)
        for split, names in places.items()
    }
    if found["train"] and not (found["test"] or found["validation"]):
        raise ValueError(f"{root} has train and no test: add a folder test with the same classes")
    names = classes_in(root / (found["train"] or ""))
    if len(names) < 2:
        raise ValueError(f"{root} has the one class {names[0]}: expected at least two")
    if found["train"]:
        # What is set aside but for one time is the test.
        found["test"] = found["test"] or found.pop("validation")
        listed = {s: files_of(root, f, names, PICTURES) for s, f in found.items() if f}
    else:
        paths, labels = files_of(root, "", names, PICTURES)
        test = stratified(labels, round(0.15 * len(labels)), seed, "own test")
        rest = np.setdiff1d(np.arange(len(labels)), test)
        held = rest[stratified(labels[rest], len(test), seed, "own validation")]
        index = {"train": np.setdiff1d(rest, held), "validation": held, "test": test}
        listed = {s: ([paths[i] for i in chosen], labels[chosen]) for s, chosen in index.items()}
    files = {split: table(root, paths, digests=True) for split, (paths, _) in listed.items()}
    with ThreadPoolExecutor() as pool:
        sizes = {
            split: [*pool.map(lambda p: picture(root / os.fsdecode(p)).size, rows["path"].tolist())]
            for split, rows in files.items()
        }
    side = int(np.median([min(size) for size in sizes["train"]]))
    about = f"{sum(map(len, files.values()))} images in {len(names)} classes, of {root}"
    # Whether a mirrored image shows the same thing is not known.
    more = {"origin": str(root), "flip": False, "files": files}
    if side > SMALL:
        splits = {split: (rows, listed[split][1]) for split, rows in files.items()}
        more |= IMAGENET | {"shape": (3, 224, 224), "resize": 256, "home": str(root)}
        del more["files"]
        return streamed(root, splits, names, about=f"{about}, read when they are needed.", **more)
    splits = {
        split: (arrays(root, rows, (side, side), resize=True), listed[split][1])
        for split, rows in files.items()
    }
    about += f", brought to {side}×{side} pixels."
    return from_arrays(**splits, class_names=names, about=about, pad=side // 8, **more)
