"""One question on its way: retrieved for, answered, scored, timed."""

from __future__ import annotations

from dataclasses import dataclass

from unimoer.config.rag import RagPromptConfig
from unimoer.library.hits import timed
from unimoer.rag.answers import contains, exact_match, is_verdict, token_f1
from unimoer.rag.generate import Generator
from unimoer.rag.prompt import cut, first_line, render
from unimoer.rag.retrieve import Closed, Retriever
from unimoer.schema import RagAnswer, RagQuestion


@dataclass(frozen=True)
class Pipeline:
    retriever: Retriever
    generator: Generator
    prompt: RagPromptConfig

    def ask(self, question: RagQuestion) -> RagAnswer:
        """The answer with its scores, and the milliseconds of each stage; scoring is not timed."""
        took: dict[str, float] = {}
        passages = self.retriever.find(question.query or question.question, took)
        with timed(took, "generate"):
            message = render(self.prompt, question.question, [one.text for one in passages])
            said = self.generator.answer(message)
        answer = first_line(said)
        retrieves = not isinstance(self.retriever, Closed)
        ids = [one.id for one in passages]
        answer_recall = passage_recall = None
        if retrieves and not is_verdict(question.answers):
            # In what the generator has read: an answer behind the cut is not there.
            read = [cut(one.text, self.prompt.passage_words) for one in passages]
            answer_recall = float(any(contains(text, question.answers) for text in read))
        if retrieves and question.passages:
            passage_recall = len(set(ids) & set(question.passages)) / len(set(question.passages))
        return RagAnswer(
            id=question.id,
            answer=answer,
            exact_match=exact_match(answer, question.answers),
            f1=token_f1(answer, question.answers),
            contains=float(contains(answer, question.answers)),
            answer_recall=answer_recall,
            passage_recall=passage_recall,
            passages=ids,
            milliseconds=took,
        )

    def warm(self, question: RagQuestion) -> None:
        """Everything once that is slow the first time and free."""
        if self.generator.local:
            self.ask(question)
        else:
            self.retriever.find(question.query or question.question, {})
