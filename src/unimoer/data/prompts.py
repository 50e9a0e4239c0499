"""The only place where text becomes a prompt, and a prompt becomes token ids.

The prompt's own words are never truncated: a query or document is cut to its own budget first, and the whole
prompt is tokenised afterwards. So a reranking prompt always ends in its suffix, where the answer is read, and
byte-pair merges across the seams are those of the finished text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from unimoer.config import PromptConfig
from unimoer.errors import UserError

FIELDS = re.compile(r"\{(instruction|query|document|candidates|number|mark)\}")
END_OF_TEXT = {"qwen2": "<|endoftext|>", "qwen3": "<|endoftext|>"}
"""By type of model, where the tokenizer's own end token is another for chat models: they end a turn by `<|im_end|>`,
Qwen3-Embedding a text by `<|endoftext|>`."""
MARK = "\0"
"""Stands for a mark in a rendered prompt, where no tokenizer's word can be taken for it; users' texts lose theirs."""
WINDOW = 16
"""Characters read at first for each token of the budget: some four times what they take in running text."""
INSTRUCTION = 256
"""Tokens of an instruction that comes with a call."""
OFFSETS = 256
"""Texts whose offsets are in memory at a time: they take far more than the text."""


def is_blank(text: str) -> bool:
    """Whether a reader sees nothing: white space, controls, and marks without width."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


class Prompter:
    """Renders and tokenises the four kinds of input under one `PromptConfig`.

    Raises:
        UserError: a template lacks its field, or the tokenizer cannot say which characters a token covers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig, family: str | None = None) -> None:
        """`family` is the base's model type, which decides the default end of a text."""
        if not tokenizer.is_fast:
            raise UserError("model.base: its tokenizer has no fast version, which truncation of prompts needs")
        for name, template, fields in (
            ("query", config.query, ("{query}",)),
            ("document", config.document, ("{document}",)),
            ("pair", config.pair, ("{query}", "{document}")),
            ("candidates", config.candidates, ("{candidates}",)),
            ("candidate", config.candidate, ("{document}",)),
        ):
            for field in fields:
                if template.count(field) != 1:
                    raise UserError(f"model.prompts.{name}: must contain {field} exactly once")
        if "{query}" not in config.candidates:
            raise UserError("model.prompts.candidates: must contain {query}")
        self.tokenizer = tokenizer
        self.config = config
        self._prefix = [tokenizer.bos_token_id] if self._adds_bos(tokenizer) else []
        self._suffix = [self._end_of_text(family)] if config.append_eos else []
        # Control tokens inside user text would let a document end the prompt it stands in.
        # Runs of white space, which some tokenizers add to their vocabulary, are text and stay.
        self._control = [token for token in tokenizer.get_added_vocab() if token.strip()]

    def _end_of_text(self, family: str | None) -> int:
        vocabulary = self.tokenizer.get_vocab()
        told = self.config.eos_token
        if told is not None and told not in vocabulary:
            raise UserError(f"model.prompts.eos_token: '{told}' is not one token of this tokenizer")
        usual = END_OF_TEXT.get(family or "")
        token = told or (usual if usual in vocabulary else self.tokenizer.eos_token)
        if token is None:
            raise UserError(
                "model.prompts.append_eos: the tokenizer has no end-of-text token; name one as "
                "model.prompts.eos_token, or set append_eos to false"
            )
        return int(vocabulary[token])

    @staticmethod
    def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
        ids = tokenizer("a").input_ids
        return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]

    def is_blank(self, text: str) -> bool:
        """Whether nothing of a text reaches a prompt that a reader would see: control tokens are taken out of it."""
        return is_blank(text) or is_blank(self.clean(text))

    def queries(
        self, texts: Sequence[str], instruction: str | None = None, *, shortened: list[int] | None = None
    ) -> list[list[int]]:
        """Token ids of queries to embed; `shortened` is told the places of those that were cut."""
        instruction = self._told(instruction)
        cut = self._cut(texts, self.config.max_query_tokens, shortened)
        return self._embedding_ids([self._fill(self.config.query, instruction, query=text) for text in cut])

    def documents(
        self, texts: Sequence[str], instruction: str | None = None, *, shortened: list[int] | None = None
    ) -> list[list[int]]:
        """Token ids of documents to embed; `shortened` is told the places of those that were cut."""
        instruction = self._told(instruction)
        cut = self._cut(texts, self.config.max_document_tokens, shortened)
        return self._embedding_ids([self._fill(self.config.document, instruction, document=text) for text in cut])

    def pairs(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        instruction: str | None = None,
        *,
        shortened: list[int] | None = None,
        shortened_queries: list[int] | None = None,
    ) -> list[list[int]]:
        """Token ids of query-document pairs to score, aligned; `shortened` is told the places of documents cut."""
        instruction = self._told(instruction)
        cut_queries = self._cut(queries, self.config.max_query_tokens, shortened_queries)
        cut_documents = self._cut(documents, self.config.max_document_tokens, shortened)
        prompts = [
            self._fill(self.config.pair, instruction, query=query, document=document)
            for query, document in zip(cut_queries, cut_documents, strict=True)
        ]
        return [self._prefix + ids for ids in self._tokenise(prompts)]

    def separator(self) -> tuple[int, list[int]]:
        """The control token between query and document in `pair`, and all control tokens that it can be told from.

        No user's text has any, so the first one's only place in a prompt is where the template puts it.

        Raises:
            UserError: the template does not have exactly one between the two, or has that one elsewhere too.
        """
        added = self.tokenizer.get_added_vocab()
        control = [added[token] for token in self._control]
        [pair] = self._tokenise([self.config.pair])
        between = re.split(r"\{query\}|\{document\}", self.config.pair)[1]
        found = [token for token in self._tokenise([between])[0] if token in control]
        if len(found) != 1 or (self._prefix + pair).count(found[0]) != 1:
            raise UserError(
                "model.prompts.pair: head 'interaction' needs one control token between {query} and {document} that is "
                'nowhere else in it, such as "<|im_start|>{query}<|im_end|>{document}"'
            )
        return found[0], control

    def lists(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str]],
        instruction: str | None = None,
        *,
        marked: bool = True,
        shortened: list[int] | None = None,
        shortened_queries: list[int] | None = None,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of prompts that hold a query with its candidates, and the positions of each prompt's marks.

        A mark is a padding token: what stands there is put in by the head that reads it. Not `marked`, there are none.
        """
        mark = MARK if marked else ""
        instruction = self._told(instruction)
        cut_queries = self._cut(queries, self.config.max_query_tokens, shortened_queries)
        flat = [text for texts in candidates for text in texts]
        documents = iter(self._cut(flat, self.config.max_document_tokens, shortened))
        prompts = []
        for query, texts in zip(cut_queries, candidates, strict=True):
            items = [
                self._fill(self.config.candidate, instruction, document=next(documents), number=str(number), mark=mark)
                for number in range(1, len(texts) + 1)
            ]
            template = self.config.candidates
            prompts.append(self._fill(template, instruction, query=query, candidates="".join(items), mark=mark))
        segments = [prompt.split(MARK) for prompt in prompts]
        tokens = iter(self._tokenise([segment for parts in segments for segment in parts]))
        ids, marks = [], []
        for parts in segments:
            row, places = [*self._prefix, *next(tokens)], []
            for _ in parts[1:]:
                places.append(len(row))
                row += [self.tokenizer.pad_token_id, *next(tokens)]
            ids.append(row)
            marks.append(places)
        return ids, marks

    def _told(self, instruction: str | None) -> str:
        """The checkpoint's, or a caller's, which is text like any other."""
        return self.config.instruction if instruction is None else self._cut([instruction], INSTRUCTION)[0]

    def _fill(self, template: str, instruction: str, **fields: str) -> str:
        fields["instruction"] = instruction
        # One pass, so that braces inside a user's text are never taken for a field.
        return re.sub(FIELDS, lambda match: fields.get(match[1], match[0]), template)

    def _embedding_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [self._prefix + ids + self._suffix for ids in self._tokenise(prompts)]

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return ids

    def _cut(self, texts: Sequence[str], budget: int, shortened: list[int] | None = None) -> list[str]:
        """Each text without control tokens, shortened to at most `budget` tokens of its own."""
        clean = [self.clean(text) for text in texts]
        # A token covers at least one byte: shorter texts need no look.
        long = [index for index, text in enumerate(clean) if len(text.encode()) > budget]
        for start in range(0, len(long), OFFSETS):
            group = long[start : start + OFFSETS]
            for index, ends in zip(group, self._ends([clean[index] for index in group], budget), strict=True):
                if len(ends) > budget:
                    clean[index] = self._shorten(clean[index], ends[:budget])
                    if shortened is not None:
                        shortened.append(index)
        return clean

    def _ends(self, texts: Sequence[str], budget: int) -> Iterator[list[int]]:
        """Where the first tokens of each text end, in characters: at least one more than `budget` where it has more.

        Only the beginning of a long text is read. What follows can change no token but those of the word that is cut,
        so that an end in the first half stands; where the budget ends later, the whole text is read after all.
        """
        window = WINDOW * budget
        for text, ends in zip(texts, self._offsets([text[:window] for text in texts]), strict=True):
            if len(text) > window and (len(ends) <= budget or ends[budget] > window // 2):
                [ends] = self._offsets([text])
            yield ends

    def _offsets(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [[end for _, end in offsets] for offsets in encoded.offset_mapping]

    def _shorten(self, text: str, ends: Sequence[int]) -> str:
        """The longest of the given prefixes that is within as many tokens as there are prefixes.

        Cut in the middle of a character of several tokens, or of a word, a text can take more tokens than before.
        """
        for end in reversed(ends):
            if len(self._tokenise([text[:end]])[0]) <= len(ends):
                return text[:end]
        return ""

    def clean(self, text: str) -> str:
        """A text without what only a prompt may hold: control tokens and marks."""
        # A mark first: one inside a control token would hide it.
        return self._without_control(text.replace(MARK, ""))

    def _without_control(self, text: str) -> str:
        """Removing one control token can make another out of what stood around it; one pass with a stack sees both."""
        if not any(token in text for token in self._control):
            return text
        kept: list[str] = []
        for character in text:
            kept.append(character)
            for token in self._control:
                if character == token[-1] and "".join(kept[-len(token) :]) == token:
                    del kept[-len(token) :]
                    break
        return "".join(kept)
