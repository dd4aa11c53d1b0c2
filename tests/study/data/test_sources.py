"""Draws and strata, and CIFAR from hand-made mirrors, archives and downloads."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tampering import Bomb, fingerprint

from study.data.base import draw, stratified
from study.data.datasets import prepare
from study.data.loader import SPLITS, load

torchvision = pytest.importorskip("torchvision")

MIRROR = os.environ.get("WEXLIB_DATA")


def test_draws_are_the_same_for_ever():
    # PCG64's first output for SeedSequence([0, 97]), pinned: it must not follow NumPy's version.
    raw = np.random.PCG64(np.random.SeedSequence([0, ord("a")])).random_raw()
    assert draw(1, 1 << 53, 0, "a")[0] == raw >> 11 == 6127945898307462
    assert draw((2, 3), 7, 0, "a").shape == (2, 3)
    many = draw(70_000, 7, 3, "evenly")
    assert np.abs(np.bincount(many, minlength=7) - 10_000).max() < 5 * 100


@pytest.mark.parametrize("count", [0, 1, 7, 50, 100])
def test_stratified_takes_each_class_in_proportion(count):
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    index = stratified(labels, count, 0, "test")
    assert len(index) == count and (np.diff(index) > 0).all()
    share = np.bincount(labels[index], minlength=3)
    assert np.abs(share - count * np.array([0.5, 0.3, 0.2])).max() < 1


def test_stratified_by_hand_and_by_seed():
    # Shares of 5: 2.5, 1.5, 1, so the two halves take the one that is left to the lower class.
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    assert np.bincount(labels[stratified(labels, 5, 0, "x")]).tolist() == [3, 1, 1]
    labels = np.repeat([0, 1], 500)
    first, second = (stratified(labels, 100, seed, "x") for seed in (0, 1))
    assert not np.array_equal(first, second)


# --- CIFAR ------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """CIFAR-10 of 40 random images, its MD5s in place of the official ones, and no mirror set."""
    generator = np.random.default_rng(0)
    official = torchvision.datasets.CIFAR10
    source = tmp_path / "source" / official.base_folder
    source.mkdir(parents=True)
    md5s = {}

    def put(name: str, contents: dict) -> None:
        (source / name).write_bytes(pickle.dumps(contents))
        md5s[name] = hashlib.md5((source / name).read_bytes()).hexdigest()

    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        data = generator.integers(0, 256, (20, 3072)).astype(np.uint8)
        put(name, {"data": data, "labels": list(range(10)) * 2})
    put("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    archive = tmp_path / official.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, official.base_folder)
    train = [[name, md5s[name]] for name in ("data_batch_1", "data_batch_2")]
    monkeypatch.setattr(official, "train_list", train)
    monkeypatch.setattr(official, "test_list", [["test_batch", md5s["test_batch"]]])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": md5s["batches.meta"]})
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(official, "url", archive.as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WEXLIB_DATA", raising=False)
    return tmp_path


def fake_mirror(fake: Path, kind: str, monkeypatch) -> Path:
    """A mirror with the fake in it, extracted or as the archive, named in WEXLIB_DATA."""
    mirror = fake / "mirror"
    mirror.mkdir()
    official = torchvision.datasets.CIFAR10
    if kind == "folder":
        (fake / "source" / official.base_folder).rename(mirror / official.base_folder)
    else:
        (fake / official.filename).rename(mirror / official.filename)
    monkeypatch.setenv("WEXLIB_DATA", str(mirror))
    return mirror


def refused(fake: Path, error: type[Exception]) -> str:
    """The one sentence with which cifar10 is refused; nothing may be left behind."""
    with pytest.raises(error) as raised:
        prepare("cifar10", fake / "out" / "d")
    assert not list(fake.glob("out/*")) and not list(fake.glob("cache/wexlib/*"))
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("kind", ["folder", "archive", "download"])
def test_cifar_from_a_folder_an_archive_or_a_download(fake, kind, monkeypatch):
    expected = pickle.loads((fake / "source/cifar-10-batches-py/data_batch_2").read_bytes())
    if kind != "download":
        fake_mirror(fake, kind, monkeypatch)
    prepare("cifar10", fake / "out")
    data = load(fake / "out")
    assert data.meta["sizes"] == {"train": 40, "validation": 0, "test": 20}
    np.testing.assert_array_equal(data.images("train")[20:].reshape(20, -1), expected["data"])
    np.testing.assert_array_equal(data.labels("train")[20:], expected["labels"])
    assert data.meta["class_names"][3] == "class 3" and data.meta["flip"]
    assert [p.name for p in fake.glob("cache/wexlib/*")] == (
        ["cifar-10-python.tar.gz"] if kind == "download" else []
    )


def test_a_download_is_kept_for_the_next_time(fake):
    prepare("cifar10", fake / "a")
    (fake / "cifar-10-python.tar.gz").unlink()
    prepare("cifar10", fake / "b")
    assert fingerprint(fake / "a") == fingerprint(fake / "b")


def test_no_network_and_no_mirror(fake):
    (fake / "cifar-10-python.tar.gz").unlink()
    sentence = refused(fake, ConnectionError)
    assert torchvision.datasets.CIFAR10.url in sentence and "WEXLIB_DATA" in sentence


def test_an_interrupted_download(fake):
    archive = fake / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1000])
    sentence = refused(fake, ConnectionError)
    assert "incomplete or changed" in sentence and "WEXLIB_DATA" in sentence


def test_a_mirror_without_the_dataset(fake, monkeypatch):
    monkeypatch.setenv("WEXLIB_DATA", str(fake / "nowhere"))
    sentence = refused(fake, FileNotFoundError)
    assert str(fake / "nowhere") in sentence and "cifar-10-python.tar.gz" in sentence


def test_a_mirror_with_a_file_missing(fake, monkeypatch):
    mirror = fake_mirror(fake, "folder", monkeypatch)
    (mirror / "cifar-10-batches-py/test_batch").unlink()
    assert "test_batch is missing" in refused(fake, ValueError)


@pytest.mark.parametrize("left", [0, 0.001, 0.5, 0.9])
def test_a_truncated_archive(fake, left, monkeypatch):
    archive = fake_mirror(fake, "archive", monkeypatch) / "cifar-10-python.tar.gz"
    contents = archive.read_bytes()
    archive.write_bytes(contents[: int(left * len(contents))])
    sentence = refused(fake, ValueError)
    assert str(archive) in sentence and "fetch or copy it again" in sentence


def test_an_archive_that_is_something_else(fake, monkeypatch):
    archive = fake_mirror(fake, "archive", monkeypatch) / "cifar-10-python.tar.gz"
    archive.write_text("<html>Not found</html>")
    assert str(archive) in refused(fake, ValueError)


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_pickle_that_is_not_the_original_never_runs(fake, kind, name, monkeypatch):
    mirror = fake_mirror(fake, kind, monkeypatch)
    bomb = pickle.dumps(Bomb(fake / "ran"))
    if kind == "folder":
        (mirror / "cifar-10-batches-py" / name).write_bytes(bomb)
    else:
        files = {p.name: p.read_bytes() for p in (fake / "source/cifar-10-batches-py").iterdir()}
        with tarfile.open(mirror / "cifar-10-python.tar.gz", "w:gz") as tar:
            for file, contents in (files | {name: bomb}).items():
                entry = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
                entry.size = len(contents)
                tar.addfile(entry, io.BytesIO(contents))
    sentence = refused(fake, ValueError)
    assert name in sentence and "is not the original" in sentence
    assert not (fake / "ran").exists()


@pytest.mark.skipif(not MIRROR, reason="needs the originals: WEXLIB_DATA is not set")
@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_real_cifar(dataset, classes, tmp_path):
    prepare(dataset, tmp_path / "d", train=1000, validation=500, test=2000)
    data = load(tmp_path / "d")
    assert data.classes == classes and data.meta["class_names"] == sorted(data.meta["class_names"])
    for split, n in zip(SPLITS, (1000, 500, 2000), strict=True):
        assert data.images(split).shape == (n, 3, 32, 32)
        assert np.bincount(data.labels(split)).tolist() == [n // classes] * classes


@pytest.mark.skipif(not MIRROR, reason="needs the originals: WEXLIB_DATA is not set")
def test_real_cifar_from_an_archive(tmp_path, monkeypatch):
    official = torchvision.datasets.CIFAR100
    if not (Path(MIRROR) / official.base_folder).is_dir():
        pytest.skip("the mirror has the archive itself")
    with tarfile.open(tmp_path / official.filename, "w:gz", compresslevel=0) as tar:
        tar.add(Path(MIRROR) / official.base_folder, official.base_folder)
    sizes = {"train": 200, "test": 100}
    prepare("cifar100", tmp_path / "from folder", **sizes)
    monkeypatch.setenv("WEXLIB_DATA", str(tmp_path))
    prepare("cifar100", tmp_path / "from archive", **sizes)
    assert fingerprint(tmp_path / "from folder") == fingerprint(tmp_path / "from archive")
