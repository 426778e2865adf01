"""Artifacts are whole or absent."""

import pytest

from eenet_jax.artifacts import read_json, replacing, replacing_folder, write_json, write_text
from eenet_jax.errors import InputError


def test_a_written_file_is_whole_and_alone(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, 2.5]})
    assert read_json(tmp_path / "new" / "a.json") == {"b": [1, 2.5]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as aside:
        aside.write_text(f"half{1 / 0}")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_or_left(tmp_path):
    folder = tmp_path / "folder"
    with replacing_folder(folder) as aside:
        (aside / "one").write_text("1")
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as aside:
        (aside / "two").write_text(f"2{1 / 0}")
    assert [path.name for path in folder.iterdir()] == ["one"]
    with replacing_folder(folder) as aside:
        (aside / "three").write_text("3")
    assert [path.name for path in folder.iterdir()] == ["three"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_nan_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_unreadable_json_is_one_line(tmp_path):
    with pytest.raises(InputError, match="check the path"):
        read_json(tmp_path / "none.json", "table")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="not a readable table"):
        read_json(tmp_path / "bad.json", "table")
