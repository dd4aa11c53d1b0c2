"""What is said of a dataset, against arrays whose faults are known; scenes against their masks."""

import numpy as np
import pytest

from study.data import audit, digits
from study.data.loader import Data


def images(*values: int) -> np.ndarray:
    """Images (N, 3, 2, 2), by their first values; 0 gives one of a single colour."""
    made = np.zeros((len(values), 3, 2, 2), np.uint8)
    for image, value in zip(made, values, strict=True):
        if value:
            image[0, 0, 0], image[:, 1, 1] = value, 9
    return made


@pytest.fixture
def datasets():
    def data(train, test, labels):
        meta = {"dataset": "made", "classes": 3, "image_shape": [3, 2, 2]}
        meta["sha256"] = {f"{s}_images.npy": "ab" * 32 for s in ("train", "validation", "test")}
        none = (images(), np.zeros(0, np.int64))
        splits = {
            "train": (images(*train), np.array(labels)),
            "validation": none,
            "test": (images(*test), np.zeros(len(test), np.int64)),
        }
        return Data(meta, splits)

    return {"a": data([1, 2, 2, 0], [2, 3], [0, 1, 1, 7]), "b": data([3, 4], [5], [0, 2])}


def test_a_summary_by_hand(datasets):
    frame = audit.summary(datasets).set_index(["set", "split"])
    assert list(frame["images"]) == [4, 2, 2, 1]
    assert list(frame["constant"]) == [1, 0, 0, 0]
    assert list(frame["strange"]) == [1, 0, 0, 0]
    row = frame.loc[("a", "train")]
    assert (row["classes"], row["least"], row["most"]) == (2, 0, 2)
    assert row["shape"] == "3 × 2 × 2" and row["sha256"] == "ab" * 6
    # Channel 0 of 16 pixels: 1, 2, 2 and three times 9; the others three times 9.
    values = np.array([1, 2, 2, 9, 9, 9] + [0] * 10) / 255
    assert row["mean"] == pytest.approx([values.mean(), 27 / 16 / 255, 27 / 16 / 255])
    assert row["sd"][0] == pytest.approx(values.std())


def test_equal_images_by_hand(datasets):
    found = audit.equal_images(datasets)
    assert found.loc["a, train", "a, train"] == 2  # the two twos
    assert found.loc["a, train", "a, test"] == 2 and found.loc["a, test", "a, train"] == 1
    assert found.loc["a, test", "b, train"] == 1
    assert found.loc["b, test"].sum() == 0


def test_class_counts_are_all_there(datasets):
    frame = audit.class_counts({"b": datasets["b"]})
    train = frame[frame["split"] == "train"]
    assert list(train["images"]) == [1, 0, 1] and len(frame) == 9


@pytest.mark.parametrize("split", digits.SPLITS)
def test_a_mask_is_where_the_scene_has_ink(split):
    pictures, masks = digits.scenes(split, 40)
    assert np.array_equal(pictures > 0, masks > 0)
    assert set(np.unique(masks)) == set(range(11))
    again = digits.scenes(split, 40)
    assert np.array_equal(pictures, again[0]) and np.array_equal(masks, again[1])
    assert not np.array_equal(pictures, digits.scenes(split, 40, seed=1)[0])


def test_scenes_show_their_own_splits_scans_and_name_them():
    """Of one digit each, so the scan can be cut out and looked up."""
    known = {
        split: dict(zip((s.tobytes() for s in scans), labels, strict=True))
        for split, (scans, labels) in digits.digit_scans(0).items()
    }
    assert not known["train"].keys() & known["test"].keys()
    for split in digits.SPLITS:
        for image, mask in zip(*digits.scenes(split, 30, most=1), strict=True):
            windows = [
                (image[top : top + 16 : 2, left : left + 16 : 2] // 15).tobytes()
                for top in range(33)
                for left in range(33)
                if image[top : top + 16, left : left + 16].sum() == image.sum()
            ]
            found = [known[split][window] for window in windows if window in known[split]]
            assert found and {1 + digit for digit in found} == set(np.unique(mask)) - {0}


def test_a_digit_moves_where_its_label_says():
    clips, labels = digits.moving_digits("train", 30, frames=9)
    steps = list(digits.DIRECTIONS.values())
    assert set(labels) == {0, 1, 2, 3}
    for clip, label in zip(clips, labels, strict=True):
        shift = tuple(digits.STEP * step for step in steps[label])
        for before, after in zip(clip, clip[1:], strict=False):
            assert np.array_equal(np.roll(before, shift, (0, 1)), after)
            assert before.sum() == after.sum() > 0
    with pytest.raises(ValueError, match="expected 1 to 11"):
        digits.moving_digits("train", 1, frames=12)
