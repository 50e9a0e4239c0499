"""Files are whole or not there; errors of the disk are one line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from unimoer.errors import UserError
from unimoer.files import new_array, new_folder, read_json, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    write_text(path, "ä old")
    write_text(path, "ä new\n")
    assert path.read_text(encoding="utf-8") == "ä new\n"
    assert names(path.parent) == ["file.txt"]


def test_a_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_json_is_sorted_and_refuses_what_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    assert path.read_text() == '{\n  "a": [\n    1.5,\n    null\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert read_json(path) == {"b": 1, "a": [1.5, None]}
    assert names(tmp_path) == ["file.json"]


def test_a_missing_or_broken_json_file_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        read_json(tmp_path / "nowhere.json")
    (tmp_path / "file.json").write_text('{\n"a": 1,\n"b" 2}')
    with pytest.raises(UserError, match=r"file\.json:3: broken JSON"):
        read_json(tmp_path / "file.json")
    (tmp_path / "file.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"file\.json"):
        read_json(tmp_path / "file.json")


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: write_json(path, 1)])
def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path, write: object) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"taken.*cannot be written"):
        write(tmp_path / "taken" / "file.txt")  # type: ignore[operator]


def test_a_new_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "target") as temporary:
        (temporary / "file").write_text("x")
        assert not (tmp_path / "deep" / "target").exists()
    assert names(tmp_path / "deep") == ["file", "target"]


def test_a_new_folder_replaces_an_old_one_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "target") as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["new", "target"]


def test_a_failing_block_leaves_the_old_folder_and_no_trace(tmp_path: Path) -> None:
    with new_folder(tmp_path / "target") as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "target") as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["old", "target"]


def test_a_disk_error_inside_the_block_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="target: cannot be written: No space left"), new_folder(tmp_path / "target"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"taken.*cannot be written"), new_folder(tmp_path / "taken" / "target"):
        pass


def test_readers_of_a_new_folder_can_read_it(tmp_path: Path) -> None:
    """A temporary folder is private to its owner; what others look at afterwards must not be."""
    with new_folder(tmp_path / "target") as temporary:
        (temporary / "file").write_text(json.dumps(1))
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "target").stat().st_mode == plain.stat().st_mode


def test_a_new_array_has_its_space_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = new_array(tmp_path / "small.npy", (1000, 300), "float16")
    array[7] = 1.5
    array.flush()
    assert np.load(tmp_path / "small.npy")[7, 299] == 1.5
    state = (tmp_path / "small.npy").stat()
    # A sparse file would have almost none of its blocks.
    assert 512 * state.st_blocks >= state.st_size > 600_000
    assert new_array(tmp_path / "empty.npy", (0,), "int32").size == 0
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(UserError, match=r"huge\.npy: 1\.0 GB do not fit"):
        new_array(tmp_path / "huge.npy", (250, 1_000_001), "float32")
    assert names(tmp_path) == ["empty.npy", "small.npy"]
