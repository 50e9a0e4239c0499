"""CWE: the description of a real vulnerability -> the weakness behind it."""

from __future__ import annotations

import re

# Entity expansion is no danger here: the file is read out of an archive that is pinned by its SHA-256.
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

from unimoer.assets import ASSETS, read_member
from unimoer.data.embedded.text import collapse, normalise, short_hash, split_of
from unimoer.types import Document, RetrievalDataset

_MEMBER = "cwe2/database_v49/cwec_v4.14.xml"
_MIN_WORDS = 6
_IDS_IN_BRACKETS = re.compile(r"\s*[(\[]\s*(?:CWE-\d+(?:\s*[,;/&]\s*|\s+and\s+)?)+\s*[)\]]")


@dataclass
class _Observed:
    """One observed example; the same text may stand under several weaknesses."""

    text: str
    reference: str
    weaknesses: dict[str, int] = field(default_factory=dict)


def build() -> RetrievalDataset:
    """Weaknesses as documents, observed examples as queries, split by the CVE that they describe."""
    root = ET.fromstring(read_member(ASSETS["cwe"], _MEMBER))
    space = {"c": root.tag[1:].split("}")[0]}
    corpus: dict[str, Document] = {}
    examples: dict[str, _Observed] = {}
    for weakness in root.iterfind("c:Weaknesses/c:Weakness", space):
        if weakness.get("Status") == "Deprecated":
            continue
        weakness_id = f"CWE-{weakness.attrib['ID']}"
        description = _text(weakness.find("c:Description", space))
        extended = _text(weakness.find("c:Extended_Description", space))
        corpus[weakness_id] = Document(f"{description} {extended}".strip(), weakness.attrib["Name"])
        for item in weakness.iterfind("c:Observed_Examples/c:Observed_Example", space):
            text = _without_ids(_text(item.find("c:Description", space)))
            if len(text.split()) < _MIN_WORDS:
                continue
            reference = _text(item.find("c:Reference", space))
            example = examples.setdefault(normalise(text), _Observed(text, reference))
            example.weaknesses[weakness_id] = 1

    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    for key, example in examples.items():
        split = split_of(example.reference, dev=0.1, test=0.2, salt="cwe")
        query_id = "cve" + short_hash(key, 10)
        queries[query_id] = example.text
        qrels[split][query_id] = example.weaknesses
    return RetrievalDataset("cwe", corpus, queries, qrels)


def _text(element: ET.Element | None) -> str:
    return "" if element is None else collapse(" ".join(element.itertext()))


def _without_ids(text: str) -> str:
    """CWE ids in an example name the answer."""
    return collapse(re.sub(r"\bCWE-\d+\b", "", _IDS_IN_BRACKETS.sub("", text)))
