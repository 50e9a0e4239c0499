"""The templates of Qwen3-Embedding and Qwen3-Reranker to the letter, and what a template or tokenizer may not lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import tiny
from unimoer.config import PromptConfig
from unimoer.data.prompts import Prompter
from unimoer.errors import UserError

TASK = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


@pytest.fixture
def make(words: PreTrainedTokenizerFast) -> Callable[..., Prompter]:
    def prompter(**changes: Any) -> Prompter:
        return Prompter(words, PromptConfig.model_validate(changes))

    return prompter


def test_the_embedding_template_of_qwen3(make: Callable[..., Prompter], words: PreTrainedTokenizerFast) -> None:
    """No space after `Query:`, documents bare, both ended by the end-of-text token."""
    [query] = make().queries(["what is a pond"])
    assert words.decode(query) == f"Instruct: {TASK}\nQuery:what is a pond<|endoftext|>"
    [document] = make().documents(["A pond is water."])
    assert words.decode(document) == "A pond is water.<|endoftext|>"


def test_the_reranking_template_of_qwen3(make: Callable[..., Prompter], words: PreTrainedTokenizerFast) -> None:
    """One line break between the fields (the paper), an empty thought, nothing after it."""
    [pair] = make().pairs(["what is a pond"], ["A pond is water."])
    assert words.decode(pair) == (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {TASK}\n<Query>: what is a pond\n<Document>: A pond is water.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_control_tokens_of_the_template_are_single_tokens(make: Callable[..., Prompter]) -> None:
    [pair] = make().pairs(["q"], ["d"])
    assert pair.count(1) == 3
    assert pair.count(2) == 2


def test_an_instruction_of_a_domain_replaces_the_default(
    make: Callable[..., Prompter], words: PreTrainedTokenizerFast
) -> None:
    [query] = make().queries(["q"], "Find the code")
    assert words.decode(query) == "Instruct: Find the code\nQuery:q<|endoftext|>"
    [pair] = make().pairs(["q"], ["d"], "Find the code")
    assert "<Instruct>: Find the code\n<Query>: q\n" in words.decode(pair)
    assert make().queries(["q"], "") != make().queries(["q"])


def test_texts_keep_their_order_and_pairs_must_be_aligned(make: Callable[..., Prompter]) -> None:
    prompter = make(query="{query}", append_eos=False)
    texts = ["red", "the red kettle " * 60, "pond"]
    assert prompter.queries(texts) == [prompter.queries([text])[0] for text in texts]
    assert prompter.queries([]) == []
    assert prompter.pairs([], []) == []
    with pytest.raises(ValueError, match="zip"):
        prompter.pairs(["one"], [])


@pytest.mark.parametrize(
    ("field", "template", "lacks"),
    [
        ("query", "Query:", "{query}"),
        ("document", "", "{document}"),
        ("pair", "{query}", "{document}"),
        ("pair", "{query} {query} {document}", "{query}"),
    ],
)
def test_a_template_must_hold_its_fields_once(
    make: Callable[..., Prompter], field: str, template: str, lacks: str
) -> None:
    with pytest.raises(UserError, match=rf"model\.prompts\.{field}: must contain {lacks} exactly once"):
        make(**{field: template})


def test_a_tokenizer_without_end_of_text_cannot_append_it() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(UserError, match="append_eos: the tokenizer has no end-of-text token"):
        Prompter(bare, PromptConfig())
    assert Prompter(bare, PromptConfig(append_eos=False)).documents(["pond"]) == [bare("pond").input_ids]
    assert Prompter(bare, PromptConfig(eos_token="<|im_end|>")).documents(["pond"]) == [[*bare("pond").input_ids, 2]]


@pytest.mark.parametrize(
    ("family", "told", "expected"),
    [
        ("qwen3", None, "<|endoftext|>"),
        ("qwen2", None, "<|endoftext|>"),
        ("llama", None, "<|im_end|>"),
        (None, None, "<|im_end|>"),
        ("qwen3", "<|im_start|>", "<|im_start|>"),
    ],
)
def test_a_text_ends_as_its_family_ends_texts(family: str | None, told: str | None, expected: str) -> None:
    """The stand-in is a chat tokenizer, whose own end token ends a turn."""
    words = tiny.tokenizer()
    words.eos_token = "<|im_end|>"
    prompter = Prompter(words, PromptConfig(eos_token=told), family)
    for ids in (*prompter.queries(["find my pond"]), *prompter.documents(["pond"])):
        assert words.convert_ids_to_tokens(ids[-1]) == expected
    # Nothing ends a pair but its own prompt.
    assert prompter.pairs(["find my pond"], ["pond"])[0][-1] == words("\n\n", add_special_tokens=False).input_ids[-1]


def test_an_end_that_is_no_token_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^model\.prompts\.eos_token: '</s>' is not one token of this tokenizer$"):
        Prompter(tiny.tokenizer(), PromptConfig(eos_token="</s>"))


def test_a_tokenizer_that_begins_with_a_token_does_so_once() -> None:
    """As those of Llama do; their own end-of-text, where they add one, is left to `append_eos`."""
    core = tiny.tokenizer().backend_tokenizer
    core.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>", special_tokens=[("<|im_start|>", 1), ("<|endoftext|>", 0)]
    )
    llama = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|endoftext|>")
    prompter = Prompter(llama, PromptConfig(query="{query}", pair="{query} {document}"))
    plain = tiny.tokenizer()("pond").input_ids
    assert prompter.queries(["pond"]) == [[1, *plain, 0]]
    assert prompter.documents(["pond"]) == [[1, *plain, 0]]
    assert prompter.pairs(["pond"], ["x"])[0][0] == 1
    assert prompter.pairs(["pond"], ["x"])[0].count(1) == 1


def test_white_space_that_is_in_the_vocabulary_is_no_control_token() -> None:
    """The tokenizers of OLMo and Phi add runs of spaces as tokens of their own: source code must keep its indent."""
    spaced = tiny.tokenizer()
    spaced.add_tokens(["    ", "        "])
    [ids] = Prompter(spaced, PromptConfig(append_eos=False)).documents(["if red:\n        return"])
    assert spaced.decode(ids) == "if red:\n        return"


def test_a_list_holds_the_query_twice_and_its_marks_are_padding_tokens(
    make: Callable[..., Prompter], words: PreTrainedTokenizerFast
) -> None:
    prompter = make(max_document_tokens=8, append_eos=False)
    cut = words.decode(prompter.documents(["a plate " * 30])[0])
    assert cut.count("plate") < 9
    queries = ["what is a pond", "find my plate"]
    candidates = [["A pond is water.", "a plate " * 30], ["The plate."]]
    ids, marks = prompter.lists(queries, candidates)
    for row, places in zip(ids, marks, strict=True):
        assert [row[place] for place in places] == [words.pad_token_id] * len(places)
        assert row.count(words.pad_token_id) == len(places)
    assert [len(places) for places in marks] == [4, 3]
    mark = words.pad_token
    assert words.decode(ids[0]) == (
        "<|im_start|>system\nRead the Query and the numbered Documents, and judge how relevant each Document is."
        f"<|im_end|>\n<|im_start|>user\n<Instruct>: {TASK}\n<Query>: what is a pond{mark}\n"
        f"<Document 1>: A pond is water.{mark}\n<Document 2>: {cut}{mark}\n"
        f"<Query>: what is a pond{mark}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    plain, none = prompter.lists(queries, candidates, marked=False)
    assert none == [[], []]
    assert words.decode(plain[0]) == words.decode(ids[0]).replace(str(mark), "")


def test_no_text_can_bring_a_mark_of_its_own(make: Callable[..., Prompter], words: PreTrainedTokenizerFast) -> None:
    prompter = make(candidates="{query}{mark}{candidates}{query}{mark}", candidate="{document}{mark}")
    clean = prompter.lists(["a plate"], [["the red pond"]])
    assert len(clean[1][0]) == 3
    assert prompter.lists(["a\0 plate"], [["the \0red pond\0"]]) == clean
    # Nor can it hide a control token from the guard.
    assert prompter.lists(["a plate"], [["the <|im\0_end|>red pond"]]) == clean
    [ids], _ = prompter.lists(["a plate"], [["the {mark} pond"]])
    assert "the {mark} pond" in words.decode(ids)


def test_a_list_needs_its_query(make: Callable[..., Prompter]) -> None:
    with pytest.raises(UserError, match=r"model\.prompts\.candidates: must contain \{query\}"):
        make(candidates="{candidates}")
