"""Sources: what each spelling loads, and what a wrong one says. Hub data sets are stood in for by local ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from unimoer.data import check, judged, load_dataset
from unimoer.data.embedded import DOMAINS, load_embedded
from unimoer.data.negatives import judged_negatives
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset


def test_one_split_keeps_its_queries_and_the_whole_corpus(dataset: RetrievalDataset, folder: Path) -> None:
    loaded = load_dataset(folder, split="test")
    assert loaded.corpus == dataset.corpus
    assert loaded.queries == {"q3": dataset.queries["q3"]}
    assert loaded.qrels == {"test": dataset.qrels["test"]}
    with pytest.raises(UserError, match="has no split 'tset'; did you mean 'test'"):
        load_dataset(folder, split="tset")


def test_judged_leaves_out_queries_without_a_relevant_document(dataset: RetrievalDataset) -> None:
    qrels = {"test": {"q1": {"d1": 0}, "q2": {"d1": 0, "d2": 1}}}
    changed = RetrievalDataset("x", dataset.corpus, dataset.queries, qrels)
    assert judged(changed, "test") == {"q2": {"d1": 0, "d2": 1}}
    assert judged(changed, "train") == {}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "folder 'no/such/folder' does not exist"),
        ("atack", "folder 'atack' does not exist; did you mean 'attack'"),
        ("embeded:attack", "unknown kind of source 'embeded:'; did you mean 'embedded'"),
        ("embedded:hpoo", "unknown embedded data set 'hpoo'; did you mean 'hpo'"),
    ],
)
def test_a_wrong_source_says_what_was_meant(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(source)
    assert check(source).dataset is None
    assert message in check(source).problems[0]


def test_a_file_is_no_data_set(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file; a data set is a folder"):
        load_dataset(folder / "corpus.jsonl")


@pytest.mark.parametrize(("source", "package"), [("hf:x/y", "datasets"), ("ir:x", "ir_datasets")])
def test_a_missing_extra_is_named(source: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"need the package {package}: pip install 'unimoer\[hub\]'"):
        load_dataset(source)


def test_embedded_data_is_built_once(dataset: RetrievalDataset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build() -> RetrievalDataset:
        built.append(1)
        return dataset

    domain = SimpleNamespace(build=build, folder=cache / "datasets" / "fruit-1", notes="ripe")
    monkeypatch.setitem(DOMAINS, "fruit", domain)  # type: ignore[arg-type]
    first, second = load_dataset("embedded:fruit"), load_embedded("fruit")
    assert first == second == load_dataset("fruit")
    assert (first.name, first.notes, first.corpus) == ("fruit", "ripe", dataset.corpus)
    assert built == [1]


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()
    return datasets


def columns(records: list[dict[str, object]]) -> dict[str, list[object]]:
    return {key: [record[key] for record in records] for key in records[0]}


@pytest.mark.parametrize("qrels", ["qrels", "default"])
def test_saved_retrieval_data_set(hf: ModuleType, dataset: RetrievalDataset, tmp_path: Path, qrels: str) -> None:
    root = tmp_path / "fruit"
    documents = [{"_id": key, "title": d.title, "text": d.text} for key, d in dataset.corpus.items()]
    hf.Dataset.from_dict(columns(documents)).save_to_disk(root / "corpus")
    queries = [{"_id": key, "text": text} for key, text in dataset.queries.items()]
    hf.DatasetDict({"queries": hf.Dataset.from_dict(columns(queries))}).save_to_disk(root / "queries")
    judgements = {
        {"train": "validation"}.get(split, split): hf.Dataset.from_dict(
            columns(
                [
                    {"query-id": query, "corpus-id": document, "score": float(grade)}
                    for query, grades in split_qrels.items()
                    for document, grade in grades.items()
                ]
            )
        )
        for split, split_qrels in dataset.qrels.items()
    }
    hf.DatasetDict(judgements).save_to_disk(root / qrels)
    loaded = load_dataset(f"hf:{root}")
    assert loaded.corpus == dataset.corpus
    assert loaded.queries == dataset.queries
    assert loaded.qrels == {"dev": dataset.qrels["train"], "test": dataset.qrels["test"]}


def test_hub_layout_with_configurations(hf: ModuleType, dataset: RetrievalDataset, folder: Path) -> None:
    """The layout of a hub repository: configurations declared in the README over data files."""
    judgements = [
        {"query-id": query, "corpus-id": document, "score": grade}
        for query, grades in dataset.qrels["train"].items()
        for document, grade in grades.items()
    ]
    (folder / "judgements.jsonl").write_text("".join(json.dumps(record) + "\n" for record in judgements))
    files = {"corpus": ("corpus", "corpus"), "queries": ("queries", "queries"), "default": ("train", "judgements")}
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {file}.jsonl\n"
        for name, (split, file) in files.items()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    loaded = load_dataset(f"hf:{folder}")
    assert loaded.corpus == dataset.corpus
    assert loaded.queries == dataset.queries
    assert loaded.qrels == {"train": dataset.qrels["train"]}


def test_triplets_become_a_data_set_with_judged_negatives(hf: ModuleType, tmp_path: Path) -> None:
    rows = {
        "query": ["apple", "apple", "banana"],
        "positive": ["red", "sweet", "yellow"],
        "negative_1": ["blue", "red", "blue"],
        "negative_2": ["grey", "grey", "red"],
    }
    hf.Dataset.from_dict(rows).save_to_disk(tmp_path / "triplets")
    loaded = load_dataset(f"hf:{tmp_path / 'triplets'}")
    assert sorted(document.text for document in loaded.corpus.values()) == ["blue", "grey", "red", "sweet", "yellow"]
    text = {key: document.text for key, document in loaded.corpus.items()}
    grades = {
        loaded.queries[query]: {text[key]: g for key, g in x.items()} for query, x in loaded.qrels["train"].items()
    }
    assert grades == {
        "apple": {"red": 1, "sweet": 1, "blue": 0, "grey": 0},
        "banana": {"yellow": 1, "blue": 0, "red": 0},
    }
    assert sorted(map(len, judged_negatives(loaded, "train").values())) == [2, 2]
    assert load_dataset(f"hf:{tmp_path / 'triplets'}").fingerprint == loaded.fingerprint


def test_lists_of_negatives_pairs_and_bad_columns(hf: ModuleType, tmp_path: Path) -> None:
    hf.DatasetDict(
        {"train": hf.Dataset.from_dict({"query": ["q"], "positive": ["p"], "negatives": [["n1", "n2"]]})}
    ).save_to_disk(tmp_path / "lists")
    assert len(load_dataset(f"hf:{tmp_path / 'lists'}").corpus) == 3
    hf.Dataset.from_dict({"query": ["q"], "answer": ["p"]}).save_to_disk(tmp_path / "pairs")
    assert len(load_dataset(f"hf:{tmp_path / 'pairs'}").corpus) == 1
    hf.Dataset.from_dict({"query": ["q"], "score": [1]}).save_to_disk(tmp_path / "bad")
    with pytest.raises(UserError, match="has the columns query, score; 'query' and 'positive' are needed"):
        load_dataset(f"hf:{tmp_path / 'bad'}")
    hf.Dataset.from_dict({"query": ["q", "r"], "positive": ["p", None]}).save_to_disk(tmp_path / "null")
    with pytest.raises(UserError, match="null train:2: 'query', 'positive' and negatives must be texts"):
        load_dataset(f"hf:{tmp_path / 'null'}")


def test_saved_data_with_problems_names_the_row(hf: ModuleType, dataset: RetrievalDataset, tmp_path: Path) -> None:
    root = tmp_path / "fruit"
    hf.Dataset.from_dict({"_id": [1, 2], "text": ["one", "two"]}).save_to_disk(root / "corpus")
    hf.Dataset.from_dict({"_id": [7], "text": ["q"]}).save_to_disk(root / "queries")
    with pytest.raises(UserError, match="no judgements in qrels or default"):
        load_dataset(f"hf:{root}")
    judgements = {"query-id": [7, 7, 7], "corpus-id": [1, 3, 2], "score": [1.0, 1.0, 0.5]}
    hf.Dataset.from_dict(judgements).save_to_disk(root / "qrels")
    checked = check(f"hf:{root}")
    assert checked.dataset is not None
    assert checked.dataset.corpus == {"1": Document("one"), "2": Document("two")}
    assert checked.dataset.qrels == {"train": {"7": {"1": 1}}}
    where = f"{root} train judgements"
    assert checked.problems == [f"{where}:3: the grade must be a whole number, found 0.5"]
    assert checked.dataset.warnings == (f"{where}:2: document '3' is judged but is not in the corpus (left out)",)
    dangling = f"{where}:2: document '3' is judged but is not in the corpus"
    assert check(f"hf:{root}", strict=True).problems == [dangling, *checked.problems]


def test_a_folder_that_the_library_cannot_read_is_one_line(hf: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^hf:.*empty could not be loaded: \w+: [^\n]*$"):
        load_dataset(f"hf:{tmp_path / 'empty'}")


@pytest.fixture
def ir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """ir_datasets with `toy/train` and `toy/dev`, made from local files."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "ir"))
    ir_datasets = pytest.importorskip("ir_datasets")
    files = {
        "docs_tsv": "d1\tred apple\nd2\tyellow banana\n",
        "queries_tsv": "q1\tapple\n",
        "qrels_trec": "q1 0 d1 1\nq1 0 d2 0\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    toy = ir_datasets.create_dataset(**{name: str(tmp_path / name) for name in files})
    known = {**ir_datasets.registry._registered, "toy/train": toy, "toy/dev": toy}
    monkeypatch.setattr(ir_datasets.registry, "_registered", known)
    return ir_datasets


def test_ir_datasets(ir: ModuleType) -> None:
    loaded = load_dataset("ir:toy/train")
    assert loaded.corpus == {"d1": Document("red apple"), "d2": Document("yellow banana")}
    assert loaded.queries == {"q1": "apple"}
    assert loaded.qrels == {"train": {"q1": {"d1": 1, "d2": 0}}}
    with pytest.raises(UserError, match=r"^ir:toy/nothing could not be loaded: KeyError"):
        load_dataset("ir:toy/nothing")


def test_several_parts_of_one_ir_corpus_are_splits(ir: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="do not share one corpus"):
        load_dataset("ir:toy/train,toy/dev")
    monkeypatch.setattr(ir, "docs_parent_id", lambda key: "toy")
    assert list(load_dataset("ir:toy/train,toy/dev").qrels) == ["train", "dev"]
