"""Text cleaning and deterministic splits that the embedded domains share."""

from __future__ import annotations

import hashlib
import html
import re


def hash_fraction(key: str, salt: str = "v1") -> float:
    """A number in [0, 1) that depends on nothing but the strings: the same on every machine and Python."""
    return int(hashlib.sha1(f"{salt}|{key}".encode()).hexdigest()[:12], 16) / 16**12


def split_of(key: str, *, dev: float, test: float, salt: str) -> str:
    """`train`, `dev` or `test` by the hash of what must not be in two splits (a file, a term, an author)."""
    fraction = hash_fraction(key, salt)
    if fraction < test:
        return "test"
    return "dev" if fraction < test + dev else "train"


def short_hash(text: str, length: int) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:length]


def clean(text: str) -> str:
    """Without HTML tags and entities, white space collapsed."""
    text = re.sub(r"</?(?:code|b|i)>", "", text)
    text = re.sub(r"<[^>\n]{1,200}>", " ", text)
    return collapse(html.unescape(text))


def collapse(text: str) -> str:
    """Runs of white space become one space."""
    return re.sub(r"\s+", " ", text).strip()


def normalise(text: str) -> str:
    """Lower-case ASCII words and numbers: what makes two texts the same query."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
