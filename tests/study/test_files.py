"""A file is the old one or the new one, whole, whoever writes it and whatever goes wrong."""

import pytest

from study.files import clear, digest, write, write_text


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a", "old")

    def half(path):
        path.write_text("ne")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write(tmp_path / "a", half)
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_two_who_write_at_once_do_not_disturb_each_other(tmp_path):
    """As two threads, or two containers whose processes have the same number, would."""

    def slow(path):
        path.write_text("first, ")
        write_text(tmp_path / "a", "second")
        assert (tmp_path / "a").read_text() == "second"
        with path.open("a") as file:
            file.write("whole")

    write(tmp_path / "a", slow)
    assert (tmp_path / "a").read_text() == "first, whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_killed_writers_left_is_cleared_and_nothing_else(tmp_path):
    write_text(tmp_path / "a", "whole")
    write_text(tmp_path / "b" / ".b.12345678", "of another folder")

    def killed(path):
        path.write_text("half")
        path.rename(path.with_name(".a.12345678"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", killed)
    (tmp_path / ".a.1" / "folder").mkdir(parents=True)
    clear(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    clear(tmp_path / "nowhere" / "a")


def test_a_digest_is_of_all_but_itself():
    value = {"a": 1.5, "b": [1, 2]}
    sealed = value | {"digest": digest(value, b"more")}
    assert digest(sealed, b"more") == sealed["digest"]
    assert digest(sealed | {"a": 1.25}, b"more") != sealed["digest"] != digest(sealed, b"mode")
