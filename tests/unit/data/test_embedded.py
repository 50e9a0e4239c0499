"""The parsers on hand-made sources, and the real data against its published counts and BM25 reference."""

from __future__ import annotations

import ast
import json

import pytest

from unimoer.assets import ASSETS
from unimoer.data import judged, load_dataset
from unimoer.data.bm25 import BM25
from unimoer.data.embedded import DOMAINS, attack, code, cwe, hpo
from unimoer.data.embedded.text import clean, hash_fraction, normalise, split_of
from unimoer.data.negatives import mine
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


def stix(kind: str, number: int, **fields: object) -> dict[str, object]:
    references = [{"source_name": "mitre-attack", "external_id": f"T{number}"}]
    return {
        "type": kind,
        "id": f"{kind}--{number:012d}",
        "external_references": references,
        "description": "x",
        **fields,
    }


def relation(kind: str, number: int, source: str, target: str) -> dict[str, object]:
    text = f"The group does thing number {number} to many people."
    fields = {"relationship_type": kind, "source_ref": source, "target_ref": target, "description": text}
    return stix("relationship", number, **fields)


def test_attack_twins_are_one_document_and_a_technique_and_its_parts_one_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrices = {}
    for start, matrix in ((100, "enterprise"), (200, "mobile"), (300, "ics")):
        parent, part, alone = (f"attack-pattern--{start + number:012d}" for number in range(3))
        group = f"intrusion-set--{start:012d}"
        matrices[matrix] = [
            stix("attack-pattern", start, name="Phishing", description=matrix),
            stix("attack-pattern", start + 1, name="Link" if matrix != "ics" else "By Phone"),
            stix("attack-pattern", start + 2, name=f"Only {matrix}"),
            stix("intrusion-set", start, name="Group"),
            relation("subtechnique-of", start + 3, part, parent),
            relation("uses", start + 4, group, parent),
            relation("uses", start + 5, group, part),
            relation("uses", 6, group, alone),
        ]
    monkeypatch.setattr(
        attack, "read_member", lambda asset, name: json.dumps({"objects": matrices[name.split("/")[-1].split("-")[0]]})
    )
    dataset = attack.build()
    titles = {key: document.title for key, document in dataset.corpus.items()}
    assert titles == {
        "T100": "Phishing",
        "T101": "Phishing: Link",
        "T102": "Only enterprise",
        "T202": "Only mobile",
        "T301": "Phishing: By Phone",
        "T302": "Only ics",
    }
    assert dataset.corpus["T100"].text == "enterprise"
    assert {key for key, family in dataset.families.items() if family == dataset.families["T100"]} == {
        "T100",
        "T101",
        "T301",
    }
    assert len(set(dataset.families.values())) == 4
    relevant = [set(grades) for split in dataset.qrels.values() for grades in split.values()]
    assert sorted(map(sorted, relevant)) == [
        *[["T100"]] * 3,
        *[["T101"]] * 2,
        ["T102", "T202", "T302"],
        ["T301"],
    ]


@pytest.mark.assets
def test_attack_has_no_twins_and_no_relative_of_a_positive_is_mined() -> None:
    dataset = load_dataset("embedded:attack")
    titles = [normalise(document.title) for document in dataset.corpus.values()]
    assert len(set(titles)) == len(titles)
    assert dataset.families.keys() == dataset.corpus.keys()
    train = judged(dataset, "train")
    for query, negatives in mine(dataset, "train", scorer=BM25.of(dataset)).items():
        assert not dataset.families_of(negatives) & dataset.families_of(k for k, g in train[query].items() if g > 0)


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
    assert all(f"labels: {domain.labels}; " in domain.notes for domain in DOMAINS.values())
    assert "parents and siblings are unjudged" in DOMAINS["attack"].notes


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
    [("attack", False, 0.51), ("cwe", False, 0.39), ("hpo", False, 0.49), ("code", False, 0.36), ("code", True, 0.55)],
)
def test_bm25_reference(name: str, split_identifiers: bool, expected: float) -> None:
    dataset = load_dataset(f"embedded:{name}")
    qrels = judged(dataset, "test")
    index = BM25.of(dataset, split_identifiers=split_identifiers)
    run = index.search({query: dataset.queries[query] for query in qrels}, 10)
    assert mean(evaluate_run(qrels, run))["ndcg@10"] == pytest.approx(expected, abs=0.006)
