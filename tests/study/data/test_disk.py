"""Datasets on disk: miniature folders in their publishers' layouts, real samples, what is refused.

Real samples, where ``WEXLIB_SAMPLES`` names a folder of archives ``<name>-sample.zip``, are laid
out as the publishers do and read like the whole.
"""

import csv
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from study.data import audit, disk, folders
from study.data.datasets import prepare
from study.data.loader import SPLITS, Stream, load, loader
from study.data.sources import find

av = pytest.importorskip("av")
pytest.importorskip("torchvision")

SAMPLES = os.environ.get("WEXLIB_SAMPLES")
needs_samples = pytest.mark.skipif(not SAMPLES, reason="needs real samples: set WEXLIB_SAMPLES")


# --- miniatures ---------------------------------------------------------------------------------


def noise(path: Path, size: tuple[int, int], seed: int) -> None:
    """An image of (height, width) random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def video(path: Path, frames: int, size: tuple[int, int] = (128, 160)) -> None:
    """Frame i is of the grey 5·i, in MPEG-4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width = size
        for i in range(frames):
            grey = np.full((*size, 3), 5 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())


def make_cinic10(root: Path) -> None:
    for split, number in (("train", 4), ("valid", 3), ("test", 2)):
        for label, name in enumerate(("airplane", "cat")):
            for i in range(number):
                kind = "cifar10-test" if i == 1 else "n02708555"
                file = root / f"CINIC-10/{split}/{name}/{kind}-{label}{i}.png"
                noise(file, (32, 32), 100 * number + 10 * label + i)


def make_tiny_imagenet(root: Path) -> None:
    home = root / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        for i in range(4):
            noise(home / f"train/{wnid}/images/{wnid}_{i}.JPEG", (64, 64), i)
    for i in range(3):
        noise(home / f"val/images/val_{i}.JPEG", (64, 64), 50 + i)
    (home / "wnids.txt").write_text("n02\nn01\n")
    (home / "words.txt").write_text("n01\tgoldfish, a fish\nn02\tsalamander\nn03\tother\n")
    said = "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\nval_2.JPEG\tn01\t0\t0\t9\t9\n"
    (home / "val/val_annotations.txt").write_text(said)


def make_imagenet(root: Path) -> None:
    for split, number in (("train", 5), ("val", 2)):
        for label, wnid in enumerate(("n01", "n02")):
            for i in range(number):
                size = (260 + 4 * i, 300 - 8 * i)
                noise(root / f"imagenet/{split}/{wnid}/{wnid}_{i}.JPEG", size, 10 * label + i)


def make_voc(root: Path) -> None:
    """Four blocks of classes; an image is of the colour 10 times its mask's class."""
    home = root / "VOCdevkit/VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (home / folder).mkdir(parents=True)
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        for i in numbers:
            mask = np.zeros((300, 400), np.uint8)
            mask[:150, 200:], mask[150:, :200], mask[150:, 200:] = 1 + i, 7 + i, 20
            image = Image.fromarray(np.repeat(10 * mask[..., None], 3, 2))
            image.save(home / f"JPEGImages/2007_{i}.jpg", quality=95)
            mask[140:160] = 255
            Image.fromarray(mask).save(home / f"SegmentationClass/2007_{i}.png")
        text = "".join(f"2007_{i}\n" for i in numbers)
        (home / f"ImageSets/Segmentation/{split}.txt").write_text(text)


def make_kinetics(root: Path) -> None:
    for split, number in (("train", 2), ("val", 1)):
        for i in range(number):
            video(root / f"kinetics/{split}/abseiling/{i}.mp4", 40 + i)
            video(root / f"kinetics/{split}/air_drumming/{i}.mp4", 20 + i)
        noise(root / f"kinetics/{split}/of no class of Mini-Kinetics/0.png", (4, 4), 0)


def make_jester(root: Path) -> None:
    for i, frames in ((3, 37), (9, 30), (12, 5)):
        for t in range(frames):
            file = root / f"20bn-jester-v1/{i}/{t + 1:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (176, 100), (5 * t,) * 3).save(file)
    (root / "jester-v1-labels.csv").write_text("Swiping Left\nThumb Up\n")
    (root / "jester-v1-train.csv").write_text("9;Thumb Up\n3;Swiping Left\n")
    (root / "jester-v1-validation.csv").write_text("12;Thumb Up\n")


#: Of each set: what makes it, its training, validation and test inputs, classes, what is complete.
MINIATURES: dict[str, tuple[Callable, tuple[int, int, int], int]] = {
    "cinic10": (make_cinic10, (8, 6, 4), 2),
    "tiny-imagenet": (make_tiny_imagenet, (8, 0, 3), 2),
    "imagenet": (make_imagenet, (10, 0, 4), 2),
    "voc": (make_voc, (3, 0, 2), 21),
    "kinetics": (make_kinetics, (4, 0, 2), 2),
    "jester": (make_jester, (2, 0, 1), 2),
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty folder that ``WEXLIB_DATA`` names; the list of Mini-Kinetics has two classes."""
    root = tmp_path / "originals"
    root.mkdir()
    monkeypatch.setenv("WEXLIB_DATA", str(root))
    names = ["abseiling", "air drumming"]
    known = folders.lines
    monkeypatch.setattr(
        folders, "lines", lambda path: names if path.name == "mini_kinetics.txt" else known(path)
    )
    return root


def prepared(name: str, home: Path, **sizes):
    """The miniature, made and prepared as large as it is."""
    make, (train, validation, test), _ = MINIATURES[name]
    make(home)
    folder = home.parent / "data" / "x" / name
    prepare(name, folder, **{"train": train, "validation": validation, "test": test} | sizes)
    return load(folder)


@pytest.mark.parametrize("name", MINIATURES)
def test_a_set_in_its_publishers_layout(name, home):
    _, sizes, classes = MINIATURES[name]
    data = prepared(name, home)
    assert tuple(data.count(split) for split in SPLITS) == sizes
    assert data.classes == classes == len(data.meta["class_names"])
    for split, size in zip(SPLITS, sizes, strict=True):
        with (home.parent / "data" / "x" / name / f"{split}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == size
        for row in rows:
            path = home / row["path"]
            if path.is_file():
                assert int(row["bytes"]) == path.stat().st_size
            if row["sha256"]:
                assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    table = audit.summary({name: data})
    assert list(table["images"]) == [size for size in sizes if size]


@pytest.mark.parametrize("name", [*MINIATURES, "unset"])
def test_a_set_that_is_not_there_says_what_it_needs(name, home, monkeypatch):
    if name == "unset":
        monkeypatch.delenv("WEXLIB_DATA")
        name = "voc"
    with pytest.raises(FileNotFoundError) as error:
        find(name)(0)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.startswith(f"{name} is not here, and WEXLIB_DATA ")
    assert " GB), from http" in sentence


@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [
        (
            "cinic10",
            "CINIC-10/valid/cat",
            "valid/cat has none of the files .png: expected those of",
        ),
        ("tiny-imagenet", "tiny-imagenet-200/val/images/val_1.JPEG", "val_1.JPEG is missing"),
        ("tiny-imagenet", "tiny-imagenet-200/words.txt", "words.txt is missing"),
        ("imagenet", "imagenet/val/n02", "val/n02 has none of the files"),
        ("voc", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "val.txt is missing"),
        ("voc", "VOCdevkit/VOC2012/SegmentationClass/2007_4.png", "2007_4.png is missing"),
        ("voc", "VOCdevkit/VOC2012/JPEGImages/2007_0.jpg", "2007_0.jpg is missing"),
        ("kinetics", "kinetics/train/air_drumming", "air drumming has none of the files"),
        ("jester", "20bn-jester-v1/3", "20bn-jester-v1/3 is missing"),
        ("jester", "jester-v1-labels.csv", "jester-v1-labels.csv is missing"),
    ],
)
def test_an_incomplete_set_names_what_is_missing(name, gone, words, home):
    MINIATURES[name][0](home)
    path = home / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        prepare(name, home.parent / "out")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (home.parent / "out").exists()


@pytest.mark.parametrize("name", ["cinic10", "tiny-imagenet", "imagenet", "voc"])
def test_all_of_a_set_is_as_much_as_its_publisher_counts(name, home):
    MINIATURES[name][0](home)
    with pytest.raises(ValueError, match=rf"{name} is incomplete: \d+ of \d+ train images are"):
        prepare(name, home.parent / "out")
    with pytest.raises(ValueError, match=rf"{name} is incomplete: \d+ of \d+ test images are"):
        prepare(name, home.parent / "out", train=2)


BROKEN = {
    "cinic10": "CINIC-10/test/cat/cifar10-test-11.png",
    "tiny-imagenet": "tiny-imagenet-200/train/n01/images/n01_3.JPEG",
    "imagenet": "imagenet/train/n02/n02_4.JPEG",
    "voc": "VOCdevkit/VOC2012/SegmentationClass/2007_1.png",
    "kinetics": "kinetics/train/abseiling/1.mp4",
    "jester": "20bn-jester-v1/9/00015.jpg",
}


@pytest.mark.parametrize("how", ["half", "text", "empty"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(name, how, home):
    """In preparing, or, of what is only listed, in reading."""
    make, (train, validation, test), _ = MINIATURES[name]
    make(home)
    path = home / BROKEN[name]
    contents = path.read_bytes()
    parts = {"half": contents[: len(contents) // 2], "text": b"<html>Not found</html>" * 20}
    path.write_bytes(parts.get(how, b""))
    with pytest.raises(ValueError) as error:
        prepare(name, home.parent / "out", train=train, validation=validation, test=test)
        # Half a video has no index: it cannot be opened.
        list(loader(load(home.parent / "out"), "train", batch_size=2))
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence
    listed = how == "empty" and name not in ("voc", "jester")  # a mask and a frame are in no list
    assert ("is empty" if listed else "is a broken") in sentence and "<" not in sentence


def test_cinic10_has_its_own_validation_and_names_what_is_cifar10s_test(home):
    data = prepared("cinic10", home)
    assert data.meta["overlap"] == {
        "with": "CIFAR-10's test images", "train": 2, "validation": 2, "test": 2
    }  # fmt: skip
    shown = {image.tobytes() for image in data.images("validation")}
    files = (home / "CINIC-10/valid").rglob("*.png")
    assert shown == {np.asarray(Image.open(p)).transpose(2, 0, 1).tobytes() for p in files}
    less = home.parent / "less"
    prepare("cinic10", less, train=4, validation=2, test=2)
    assert load(less).meta["sizes"] == {"train": 4, "validation": 2, "test": 2}
    with pytest.raises(ValueError, match="has 6 validation images, got validation 7"):
        prepare("cinic10", less, train=8, validation=7, test=2)
    prepare("cinic10", less, train=8, validation=None, test=4)
    assert load(less).count("validation") == 6
    (home / "CINIC-10/train/cat/n02708555-10.png").unlink()
    noise(home / "CINIC-10/train/cat/n02708555-10.png", (31, 32), 0)
    with pytest.raises(ValueError, match="n02708555-10.png has 31×32 pixels, expected 32×32"):
        prepare("cinic10", less, train=8, test=4)


def test_tiny_imagenets_validation_images_are_the_test(home):
    data = prepared("tiny-imagenet", home, train=6, validation=2)
    assert data.meta["class_names"] == ["goldfish", "salamander"]
    assert data.labels("test").tolist() == [1, 0, 0]
    assert np.bincount(data.labels("validation")).tolist() == [1, 1]
    image = Image.open(home / "tiny-imagenet-200/val/images/val_2.JPEG")
    np.testing.assert_array_equal(data.images("test")[2], np.asarray(image).transpose(2, 0, 1))


def test_mini_kinetics_has_two_hundred_classes():
    names = [
        line
        for line in folders.lines(Path(folders.__file__).with_name("mini_kinetics.txt"))
        if not line.startswith("#")
    ]
    assert len(set(names)) == 200 and names == sorted(names)
    assert names[0] == "abseiling" and names[-1] == "zumba"


def test_a_wrong_mask_or_label_is_named(home):
    make_voc(home)
    mask = home / "VOCdevkit/VOC2012/SegmentationClass/2007_2.png"
    Image.fromarray(np.full((300, 400), 21, np.uint8)).save(mask)
    with pytest.raises(ValueError, match="2007_2.png is no mask of its image"):
        prepare("voc", home.parent / "out", train=1, test=1)
    make_jester(home)
    (home / "jester-v1-train.csv").write_text("9;Thumb Down\n")
    with pytest.raises(ValueError, match="jester-v1-train.csv has the label 'Thumb Down'"):
        prepare("jester", home.parent / "out")


# --- reading a stream --------------------------------------------------------------------------


def batches_of(data, workers: int = 0, first: int = 0, epoch: int = 0, **options) -> list:
    batches = loader(data, "train", **{"batch_size": 4, "shuffle": True, "augment": True} | options)
    assert isinstance(batches, Stream)
    batches.workers, batches.first, batches.epoch = workers, first, epoch
    return list(batches)


def same(a: list, b: list) -> bool:
    return all(
        torch.equal(x, y)
        for one, two in zip(a, b, strict=True)
        for x, y in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("name", ["imagenet", "voc", "kinetics", "jester"])
def test_order_and_augmentation_do_not_depend_on_the_workers(name, home):
    data = prepared(name, home)
    options = {"batch_size": 2, "seed": 7}
    state = torch.get_rng_state()
    reference = batches_of(data, epoch=1, **options)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert same(reference, batches_of(data, workers=2, epoch=1, **options))
    assert any(not same(reference, batches_of(data, epoch=i, **options)) for i in range(2, 9))
    images, targets = reference[0]
    assert images.dtype == torch.float32 and targets.dtype == torch.int64
    assert list(images.shape[1:]) == data.meta["image_shape"]
    assert targets.shape[1:] == (data.image_size if data.task == "segmentation" else ())


def test_a_streams_epoch_goes_on_from_its_middle_without_reading_what_is_left_out(home):
    data = prepared("imagenet", home)
    whole = batches_of(data, epoch=3)
    assert same(whole[2:], batches_of(data, epoch=3, first=2, workers=1))
    order = torch.cat([targets for _, targets in whole])
    assert sorted(order.tolist()) == [0] * 5 + [1] * 5 and len(whole) == 3
    # Every file that is left out is made unreadable.
    kept = list(Stream(data, "train", batch_size=4, shuffle=True)._batches())
    for _, place in kept[0] + kept[1]:
        (home / os.fsdecode(data.images("train")["path"][place])).unlink()
    assert len(batches_of(data, first=2)) == 1
    with pytest.raises(FileNotFoundError, match="JPEG is missing"):
        batches_of(data)


def test_parts_of_a_stream_are_one_processs_batches_cut(home):
    data = prepared("imagenet", home)
    whole, *parts = (batches_of(data, part=part) for part in ((0, 1), (0, 3), (1, 3), (2, 3)))
    for batch, *shares in zip(whole, *parts, strict=True):
        assert same([batch], [[torch.cat(x) for x in zip(*shares, strict=True)]])


def test_what_is_not_augmented_is_the_middle(home):
    data = prepared("imagenet", home)
    (images, labels), *_ = loader(data, "test", batch_size=4)
    assert labels.tolist() == [0, 0, 1, 1]
    from torchvision.transforms import v2

    path = home / os.fsdecode(data.images("test")["path"][1])
    reference = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.meta["mean"], data.meta["sd"]),
        ]
    )(Image.open(path))
    # Pillow and PyTorch round a resized pixel apart by 1 of 255 at most.
    torch.testing.assert_close(images[1], reference, atol=1.01 / 255 / 0.224, rtol=0)


def test_augmented_images_are_crops_of_their_own_in_every_epoch(home):
    data = prepared("imagenet", home)
    options = {"batch_size": 10, "shuffle": False}
    (first, labels), *_ = batches_of(data, **options)
    (second, _), *_ = batches_of(data, epoch=1, **options)
    assert labels.tolist() == [0] * 5 + [1] * 5
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_mask_is_cropped_and_mirrored_with_its_image_from_disk(home):
    data = prepared("voc", home)
    flipped = set()
    for epoch in range(6):
        for images, masks in batches_of(data, epoch=epoch):
            red = images[:, 0] * data.meta["sd"][0] + data.meta["mean"][0]
            shown = (red * 255 / 10).round()
            inside = masks != 255
            assert inside.float().mean() > 0.7
            # Blocks meet at edges, where colours mix.
            assert (shown == masks)[inside].float().mean() > 0.95
            flipped |= {bool((mask == 20).nonzero()[:, 1].float().mean() < 256) for mask in masks}
    assert flipped == {True, False}


def test_all_frames_of_a_clip_from_disk_are_cropped_alike(home):
    make_jester(home)
    for i in (3, 9):
        for path in (home / f"20bn-jester-v1/{i}").iterdir():
            noise(path.with_suffix(".png"), (100, 176), i)
            path.unlink()
    prepare("jester", home.parent / "out")
    (first, _), (second, _) = (
        batches_of(load(home.parent / "out"), epoch=epoch, shuffle=False)[0] for epoch in (0, 1)
    )
    assert (first == first[:, :, :1]).all() and not torch.equal(first, second)


def test_a_whole_image_is_evaluated_with_an_ignored_margin(home):
    make_voc(home)
    big = home / "VOCdevkit/VOC2012"
    Image.new("RGB", (1024, 700), (200,) * 3).save(big / "JPEGImages/2007_4.jpg")
    Image.new("L", (1024, 700), 20).save(big / "SegmentationClass/2007_4.png")
    prepare("voc", home.parent / "out", train=1, test=2)
    (images, masks), *_ = loader(load(home.parent / "out"), "test", batch_size=2)
    expected = np.array(Image.open(big / "SegmentationClass/2007_3.png"))
    assert torch.equal(masks[0, :300, :400], torch.from_numpy(expected).long())
    assert (masks[0, 300:] == 255).all() and (masks[0, :, 400:] == 255).all()
    assert images[0, :, 300:].abs().max() < 0.01, "the margin is the mean"
    assert (masks[1, :350] == 20).all() and (masks[1, 350:] == 255).all(), "half as large"


@pytest.mark.parametrize(("count", "total", "expected"), [
    (4, 8, [1, 3, 5, 7]), (3, 3, [0, 1, 2]), (4, 2, [0, 0, 1, 1]), (1, 9, [4]), (3, 10, [1, 5, 8]),
])  # fmt: skip
def test_frames_are_the_middles_of_equal_parts(count, total, expected):
    assert disk.evenly(count, total).tolist() == expected


def test_frames_of_a_video_and_of_a_folder(home):
    make_jester(home)
    make_kinetics(home)
    for path, total, shape in (
        (home / "20bn-jester-v1/3", 37, (100, 176)),
        (home / "20bn-jester-v1/12", 5, (100, 176)),
        (home / "kinetics/train/abseiling/0.mp4", 40, (128, 160)),
    ):
        shown = disk.clip(path, 16)
        assert shown.shape == (16, 3, *shape) and shown.dtype == torch.uint8
        grey = 5 * torch.from_numpy(disk.evenly(16, total))
        assert (shown.float().mean((1, 2, 3)) - grey).abs().mean() < 2, "one frame is 5"


def test_what_changed_since_it_was_prepared_is_refused(home, monkeypatch):
    data = prepared("imagenet", home)
    noise(home / "imagenet/train/n01/n01_0.JPEG", (20, 20), 0)
    with pytest.raises(ValueError, match="n01_0.JPEG has changed since it was prepared"):
        batches_of(data, workers=1)
    monkeypatch.delenv("WEXLIB_DATA")
    with pytest.raises(FileNotFoundError, match="imagenet is read from its files, and the folder"):
        batches_of(data)
    with pytest.raises(ValueError, match="no images for validation"):
        loader(data, "validation", batch_size=2)


# --- a folder of one's own -----------------------------------------------------------------------


@pytest.mark.parametrize("side", [40, 90])
def test_a_folder_of_classes_is_cut_in_shares(side, tmp_path):
    for label, name in enumerate(("blue", "red")):
        for i in range(20):
            noise(tmp_path / f"mine/{name}/{i}.png", (side, side + 5 * i), 20 * label + i)
    (tmp_path / "mine/blue/notes.txt").write_text("no image")
    prepare(f"{tmp_path}/mine", tmp_path / "out", validation=None)
    data = load(tmp_path / "out")
    assert data.meta["sizes"] == {"train": 28, "validation": 6, "test": 6}
    assert [np.bincount(data.labels(split)).tolist() for split in SPLITS] == [
        [14] * 2,
        [3] * 2,
        [3] * 2,
    ]
    listed = []
    for split in SPLITS:
        with (tmp_path / f"out/{split}.csv").open() as file:
            listed += [(row["path"], row["sha256"]) for row in csv.DictReader(file)]
    files = (tmp_path / "mine").rglob("*.png")
    assert sorted(listed) == sorted(
        (str(p.relative_to(tmp_path / "mine")), hashlib.sha256(p.read_bytes()).hexdigest())
        for p in files
    )
    assert data.streamed == (side > 64)
    assert data.image_size == ((40, 40) if side == 40 else (224, 224))
    (images, labels), *_ = loader(data, "train", batch_size=4, shuffle=True, augment=True)
    assert images.shape == (4, 3, *data.image_size)
    # One byte more is another dataset.
    before = data.meta["digest"]
    with (tmp_path / "mine/red/3.png").open("ab") as file:
        file.write(b"\0")
    prepare(f"{tmp_path}/mine", tmp_path / "out", validation=None)
    assert json.loads((tmp_path / "out/meta.json").read_text())["digest"] != before


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ("train val test", (8, 4, 4)),
        ("train validation test", (8, 4, 4)),
        ("train test", (8, 0, 4)),
        ("train val", (8, 0, 4)),
    ],
)
def test_folders_of_ones_own_splits(folders, sizes, tmp_path):
    for folder in folders.split():
        for name in "ab":
            for i in range(4 if folder == "train" else 2):
                noise(tmp_path / f"mine/{folder}/{name}/{i}.png", (10, 12), i)
    prepare(f"{tmp_path}/mine", tmp_path / "out", validation=None)
    data = load(tmp_path / "out")
    assert tuple(data.count(split) for split in SPLITS) == sizes
    assert data.image_size == (10, 10) and data.meta["class_names"] == ["a", "b"]


def test_a_folder_of_ones_own_that_cannot_be(tmp_path):
    def refused(words: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
            prepare(f"{tmp_path}/mine", tmp_path / "out")
        assert "\n" not in str(error.value)

    refused("mine is no folder: expected one that has a folder for each class")
    (tmp_path / "mine").mkdir()
    refused("mine has no folders: expected one for each class")
    noise(tmp_path / "mine/cats/1.png", (9, 9), 0)
    refused("has the one class cats: expected at least two")
    (tmp_path / "mine/dogs").mkdir()
    refused("mine/dogs has none of the files .bmp")
    (tmp_path / "mine/dogs/1.png").write_text("no image")
    refused("mine/dogs/1.png is a broken image")
    (tmp_path / "mine").rename(tmp_path / "train")
    (tmp_path / "mine").mkdir()
    (tmp_path / "train").rename(tmp_path / "mine/train")
    refused("mine has train and no test")


def test_a_set_of_torchvision_by_its_name(home):
    raw = home / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    made = {}
    for split, file, n in (("train", "train", 30), ("test", "t10k", 10)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8)
        made[split] = images, np.arange(n) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", made[split][1])):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (raw / f"{file}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    prepare("torchvision:FashionMNIST", home.parent / "out", validation=10)
    data = load(home.parent / "out")
    assert data.meta["sizes"] == {"train": 20, "validation": 10, "test": 10}
    assert data.meta["class_names"][0] == "T-shirt/top" and data.image_size == (28, 28)
    np.testing.assert_array_equal(data.images("test")[:, 1], made["test"][0])
    np.testing.assert_array_equal(data.labels("test"), made["test"][1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FashionMNISt", "unknown dataset of torchvision 'FashionMNISt'.*did you mean 'FashionM"),
        ("FashionMNIST", "FashionMNIST cannot be read below .*originals .*WEXLIB_DATA"),
        ("FakeData", "FakeData has no test split"),
    ],
)
def test_a_set_of_torchvision_that_cannot_be(name, words, home):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        prepare(f"torchvision:{name}", home.parent / "out")
    assert "\n" not in str(error.value)


# --- real samples --------------------------------------------------------------------------------


def unpacked(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(next(Path(SAMPLES).glob(f"{name}-sample*.zip"))) as archive:
        archive.extractall(folder)
    return folder


@needs_samples
def test_real_cinic10(home, tmp_path):
    """Sheets of 100 images, one below the other, cut and laid out."""
    sheets = unpacked("cinic10", tmp_path / "sheets")
    said = json.loads((sheets / "labels.json").read_text())
    tiles = [
        tile
        for sheet in sorted(sheets.glob("*.webp"))
        for tile in np.split(np.asarray(Image.open(sheet)), 100)
    ]
    for i, (tile, label) in enumerate(zip(tiles, said["labels"], strict=True)):
        split = ("train", "valid", "test")[i % 3]
        path = home / "CINIC-10" / split / said["classes"][label] / f"cifar10-train-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    prepare("cinic10", tmp_path / "out", train=400, validation=100, test=200)
    data = load(tmp_path / "out")
    assert data.meta["class_names"] == said["classes"]
    assert [np.bincount(data.labels(s)).tolist() for s in SPLITS] == [
        [40] * 10,
        [10] * 10,
        [20] * 10,
    ]
    known = {
        tile.transpose(2, 0, 1).tobytes(): y for tile, y in zip(tiles, said["labels"], strict=True)
    }
    for image, label in zip(data.images("train"), data.labels("train"), strict=True):
        assert known[image.tobytes()] == label


@needs_samples
def test_real_tiny_imagenet(home, tmp_path):
    unpacked("tiny-imagenet", home)
    prepare("tiny-imagenet", tmp_path / "out", train=3000, validation=1000, test=1000)
    data = load(tmp_path / "out")
    assert data.classes == 200 and data.images("train").shape == (3000, 3, 64, 64)
    assert np.bincount(data.labels("test")).tolist() == [5] * 200
    assert np.bincount(data.labels("validation")).tolist() == [5] * 200
    assert "goldfish" in data.meta["class_names"]
    assert audit.summary({"tiny": data})["constant"].sum() == 0


@needs_samples
def test_real_imagenet(home, tmp_path):
    for i, path in enumerate(sorted(unpacked("imagenet", tmp_path / "sample").rglob("*.JPEG"))):
        wnid = path.name.split("_")[0]
        for split in ("train", "val"):
            (home / "imagenet" / split / wnid).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, home / "imagenet" / split / wnid / f"{wnid}_{i}.JPEG")
    prepare("imagenet", tmp_path / "out", train=1000, test=1000)
    data = load(tmp_path / "out")
    assert data.classes == 1000 and data.meta["class_names"][:2] == ["tench", "goldfish"]
    batches = loader(data, "train", batch_size=50, shuffle=True, augment=True)
    batches.first = 18
    seen = list(batches)
    assert len(seen) == 2 and seen[0][0].shape == (50, 3, 224, 224)
    # ImageNet's mean and standard deviation are of images like these.
    shown = torch.cat([images for images, _ in seen])
    assert shown.mean((0, 2, 3)).abs().max() < 0.4 and (shown.std((0, 2, 3)) - 1).abs().max() < 0.3


@needs_samples
def test_real_voc(home, tmp_path):
    source = unpacked("voc2012", tmp_path / "sample") / "VOC2012"
    target = home / "VOCdevkit/VOC2012"
    shutil.copytree(source, target)
    for path in (target / "JPEGImages").glob("*.webp"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=100)
    ids = sorted(p.stem for p in (target / "SegmentationClass").glob("*.png"))
    (target / "ImageSets/Segmentation").mkdir(parents=True)
    for split, chosen in (("train", ids[:4]), ("val", ids[4:])):
        (target / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(chosen))
    prepare("voc", tmp_path / "out", train=4, test=3)
    data = load(tmp_path / "out")
    seen = torch.cat([masks for _, masks in loader(data, "test", batch_size=3)])
    assert seen.shape == (3, 512, 512)
    assert set(seen.unique().tolist()) <= {*range(21), 255} and len(seen.unique()) > 3


@needs_samples
def test_real_videos(home, tmp_path):
    clips = sorted(unpacked("clips", tmp_path / "sample").glob("*.mp4"))
    for i, name in enumerate(("abseiling", "air drumming")):
        for split, path in (("train", clips[i]), ("val", clips[2])):
            folder = home / "kinetics" / split / name
            folder.mkdir(parents=True)
            shutil.copy(path, folder)
    prepare("kinetics", tmp_path / "out")
    data = load(tmp_path / "out")
    (shown, labels), *_ = loader(data, "train", batch_size=2, channels_last=True)
    assert shown.shape == (2, 3, 16, 112, 112) and labels.tolist() == [0, 1]
    assert (shown[:, :, 1:] - shown[:, :, :-1]).abs().mean() > 0.01, "the pictures move"
