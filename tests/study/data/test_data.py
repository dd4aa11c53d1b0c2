"""Datasets and their loader, against naive loops and hand-made mirrors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tampering import Bomb, fingerprint

from study.data import digits
from study.data.datasets import prepare
from study.data.loader import SPLITS, Data, Loader, load, loader
from study.files import digest

# --- preparing --------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["digits10", "digits100"])
def test_same_seed_gives_the_same_bytes(dataset, tmp_path):
    sizes = {"train": 300, "validation": 100, "test": 200}
    for other, name in enumerate("ab"):
        np.random.seed(other)  # whatever else draws
        prepare(dataset, tmp_path / name, **sizes)
    prepare(dataset, tmp_path / "c", **sizes, seed=1)
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a == b
    assert a["train_images.npy"] != c["train_images.npy"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_bytes_of_digits_are_those_of_every_machine(tmp_path):
    prepare("digits100", tmp_path / "d", train=50, validation=20, test=20)
    meta = json.loads((tmp_path / "d" / "meta.json").read_text())
    assert meta["sha256"]["train_images.npy"].startswith("9b706c5a96e31085")
    assert meta["sha256"]["test_labels.npy"].startswith("443f671696eb3805")


@pytest.mark.parametrize(
    ("dataset", "classes", "size"), [("digits10", 10, (8, 8)), ("digits100", 100, (8, 16))]
)
def test_digits_are_balanced_and_described(dataset, classes, size, tmp_path):
    prepare(dataset, tmp_path / "d", train=500, validation=200, test=300)
    data = load(tmp_path / "d")
    assert data.classes == classes == len(data.meta["class_names"])
    assert data.image_size == size
    for split, n in zip(SPLITS, (500, 200, 300), strict=True):
        assert data.images(split).shape == (n, 3, *size)
        count = np.bincount(data.labels(split), minlength=classes)
        tolerance = 0 if classes == 100 else 0.1 * n / classes
        assert np.abs(count - n / classes).max() <= tolerance
    assert not data.meta["flip"], "a mirrored digit is another sign"
    assert data.meta["pad"] == 0, "a scan fills its image: a crop would cut its strokes"


def test_mean_and_sd_are_those_of_the_training_images(tmp_path):
    prepare("digits10", tmp_path / "d")
    data = load(tmp_path / "d")
    pixels = data.images("train").astype(np.float64) / 255
    assert data.meta["mean"] == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-4)
    assert data.meta["sd"] == pytest.approx(pixels.std((0, 2, 3)), abs=1e-4)


def test_a_reduced_pixel_is_the_mean_of_its_square_rounded_half_up(tmp_path):
    prepare("digits10", tmp_path / "whole", validation=100)
    prepare("digits10", tmp_path / "half", validation=100, size=4)
    whole, half = load(tmp_path / "whole"), load(tmp_path / "half")
    assert half.image_size == (4, 4)
    for split in SPLITS:
        assert (whole.labels(split) == half.labels(split)).all()
        for image, small in zip(whole.images(split)[:9], half.images(split)[:9], strict=True):
            for c in range(3):
                for y in range(4):
                    for x in range(4):
                        four = [int(image[c, 2 * y + i, 2 * x + j]) for i in (0, 1) for j in (0, 1)]
                        assert small[c, y, x] == math.floor(sum(four) / 4 + 0.5)
    assert "Reduced to 4×4" in half.meta["about"]


@pytest.mark.parametrize(("dataset", "size"), [("digits10", 3), ("digits100", 4), ("scenes", 8)])
def test_a_size_that_does_not_fit_is_refused(dataset, size, tmp_path):
    with pytest.raises(ValueError, match=r"expected a size that divides 8|square images"):
        prepare(dataset, tmp_path / "d", size=size)
    assert not list(tmp_path.iterdir())


def test_train_validation_and_test_are_disjoint_scans(tmp_path):
    prepare("digits10", tmp_path / "d", validation=200)
    data = load(tmp_path / "d")
    rows = [{image.tobytes() for image in data.images(split)} for split in SPLITS]
    assert sum(map(len, rows)) == len(set.union(*rows))
    assert sum(data.meta["sizes"].values()) == 1797


def test_digits100_is_composed_of_each_splits_own_scans(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "NOISE", 0)
    prepare("digits10", tmp_path / "scans")
    prepare("digits100", tmp_path / "pairs", train=1000, test=1000)
    scans, pairs = load(tmp_path / "scans"), load(tmp_path / "pairs")
    for split in ("train", "test"):
        known = {
            (image[0].tobytes(), label)
            for image, label in zip(scans.images(split), scans.labels(split), strict=True)
        }
        for image, label in zip(pairs.images(split), pairs.labels(split), strict=True):
            assert (image[0, :, :8].tobytes(), label // 10) in known
            assert (image[0, :, 8:].tobytes(), label % 10) in known


def test_train_is_cut_after_validation(tmp_path):
    for name, train in (("all", None), ("some", 300)):
        prepare("digits10", tmp_path / name, train=train, validation=200)
    every, some = load(tmp_path / "all"), load(tmp_path / "some")
    np.testing.assert_array_equal(every.images("validation"), some.images("validation"))
    np.testing.assert_array_equal(every.images("test"), some.images("test"))
    known = {image.tobytes() for image in every.images("train")}
    assert all(image.tobytes() in known for image in some.images("train"))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train": 2000}, ["1078 training images", "train 2000 + validation 0"]),
        ({"train": 1000, "validation": 79}, ["train 1000 + validation 79"]),
        ({"validation": 1078}, ["train 0"]),
        ({"test": 9999}, ["719 test images", "9999"]),
        ({"test": 0}, ["at least one for test"]),
    ],
)
def test_more_images_than_there_are_is_refused(sizes, words, tmp_path):
    with pytest.raises(ValueError) as error:
        prepare("digits10", tmp_path / "d", **sizes)
    assert all(word in str(error.value) for word in words)
    assert list(tmp_path.iterdir()) == []


def test_unknown_dataset_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="unknown dataset 'cifar1O'.*did you mean 'cifar10'"):
        prepare("cifar1O", tmp_path / "d")


def test_preparing_again_replaces_the_folder_and_a_failure_leaves_it(tmp_path, monkeypatch):
    folder = tmp_path / "d"
    prepare("digits10", folder, train=100, test=50)
    (folder / "stale.npy").touch()
    prepare("digits10", folder, train=200, test=50)
    assert load(folder).meta["sizes"]["train"] == 200
    assert not (folder / "stale.npy").exists()
    before = fingerprint(folder)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        prepare("digits10", folder, train=100, test=50)
    assert fingerprint(folder) == before and [p.name for p in tmp_path.iterdir()] == ["d"]


# --- reading back -----------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path):
    folder = tmp_path / "data" / "demo" / "cifar10"
    prepare("digits10", folder, train=60, validation=10, test=30)
    return folder


def _no_meta(folder):
    (folder / "meta.json").unlink()


def _half_meta(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text[: len(text) // 2])


def _meta_without_sizes(folder):
    (folder / "meta.json").write_text("{}")


def _no_array(folder):
    (folder / "train_images.npy").unlink()


def _half_array(folder):
    contents = (folder / "train_images.npy").read_bytes()
    (folder / "train_images.npy").write_bytes(contents[: len(contents) // 2])


def _one_bit(folder):
    contents = bytearray((folder / "train_images.npy").read_bytes())
    contents[-1] ^= 1
    (folder / "train_images.npy").write_bytes(contents)


def _one_digit(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace('"pad": 0', '"pad": 1'))


def _no_digest(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace('"digest"', '"digset"'))


def changed(folder, **values):
    """Other values in ``meta.json``, as if they were prepared."""
    meta = json.loads((folder / "meta.json").read_text()) | values
    (folder / "meta.json").write_text(json.dumps(meta | {"digest": digest(meta)}))


def _other_shape(folder):
    changed(folder, image_shape=[3, 32, 32])


@pytest.mark.parametrize(
    ("damage", "file", "error"),
    [
        (_no_meta, "meta.json", FileNotFoundError),
        (_half_meta, "meta.json", ValueError),
        (_meta_without_sizes, "meta.json", ValueError),
        (_one_digit, "meta.json", ValueError),
        (_no_digest, "meta.json", ValueError),
        (_no_array, "train_images.npy", FileNotFoundError),
        (_half_array, "train_images.npy", ValueError),
        (_one_bit, "train_images.npy", ValueError),
        (_other_shape, "train_images.npy", ValueError),
    ],
)
def test_a_damaged_file_is_named_with_its_remedy(prepared, damage, file, error):
    damage(prepared)
    with pytest.raises(error) as raised:
        load(prepared)
    sentence = str(raised.value)
    assert str(prepared / file) in sentence and "\n" not in sentence
    assert f"dvc checkout --force {prepared}" in sentence
    assert "dvc repro --force --single-item data@demo-cifar10" in sentence


def test_a_pickle_in_an_array_file_never_runs(prepared, tmp_path):
    np.save(prepared / "train_labels.npy", np.array([Bomb(tmp_path / "ran")]), allow_pickle=True)
    meta = json.loads((prepared / "meta.json").read_text())
    sha256 = meta["sha256"] | {"train_labels.npy": fingerprint(prepared)["train_labels.npy"]}
    changed(prepared, sha256=sha256)
    with pytest.raises(ValueError, match="train_labels.npy is damaged"):
        load(prepared)
    assert not (tmp_path / "ran").exists()


def test_splits_go_by_name(prepared):
    with pytest.raises(ValueError, match="unknown split 'validate'.*did you mean 'validation'"):
        load(prepared).images("validate")


# --- the loader -------------------------------------------------------------------------------


def toy(n: int = 37, size: tuple[int, int] = (8, 6), pad: int = 2, flip: bool = True) -> Data:
    """Random images whose labels number them."""
    generator = np.random.default_rng(0)
    images = generator.integers(1, 255, (n, 3, *size)).astype(np.uint8)
    meta = {
        "dataset": "toy",
        "task": "classification",
        "mean": [0.5, 0.4, 0.3],
        "sd": [0.2, 0.25, 0.3],
    }
    meta |= {"pad": pad, "flip": flip, "classes": n, "image_shape": [3, *size]}
    empty = (images[:0], np.arange(0))
    return Data(meta, {"train": (images, np.arange(n)), "validation": empty, "test": empty})


def normalized(image: np.ndarray, meta: dict) -> np.ndarray:
    mean, sd = (np.array(meta[key])[:, None, None] for key in ("mean", "sd"))
    return (image / 255 - mean) / sd


def every_crop(image: np.ndarray, meta: dict, pad: int, flip: bool):
    """All the images that augmentation may make of one, each once, by a loop."""
    channels, height, width = image.shape
    for mirrored in (False, True)[: 1 + flip]:
        padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), image.dtype)
        for y in range(height):
            for x in range(width):
                padded[:, y + pad, x + pad] = image[:, y, width - 1 - x if mirrored else x]
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                crop = padded[:, top : top + height, left : left + width]
                yield (mirrored, top, left), normalized(crop, meta)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("pad", "flip"), [(2, True), (1, False), (0, True)])
def test_augmentation_is_the_naive_loops(pad, flip, channels_last):
    data = toy(pad=pad, flip=flip)
    options = {"batch_size": 10, "shuffle": True, "augment": True, "channels_last": channels_last}
    seen = set()
    for epoch in range(3):
        loader = Loader(data, "train", **options)
        loader.epoch = epoch
        for images, labels in loader:
            assert images.dtype == torch.float32
            if channels_last:
                assert images.is_contiguous(memory_format=torch.channels_last)
            for image, label in zip(images.numpy(), labels.tolist(), strict=True):
                crops = every_crop(data.images("train")[label], data.meta, pad, flip)
                fits = [k for k, crop in crops if np.allclose(image, crop, atol=1e-5)]
                assert len(fits) == 1, "each image is one crop of itself"
                seen.add(fits[0])
    # One draw an image, not one a batch: 111 images show most of the crops that there are.
    assert len(seen) > 0.6 * min(111, (2 * pad + 1) ** 2 * (1 + flip))


def test_crops_and_mirrors_are_drawn_evenly_and_apart():
    n, pad = 900, 1
    data = toy(n, (3, 3), pad)
    shown = torch.cat([x for x, _ in Loader(data, "train", batch_size=n, augment=True)]).numpy()
    counts: dict[tuple, int] = {}
    for image, original in zip(shown, data.images("train"), strict=True):
        for key, crop in every_crop(original, data.meta, pad, True):
            if np.allclose(image, crop, atol=1e-5):
                counts[key] = counts.get(key, 0) + 1
    expected = n / 18
    assert len(counts) == 18
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 40.8  # 17 degrees of freedom, 0.1 %


def test_without_augmentation_images_are_as_they_lie():
    data = toy()
    loader = Loader(data, "train", batch_size=10)
    batches = list(loader)
    assert len(loader) == len(batches) == 4 and len(batches[-1][0]) == 7
    shown = torch.cat([images for images, _ in batches])
    expected = normalized(data.images("train"), data.meta)
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(37))


def test_each_image_once_an_epoch_in_an_order_of_its_own():
    loader = Loader(toy(), "train", batch_size=10, shuffle=True)
    orders = []
    for epoch in (0, 1):
        loader.epoch = epoch
        orders.append(torch.cat([labels for _, labels in loader]).tolist())
    assert [sorted(order) for order in orders] == [list(range(37))] * 2
    assert orders[0] != orders[1] != list(range(37))


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    def epoch_of(seed: int, disturb: int, batch_size: int) -> torch.Tensor:
        loader = Loader(
            toy(), "train", batch_size=batch_size, shuffle=True, augment=True, seed=seed
        )
        loader.epoch = 5
        torch.manual_seed(disturb)
        shown = []
        for images, _ in loader:
            torch.rand(disturb)
            shown.append(images)
        return torch.cat(shown)

    reference = epoch_of(seed=2**62 + 1, disturb=1, batch_size=10)
    assert torch.equal(reference, epoch_of(seed=2**62 + 1, disturb=7, batch_size=16))
    assert not torch.equal(reference, epoch_of(seed=3, disturb=1, batch_size=10))


def test_loader_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    list(Loader(toy(), "train", batch_size=10, shuffle=True, augment=True))
    assert torch.equal(state, torch.get_rng_state())


def test_bf16_is_the_rounded_float32():
    full, half = (
        torch.cat([x for x, _ in Loader(toy(), "train", batch_size=10, dtype=dtype)])
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16 and torch.equal(full.bfloat16(), half)


def everything(batches) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def test_an_epoch_goes_on_from_its_middle():
    batches = loader(toy(), "train", batch_size=10, shuffle=True, augment=True)
    batches.epoch = 3
    whole = list(batches)
    batches.first = 2
    rest = list(batches)
    assert len(rest) == 2 and len(batches) == 4, "the length is the epoch's"
    for batch, other in zip(whole[2:], rest, strict=True):
        assert all(map(torch.equal, batch, other))


@pytest.mark.parametrize("world", [2, 3])
def test_parts_are_one_processs_batches_cut(world):
    options = {"batch_size": 10, "shuffle": True, "augment": True, "seed": 4}
    parts = [loader(toy(), "train", part=(rank, world), **options) for rank in range(world)]
    sizes = []
    for whole, *shares in zip(loader(toy(), "train", **options), *parts, strict=True):
        assert all(map(torch.equal, whole, everything(shares)))
        sizes.append([len(targets) for _, targets in shares])
    assert sizes[0] == {2: [5, 5], 3: [3, 3, 4]}[world]
    assert sizes[-1] == {2: [3, 4], 3: [2, 2, 3]}[world], "the last batch of 7"


def test_a_mask_is_cropped_and_mirrored_with_its_image():
    """Each image of one channel is its own mask, so that both must show the same."""
    masks = toy(40).images("train")[:, 0]
    meta = toy().meta | {
        "task": "segmentation",
        "mean": [0.0],
        "sd": [1.0],
        "image_shape": [1, 8, 6],
    }
    data = Data(meta, {"train": (masks[:, None], masks)})
    images, shown = everything(loader(data, "train", batch_size=16, augment=True))
    inside = shown != 255  # no pixel of these images is 255
    assert shown.dtype == torch.int64 and shown.shape == (40, 8, 6)
    assert 0.6 < inside.float().mean() < 0.95, "crops reach over the edge"
    assert torch.equal((images[:, 0] * 255).round().long(), torch.where(inside, shown, 0))


def test_all_frames_of_a_clip_are_cropped_alike():
    data = toy(30)
    frames = np.stack([np.roll(data.images("train"), t, 1) for t in range(4)], 2)
    clips = Data(data.meta | {"image_shape": [3, 4, 8, 6]}, {"train": (frames, np.arange(30))})
    meta = {"mean": [0.0] * 3, "sd": [1.0] * 3}
    clips.meta.update(meta), data.meta.update(meta)
    options = {"batch_size": 9, "shuffle": True, "augment": True, "channels_last": True}
    for (shown, labels), (images, same) in zip(
        loader(clips, "train", **options), loader(data, "train", **options), strict=True
    ):
        assert torch.equal(labels, same)
        assert shown.is_contiguous(memory_format=torch.channels_last_3d)
        for t in range(4):
            assert torch.equal(shown[:, :, t], images.roll(t, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_and_cpu_show_the_same_images():
    options = {"batch_size": 10, "shuffle": True, "augment": True, "channels_last": True}
    cpu, gpu = (Loader(toy(), "train", device=device, **options) for device in ("cpu", "cuda"))
    for (a, labels_a), (b, labels_b) in zip(cpu, gpu, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-6, rtol=1e-6)
        assert torch.equal(labels_a, labels_b.cpu())


def test_loader_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="toy was prepared with no images for validation"):
        Loader(toy(), "validation", batch_size=10)
    with pytest.raises(ValueError, match="batch size of at least 1"):
        Loader(toy(), "train", batch_size=0)
