"""The parsers on hand-made sources, and the real data against its published counts and BM25 reference."""

from __future__ import annotations

import ast

import pytest

from unimoer.assets import ASSETS
from unimoer.data import judged, load_dataset
from unimoer.data.bm25 import BM25
from unimoer.data.embedded import DOMAINS, attack, code, cwe, hpo
from unimoer.data.embedded.text import clean, hash_fraction, normalise, split_of
from unimoer.evaluation.metrics import evaluate_run, mean


def test_hashes_and_splits_never_change() -> None:
    assert hash_fraction("key", "salt") == pytest.approx(0.8035859672145449, abs=1e-15)
    names = [split_of(str(number), dev=0.1, test=0.2, salt="x") for number in range(2000)]
    assert [names.count(split) / 2000 for split in ("train", "dev", "test")] == pytest.approx([0.7, 0.1, 0.2], abs=0.03)


def test_text_helpers() -> None:
    assert clean("<code>rm</code> a &amp;\n <a href='x'>b</a>  c < d") == "rm a & b c < d"
    assert normalise("Über-Wert: 3 CATS!") == "ber wert 3 cats"


def test_attack_text_does_not_name_its_technique() -> None:
    text = "[APT1](https://attack.example/G1) used `net view`.(Citation: Report [1]) <br>More"
    assert attack._plain(text) == "APT1 used net view. More"
    assert attack._plain(None) == ""


@pytest.mark.parametrize("ids", ["(CWE-79)", "[CWE-79, CWE-80]", "(CWE-1 and CWE-2)", "CWE-79"])
def test_cwe_ids_are_removed(ids: str) -> None:
    assert cwe._without_ids(f"Script runs {ids} in the page").split() == ["Script", "runs", "in", "the", "page"]


def test_hpo_terms_without_definition_or_in_disuse_are_skipped() -> None:
    source = "\n[Term]\n".join(
        [
            "data-version: x",
            'id: HP:1\nname: Tall stature\ndef: "More \\"height\\"." []\n'
            'synonym: "Increased body height" EXACT layperson []\nsynonym: "TS" EXACT abbreviation []\n'
            'synonym: "Big" RELATED []\n',
            "id: HP:2\nname: No definition\n",
            'id: HP:3\nname: Old\ndef: "Old." []\nis_obsolete: true\n\n[Typedef]\nid: part_of\n',
        ]
    )
    [(term, document, synonyms)] = hpo._terms(source)
    assert (term, document.title, document.text) == ("HP:1", "Tall stature", 'More "height".')
    assert synonyms == ["Increased body height"]


@pytest.mark.parametrize(
    ("synonym", "useful"),
    [("Increased body height", True), ("Tall", False), ("stature tall", False), ("Very tall stature", False)],
)
def test_hpo_synonyms_that_repeat_the_name_are_dropped(synonym: str, useful: bool) -> None:
    assert hpo._says_more(synonym, "Tall stature") is useful


SOURCE = '''
class Reader:
    @property
    def lines(self):
        """Return every line of the file, `stripped`. And more.

        Details.
        """
        for line in self.file:

            yield line.strip()
        self.close()

    def __len__(self):
        """Return how many lines there are here."""
        a = 1
        b = 2
        return a + b

def read_the_file():
    """Read the file."""
    a = 1
    b = 2
    return a + b

def short():
    """Return a number that is always the same."""
    return 1
'''


def test_code_functions_lose_their_docstring_and_ask_its_first_sentence() -> None:
    [function] = code._functions("pkg", "io.py", SOURCE)
    assert function.key == "pkg:io.py:Reader.lines"
    assert function.summary == "Return every line of the file, stripped."
    assert function.source.splitlines() == [
        "@property",
        "def lines(self):",
        "    for line in self.file:",
        "        yield line.strip()",
        "    self.close()",
    ]
    ast.parse(function.source)
    assert list(code._functions("pkg", "broken.py", "def :")) == []


def test_domains_name_their_licence_and_what_was_seen_in_training() -> None:
    assert {name: domain.seen_in_training for name, domain in DOMAINS.items()} == {
        "attack": True,
        "cwe": True,
        "hpo": False,
        "code": False,
    }
    for domain in DOMAINS.values():
        for name in domain.assets:
            assert ASSETS[name].licence in domain.licence
            assert ASSETS[name].attribution in domain.attribution
    assert "test documents not seen in training" in DOMAINS["hpo"].notes


@pytest.mark.assets
@pytest.mark.parametrize("name", DOMAINS)
def test_real_data_has_the_published_counts(name: str) -> None:
    domain = DOMAINS[name]
    dataset = load_dataset(f"embedded:{name}")
    assert len(dataset.corpus) == domain.documents
    assert {split: len(judged(dataset, split)) for split in dataset.qrels} == domain.queries
    seen = {document for grades in dataset.split("train").values() for document in grades}
    tested = {document for grades in dataset.split("test").values() for document in grades}
    assert bool(seen & tested) is domain.seen_in_training
    train = {normalise(dataset.queries[query]) for query in dataset.split("train")}
    assert not train & {normalise(dataset.queries[query]) for query in dataset.split("test")}


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("name", DOMAINS)
def test_building_again_gives_the_cached_data(name: str) -> None:
    assert DOMAINS[name].build().fingerprint == load_dataset(f"embedded:{name}").fingerprint


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "split_identifiers", "expected"),
    [("attack", False, 0.50), ("cwe", False, 0.39), ("hpo", False, 0.49), ("code", False, 0.36), ("code", True, 0.55)],
)
def test_bm25_reference(name: str, split_identifiers: bool, expected: float) -> None:
    dataset = load_dataset(f"embedded:{name}")
    qrels = judged(dataset, "test")
    index = BM25.of(dataset, split_identifiers=split_identifiers)
    run = index.search({query: dataset.queries[query] for query in qrels}, 10)
    assert mean(evaluate_run(qrels, run))["ndcg@10"] == pytest.approx(expected, abs=0.006)
