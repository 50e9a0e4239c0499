"""Natural Questions, TriviaQA and HotpotQA as their publishers lay them out, saved to disk; ir_datasets from files."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unimoer.config import QuestionsConfig
from unimoer.errors import UserError
from unimoer.rag.asked import read_asked, write_asked
from unimoer.rag.hub import NO_ANSWER
from unimoer.schema import RagQuestion


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Passages, where a source brings none."""
    path = tmp_path / "passages.jsonl"
    path.write_text(json.dumps({"id": "p1", "text": "The red kettle stands in the corner."}) + "\n")
    return str(path)


def asked(tmp_path: Path, **config: Any) -> tuple[list[RagQuestion], dict[str, str], dict[str, int]]:
    folder = tmp_path / "asked"
    folder.mkdir(exist_ok=True)
    found = write_asked("set", QuestionsConfig.model_validate(config), 0, folder)
    questions, passages = read_asked(folder, "set")
    return questions, dict(passages), found.left_out


def nq_open(hf: ModuleType, folder: Path) -> str:
    features = hf.Features({"question": hf.Value("string"), "answer": hf.List(hf.Value("string"))})
    rows = {"question": ["where is the kettle", "who won"], "answer": [["the corner", "corner"], ["Ann"]]}
    table = hf.Dataset.from_dict(rows, features=features)
    hf.DatasetDict({"train": table.select([1]), "validation": table}).save_to_disk(folder)
    return f"hf:{folder}"


def test_natural_questions(hf: ModuleType, tmp_path: Path, texts: str) -> None:
    questions, passages, _ = asked(tmp_path, source=nq_open(hf, tmp_path / "nq"), passages=texts)
    assert [(one.question, one.answers) for one in questions] == [
        ("where is the kettle", ["the corner", "corner"]),
        ("who won", ["Ann"]),
    ]
    assert passages == {"p1": "The red kettle stands in the corner."}
    # An id that does not depend on the order of rows.
    [same], _, _ = asked(tmp_path, source=f"hf:{tmp_path / 'nq'}", split="train", passages=texts)
    assert same == questions[1] and same.id.startswith("q")
    with pytest.raises(UserError, match="has no split 'test'; choose from train, validation"):
        asked(tmp_path, source=f"hf:{tmp_path / 'nq'}", split="test", passages=texts)
    with pytest.raises(UserError, match="brings no passages; name them as `passages`"):
        asked(tmp_path, source=f"hf:{tmp_path / 'nq'}")


def trivia(hf: ModuleType, folder: Path, *answers: dict[str, Any]) -> str:
    text, many = hf.Value("string"), hf.List(hf.Value("string"))
    answer = {"aliases": many, "normalized_aliases": many} | dict.fromkeys(
        ("matched_wiki_entity_name", "normalized_matched_wiki_entity_name", "normalized_value", "type", "value"), text
    )
    page = {"doc_source": many, "filename": many, "title": many, "wiki_context": many}
    features = hf.Features(
        {"question": text, "question_id": text, "question_source": text, "entity_pages": page, "answer": answer}
    )
    rows = [
        {
            "question": f"Who is number {number}?",
            "question_id": f"tc_{number}",
            "question_source": "http://www.triviacountry.com/",
            "entity_pages": {name: [] for name in page},
            "answer": {name: found.get(name, [] if name.endswith("aliases") else "") for name in answer},
        }
        for number, found in enumerate(answers)
    ]
    hf.DatasetDict({"validation": hf.Dataset.from_list(rows, features=features)}).save_to_disk(folder)
    return f"hf:{folder}"


def test_triviaqa(hf: ModuleType, tmp_path: Path, texts: str) -> None:
    known = {"value": "Ann", "aliases": ["Ann", "Anna"], "normalized_aliases": ["ann", "anna"]}
    hidden = {"value": "<unk>", "aliases": []}
    source = trivia(hf, tmp_path / "trivia", known, hidden)
    [one], _, left_out = asked(tmp_path, source=source, passages=texts)
    assert (one.id, one.question, one.answers) == ("tc_0", "Who is number 0?", ["Ann", "Anna"])
    assert left_out == {NO_ANSWER: 1}
    only_hidden = trivia(hf, tmp_path / "hidden", hidden)
    with pytest.raises(UserError, match=r"validation: no question has an answer; hidden test splits have none"):
        asked(tmp_path, source=only_hidden, passages=texts)


def test_hotpotqa_brings_its_passages(hf: ModuleType, tmp_path: Path, texts: str) -> None:
    text, many = hf.Value("string"), hf.List(hf.Value("string"))
    features = hf.Features(
        dict.fromkeys(("id", "question", "answer", "type", "level"), text)
        | {"supporting_facts": {"title": many, "sent_id": hf.List(hf.Value("int32"))}}
        | {"context": {"title": many, "sentences": hf.List(many)}}
    )
    shared = ("Kettle", ["It is red.", " It is old."])
    contexts = [[shared, ("Pan", ["It is flat."])], [shared, ("Oven", ["It is hot."])]]
    rows = [
        {
            "id": f"5a{number}",
            "question": question,
            "answer": answer,
            "type": "bridge",
            "level": "hard",
            "supporting_facts": {"title": ["Kettle", "Kettle"], "sent_id": [0, 1]},
            "context": {"title": [title for title, _ in own], "sentences": [lines for _, lines in own]},
        }
        for number, (question, answer, own) in enumerate(
            zip(["Which colour?", "Is it old?"], ["red", "yes"], contexts, strict=True)
        )
    ]
    hf.DatasetDict({"validation": hf.Dataset.from_list(rows, features=features)}).save_to_disk(tmp_path / "hotpot")
    questions, passages, _ = asked(tmp_path, source=f"hf:{tmp_path / 'hotpot'}")
    assert [(one.id, one.answers) for one in questions] == [("5a0", ["red"]), ("5a1", ["yes"])]
    # A paragraph that two questions bring is one passage.
    assert sorted(passages.values()) == ["Kettle\nIt is red. It is old.", "Oven\nIt is hot.", "Pan\nIt is flat."]
    assert all([passages[key].split("\n")[0] for key in one.passages] == ["Kettle"] for one in questions)
    # Only those of the questions that are asked.
    [one], own, _ = asked(tmp_path, source=f"hf:{tmp_path / 'hotpot'}", sample=1)
    assert len(own) == 2 and one.passages[0] in own
    # Of other passages nobody says which answer.
    questions, own, _ = asked(tmp_path, source=f"hf:{tmp_path / 'hotpot'}", passages=texts)
    assert own.keys() == {"p1"} and all(one.passages == [] for one in questions)


def test_other_columns_are_named(hf: ModuleType, tmp_path: Path, texts: str) -> None:
    hf.Dataset.from_dict({"query": ["q"], "answer": ["a"]}).save_to_disk(tmp_path / "bad")
    with pytest.raises(UserError, match="has the columns query, answer; 'question' and 'answer' are needed"):
        asked(tmp_path, source=f"hf:{tmp_path / 'bad'}", passages=texts)
    hf.Dataset.from_dict({"question": ["q"], "answer": [{"text": "a"}]}).save_to_disk(tmp_path / "odd")
    with pytest.raises(UserError, match="validation:1: 'answer' is neither a text, nor texts"):
        asked(tmp_path, source=f"hf:{tmp_path / 'odd'}", passages=texts)
    with pytest.raises(UserError, match=r"^hf:.*nowhere could not be loaded: \w+: [^\n]*$"):
        asked(tmp_path, source=f"hf:{tmp_path / 'nowhere'}", passages=texts)


@pytest.fixture
def ir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """ir_datasets with `toy`, made from local files."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "ir"))
    ir_datasets = pytest.importorskip("ir_datasets")
    files = {
        "docs_tsv": "d1\tred kettle in the corner\nd2\tyellow banana\n",
        "queries_tsv": "q1\tWhere is the Kettle?\nq2\twho knows\n",
        "qrels_trec": "q1 0 d1 1\nq1 0 d2 0\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    toy = ir_datasets.create_dataset(**{name: str(tmp_path / name) for name in files})
    monkeypatch.setattr(ir_datasets.registry, "_registered", {**ir_datasets.registry._registered, "toy": toy})
    return ir_datasets


def test_ir_datasets_with_the_answers_of_another_source(hf: ModuleType, ir: ModuleType, tmp_path: Path) -> None:
    questions, passages, left_out = asked(tmp_path, source="ir:toy", answers=nq_open(hf, tmp_path / "nq"))
    # The same question in another spelling; the other one is left out.
    assert [(one.id, one.question, one.answers, one.passages) for one in questions] == [
        ("q1", "Where is the Kettle?", ["the corner", "corner"], ["d1"])
    ]
    assert passages == {"d1": "red kettle in the corner", "d2": "yellow banana"} and left_out == {NO_ANSWER: 1}
    with pytest.raises(UserError, match="has no split 'dev'"):
        asked(tmp_path, source="ir:toy", answers=f"hf:{tmp_path / 'nq'}", split="dev")
    with pytest.raises(UserError, match="ir:toy: no query has an answer; name an `hf:` source"):
        asked(tmp_path, source="ir:toy")
    with pytest.raises(UserError, match=r"^ir:nothing could not be loaded: KeyError"):
        asked(tmp_path, source="ir:nothing")


def test_ir_datasets_with_answers_of_their_own(ir: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `dpr-w100` has them, by its own reader of queries."""
    (tmp_path / "queries").write_text("q1\twhere is it\tcorner\tthe corner\n")
    queries = ir.datasets.dpr_w100.DprW100Queries(ir.util.LocalDownload(str(tmp_path / "queries")))
    parts = {"docs": str(tmp_path / "docs_tsv"), "qrels": str(tmp_path / "qrels_trec")}
    rest = ir.create_dataset(docs_tsv=parts["docs"], qrels_trec=parts["qrels"])
    dpr = ir.Dataset(queries, *rest._constituents)
    monkeypatch.setattr(ir.registry, "_registered", {**ir.registry._registered, "dpr": dpr})
    [one], _, _ = asked(tmp_path, source="ir:dpr")
    assert (one.question, one.answers, one.passages) == ("where is it", ["corner", "the corner"], ["d1"])
