"""Questions about the embedded domains: something is described, and its name is asked for.

`examples` asks with the domain's own queries: a synonym of a phenotype, what a group did with a technique, a
vulnerability in the wild. The passages are the domain's documents, titled by the names that are asked for, so what
search is worth can be read off them. `descriptions` asks with a document's own text, every mention of its name replaced
by "it": word search finds that document at once, which leaves the reading of passages to be measured, and no more.

A question that holds an accepted answer as whole words is left out. Accepted are the title, of hpo all exact synonyms
that curators gave (not the one that asks), of attack a sub-technique's own name without its parent's, of cwe the title
without what stands in brackets and the quoted usual name in them.

They show whether a pipeline finds and copies a name out of 700 to 16,000 passages of one kind. They do not show
answers that have to be put together, questions as people ask them, or knowledge beyond names. Other documents may
answer as well and do not count. And the models of this package were trained on queries of these domains (their train
split), for attack and cwe with the same documents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from unimoer.data.embedded import hpo, load_embedded
from unimoer.data.embedded.text import normalise as words_of
from unimoer.data.formats import judged
from unimoer.errors import UserError, did_you_mean
from unimoer.rag.answers import contains, normalise
from unimoer.schema import RagQuestion
from unimoer.types import RetrievalDataset

HOLDS_ITS_ANSWER = "the question holds its answer"
TOO_SHORT = "too few words are left to ask with"
_FEWEST_WORDS = 6
_MOST_WORDS = 60
"""Of a description: what a search box would get."""

Names = Mapping[str, list[str]]
"""Document id -> what it may be called."""


@dataclass(frozen=True, slots=True)
class Domain:
    example: str
    """The question around one of the domain's queries, `{text}`."""
    description: str
    names: Callable[[RetrievalDataset], Names]


def _hpo(dataset: RetrievalDataset) -> Names:
    known = _hpo_names()
    return {key: known.get(key, [document.title]) for key, document in dataset.corpus.items()}


@cache
def _hpo_names() -> Names:
    return hpo.names()


def _attack(dataset: RetrievalDataset) -> Names:
    titles = {key: document.title for key, document in dataset.corpus.items()}
    return {key: [title, *title.split(": ", 1)[1:]] for key, title in titles.items()}


def _cwe(dataset: RetrievalDataset) -> Names:
    return {key: weakness_names(document.title) for key, document in dataset.corpus.items()}


def weakness_names(title: str) -> list[str]:
    """The title; without what stands in brackets; and the usual name that is quoted in them."""
    usual = re.findall(r"\([^()]*'([^'()]+)'\)", title)
    bare = " ".join(re.sub(r"\([^()]*\)", " ", title).split())
    return list(dict.fromkeys([title, bare, *usual]))


ASKED: dict[str, Domain] = {
    "hpo": Domain('What is the phenotype term for "{text}"?', "Which phenotype term is defined so: {text}", _hpo),
    "attack": Domain(
        "Which attack technique is this an example of? {text}",
        "Which attack technique is described here? {text}",
        _attack,
    ),
    "cwe": Domain(
        "Which software weakness is this an example of? {text}",
        "Which software weakness is described here? {text}",
        _cwe,
    ),
}


def embedded_questions(name: str, ask: str, split: str) -> tuple[list[RagQuestion], RetrievalDataset, dict[str, int]]:
    """All questions of a domain, its data set, and how many were left out for which reason.

    Raises:
        UserError: the domain has no names to ask for, or no such split.
    """
    if name not in ASKED:
        raise UserError(f"embedded:{name}: has no names to ask for{did_you_mean(name, ASKED)}")
    domain, dataset = ASKED[name], load_embedded(name)
    names = domain.names(dataset)
    if ask == "examples" and split not in dataset.qrels:
        raise UserError(f"embedded:{name}: has no split '{split}'{did_you_mean(split, dataset.qrels)}")
    asked = _examples(dataset, names, split) if ask == "examples" else _descriptions(dataset, names)
    template = domain.example if ask == "examples" else domain.description
    found: list[RagQuestion] = []
    left_out: Counter[str] = Counter()
    for one in asked:
        # A synonym asks for the others: repeating the question is no answer.
        answers = [name for name in dict.fromkeys(one.names) if normalise(name) not in ("", normalise(one.text))]
        if not answers or tells(one.text, answers):
            left_out[HOLDS_ITS_ANSWER] += 1
        elif ask == "descriptions" and len(one.text.split()) < _FEWEST_WORDS:
            left_out[TOO_SHORT] += 1
        else:
            question = template.replace("{text}", one.text)
            found.append(
                RagQuestion(id=one.id, question=question, answers=answers, query=one.text, passages=one.passages)
            )
    return found, dataset, dict(left_out)


class _Asked(NamedTuple):
    id: str
    text: str
    names: list[str]
    passages: list[str]


def _examples(dataset: RetrievalDataset, names: Names, split: str) -> Iterator[_Asked]:
    for key, grades in judged(dataset, split).items():
        right = [document for document, grade in grades.items() if grade > 0]
        yield _Asked(key, dataset.queries[key], [name for document in right for name in names[document]], right)


def _descriptions(dataset: RetrievalDataset, names: Names) -> Iterator[_Asked]:
    for key, document in dataset.corpus.items():
        text = " ".join(without_names(document.text, names[key]).split()[:_MOST_WORDS])
        yield _Asked(key, text, names[key], [key])


def tells(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the answers as whole words, also as part of something else: `cmstp.exe`."""
    padded = f" {words_of(text)} "
    return contains(text, answers) or any(f" {words_of(one)} " in padded for one in answers)


def without_names(text: str, names: Iterable[str]) -> str:
    """A text with every mention of the names, singular or plural, replaced by "it"."""
    for name in sorted(names, key=len, reverse=True):
        words = re.findall(r"\w+", name)
        if words:
            pattern = r"[\W_]+".join(map(re.escape, words))
            text = re.sub(rf"\b{pattern}(?:e?s)?\b", "it", text, flags=re.IGNORECASE)
    return text
