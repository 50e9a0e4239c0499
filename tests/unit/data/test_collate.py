"""Padding and the layout of batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tiny
from unimoer.config import PromptConfig
from unimoer.data.collate import Collator, pad
from unimoer.data.prompts import Prompter
from unimoer.data.sampling import Sample
from unimoer.types import Document, Example, FeedbackBatch, ListBatch, RetrievalDataset

CORPUS = {f"d{number}": Document(f"text {'long ' * number}", "title" if number % 2 else "") for number in range(8)}
DATASET = RetrievalDataset("toy", CORPUS, {}, {})


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return Prompter(tiny.tokenizer(), PromptConfig())


def collator(prompter: Prompter, padding: str = "right", multiple: int = 16, head: str = "linear") -> Collator:
    return Collator(
        prompter,
        {"toy": DATASET},
        instructions={"toy": "Find it"},
        padding=padding,  # type: ignore[arg-type]
        multiple=multiple,
        head=head,
    )


def sample(query: str, positives: tuple[str, ...], *negatives: str) -> Sample:
    return Sample(Example("toy", query, f"where is {query}", positives, ()), positives[0], negatives)


SAMPLES = [
    sample("q0", ("d0", "d2"), "d5", "d6"),
    sample("q1", ("d1",), "d0", "d7"),
    sample("q2", ("d2",), "d6", "d5"),
]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(("multiple", "length"), [(1, 5), (4, 8), (16, 16)])
def test_pad(padding: str, multiple: int, length: int) -> None:
    batch = pad([[7, 8], [9], [1, 2, 3, 4, 5]], pad_id=0, padding=padding, multiple=multiple)  # type: ignore[arg-type]
    assert batch.input_ids.shape == (3, length)
    for row, ids in enumerate(([7, 8], [9], [1, 2, 3, 4, 5])):
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row][real].tolist() == ids
        assert batch.position_ids[row][real].tolist() == list(range(len(ids)))
        assert not batch.input_ids[row][~real].any()
        edge = slice(length - len(ids), None) if padding == "left" else slice(0, len(ids))
        assert real[edge].all()
    assert batch.num_tokens == 8
    assert (batch.position_ids >= 0).all()


def test_pad_of_empty_texts() -> None:
    batch = pad([[], [5]], pad_id=3, multiple=4)
    assert batch.attention_mask.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    assert batch.input_ids.tolist() == [[3, 3, 3, 3], [5, 3, 3, 3]]


def test_an_embedding_batch_holds_positives_first_then_negatives_by_query(prompter: Prompter) -> None:
    batch = collator(prompter).embedding("toy", SAMPLES)
    order = ["d0", "d1", "d2", "d5", "d6", "d0", "d7", "d6", "d5"]
    expected = prompter.documents([CORPUS[key].content for key in order], "Find it")
    for row, ids in enumerate(expected):
        assert batch.documents.input_ids[row][batch.documents.attention_mask[row].bool()].tolist() == ids
    queries = prompter.queries(["where is q0", "where is q1", "where is q2"], "Find it")
    assert [
        row[mask.bool()].tolist()
        for row, mask in zip(batch.queries.input_ids, batch.queries.attention_mask, strict=True)
    ] == queries
    assert batch.domain == "toy"
    assert batch.queries.input_ids.shape[1] % 16 == batch.documents.input_ids.shape[1] % 16 == 0


def test_relevance_is_known_by_document_wherever_it_stands(prompter: Prompter) -> None:
    """d2 is relevant to q0 and the positive of q2; d0 is the positive of q0 and a negative of q1."""
    relevant = collator(prompter).embedding("toy", SAMPLES).relevant
    assert relevant.dtype == torch.bool
    assert relevant.int().tolist() == [
        [1, 0, 1, 0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 0],
    ]


def test_an_embedding_batch_without_negatives(prompter: Prompter) -> None:
    batch = collator(prompter).embedding("toy", [sample("q0", ("d0",)), sample("q1", ("d1",))])
    assert batch.documents.input_ids.shape[0] == 2
    assert batch.relevant.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_reranking_batch_holds_one_group_after_the_other(prompter: Prompter, padding: str) -> None:
    batch = collator(prompter, padding).reranking("toy", SAMPLES)
    assert batch.labels.tolist() == [[1, 0, 0]] * 3
    texts = [("q0", "d0"), ("q0", "d5"), ("q0", "d6"), ("q1", "d1"), ("q1", "d0"), ("q1", "d7")]
    texts += [("q2", "d2"), ("q2", "d6"), ("q2", "d5")]
    expected = prompter.pairs([f"where is {q}" for q, _ in texts], [CORPUS[d].content for _, d in texts], "Find it")
    for row, ids in enumerate(expected):
        assert batch.pairs.input_ids[row][batch.pairs.attention_mask[row].bool()].tolist() == ids


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_list_has_its_marks_where_its_tokens_are(prompter: Prompter, padding: str) -> None:
    batch = collator(prompter, padding, head="listwise").reranking("toy", SAMPLES)
    assert isinstance(batch, ListBatch)
    assert batch.marks.shape == (3, 5)
    pad_id = prompter.tokenizer.pad_token_id
    for row, places in enumerate(batch.marks):
        marked = batch.prompts.attention_mask[row].bool() & (batch.prompts.input_ids[row] == pad_id)
        assert marked.nonzero().squeeze(1).tolist() == places.tolist()
    assert batch.texts == (batch.prompts,)


def test_the_positive_is_where_its_label_is_and_not_always_first(prompter: Prompter) -> None:
    many = [sample(f"q{number}", ("d1",), "d0", "d3", "d7") for number in range(60)]
    batch = collator(prompter, head="cosine").reranking("toy", many)
    assert isinstance(batch, FeedbackBatch)
    assert batch.labels.sum(1).tolist() == [1.0] * 60
    counts = batch.labels.sum(0)
    # Fifteen expected at each of four places; nine is 1.8 standard deviations less.
    assert counts.min() >= 6
    [wanted] = prompter.documents([CORPUS["d1"].content], "Find it")
    for row in batch.labels.flatten().nonzero().squeeze(1).tolist():
        real = batch.documents.attention_mask[row].bool()
        assert batch.documents.input_ids[row][real].tolist() == wanted
    again = collator(prompter, head="cosine").reranking("toy", many)
    assert torch.equal(again.labels, batch.labels)
    assert batch.texts == (batch.prompts, batch.documents)


def test_relatives_of_a_positive_are_no_negatives_in_the_batch(prompter: Prompter) -> None:
    """d0, d1 and d7 are one family: what is relevant to q0 and what to q1 are not told apart by a judgement."""
    made = collator(prompter)
    made.datasets = {"toy": replace(DATASET, families={"d0": "x", "d1": "x", "d7": "x", "d5": "y"})}
    assert made.embedding("toy", SAMPLES).relevant.int().tolist() == [
        [1, 1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 0],
    ]


def test_a_relative_that_is_judged_not_relevant_stays_a_negative(prompter: Prompter) -> None:
    """Mining leaves relatives out, so one among an example's negatives was judged by the data set."""
    made = collator(prompter)
    made.datasets = {"toy": replace(DATASET, families=dict.fromkeys(("d0", "d1", "d5"), "x"))}
    judged = Sample(Example("toy", "q0", "where", ("d0",), ("d5",)), "d0", ("d5",))
    other = sample("q1", ("d1",), "d7")
    assert made.embedding("toy", [judged, other]).relevant.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
