"""Questions with answers out of Hugging Face data sets and ir_datasets, by the columns and fields that they have.

nq_open      question, answer: a list of texts                       Kwiatkowski et al., TACL 2019; Lee et al., ACL 2019
trivia_qa    question, question_id, answer: value and aliases        Joshi et al., ACL 2017
hotpot_qa    id, question, answer: a text; context: titles and the sentences of each; supporting_facts: the titles
             that answer                                             Yang et al., EMNLP 2018
dpr-w100     of ir_datasets: queries with answers                    Karpukhin et al., EMNLP 2020
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from unimoer.data.embedded.text import normalise, short_hash
from unimoer.data.hub import errors_of, read_rows, require
from unimoer.errors import UserError
from unimoer.schema import RagQuestion

NO_ANSWER = "the source has no answer to it"
_IDS = ("id", "question_id")


class Found(NamedTuple):
    questions: list[RagQuestion]
    contexts: dict[str, dict[str, str]]
    """Question id -> the passages that it brings, id -> content."""
    left_out: dict[str, int]


def hf_questions(source: str, split: str) -> Found:
    """Questions of one split of a Hugging Face data set, `ID`, `ID#CONFIG` or a `save_to_disk` folder.

    Raises:
        UserError: it cannot be loaded, has other columns, or no answers at all, as hidden test splits have none.
    """
    where = f"hf:{source} {split}"
    found: dict[str, RagQuestion] = {}
    contexts: dict[str, dict[str, str]] = {}
    left_out = 0
    for row, record in enumerate(read_rows(source, split), 1):
        question = record.get("question")
        if not isinstance(question, str) or "answer" not in record:
            raise UserError(f"{where}:{row}: has the columns {', '.join(record)}; 'question' and 'answer' are needed")
        answers = _answers(record["answer"])
        if answers is None:
            raise UserError(f"{where}:{row}: 'answer' is neither a text, nor texts, nor has it a value and aliases")
        if not answers or not question.strip():
            left_out += 1
            continue
        key = next((str(record[name]) for name in _IDS if record.get(name)), "q" + short_hash(question, 16))
        own = _contexts(record.get("context"))
        wanted = set((record.get("supporting_facts") or {}).get("title", ()))
        right = [passage for title, passage, _ in own if title in wanted]
        contexts[key] = {passage: text for _, passage, text in own}
        found[key] = RagQuestion(id=key, question=question, answers=answers, passages=right)
    if not found:
        raise UserError(f"{where}: no question has an answer; hidden test splits have none, choose another split")
    return Found(list(found.values()), contexts, {NO_ANSWER: left_out} if left_out else {})


def ir_questions(source: str, answers: Found | None) -> Found:
    """Queries of an ir_datasets id, whose relevant documents are the passages known to answer.

    Their answers are their own, as in `dpr-w100`, or those of the same questions in `answers`: compared without case,
    punctuation and white space. Queries without any are left out.

    Raises:
        UserError: it cannot be loaded, or no query has an answer.
    """
    ir_datasets = require("ir_datasets", "ir:")
    known = {} if answers is None else {normalise(one.question): one.answers for one in answers.questions}
    found: list[RagQuestion] = []
    left_out = 0
    with errors_of(f"ir:{source}"):
        data = ir_datasets.load(source)
        relevant: dict[str, list[str]] = {}
        for judgement in data.qrels_iter() if data.has_qrels() else ():
            if judgement.relevance > 0:
                relevant.setdefault(judgement.query_id, []).append(judgement.doc_id)
        for query in data.queries_iter():
            text = query.default_text()
            own = list(getattr(query, "answers", ())) or known.get(normalise(text), [])
            if not own:
                left_out += 1
                continue
            passages = relevant.get(query.query_id, [])
            found.append(RagQuestion(id=query.query_id, question=text, answers=own, passages=passages))
    if not found:
        raise UserError(f"ir:{source}: no query has an answer; name an `hf:` source of the same questions as answers")
    return Found(found, {}, {NO_ANSWER: left_out} if left_out else {})


def _answers(value: Any) -> list[str] | None:
    """Distinct texts; None for what is no answer of a known form."""
    if isinstance(value, Mapping):
        if "value" not in value or "aliases" not in value:
            return None
        # Of hidden test splits TriviaQA says `<unk>`.
        value = [one for one in (value["value"], *(value["aliases"] or ())) if one != "<unk>"]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        return None if texts is not None else []
    return list(dict.fromkeys(one for one in texts if one.strip()))


def _contexts(value: Any) -> list[tuple[str, str, str]]:
    """Title, id and content of the paragraphs of `context`, where it is of HotpotQA's form."""
    if not isinstance(value, Mapping) or not {"title", "sentences"} <= value.keys():
        return []
    # Paragraphs come again in the contexts of other questions: the same text has the same id.
    texts = [
        (title, f"{title}\n{''.join(sentences).strip()}")
        for title, sentences in zip(value["title"], value["sentences"], strict=True)
    ]
    return [(title, "p" + short_hash(text, 16), text) for title, text in texts]
