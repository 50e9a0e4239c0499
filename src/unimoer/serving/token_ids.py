"""Token ids that clients send in place of text, back to text.

Ids of another tokenizer name other words, and a vector of them looks like any other: unless the operator says whose
they are, they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unimoer.errors import UserError

Decode = Callable[[Sequence[int]], str]
"""Raises ValueError for ids that the tokenizer does not have."""


def decoder(setting: str, own: PreTrainedTokenizerBase) -> Decode:
    """Of `own` (the model's), `tiktoken:NAME`, or a folder or hub id that `transformers` can load a tokenizer from.

    Raises:
        UserError: there is no such tokenizer.
    """
    if setting == "own":
        return _of(own)
    if setting.startswith("tiktoken:"):
        return _tiktoken(setting.removeprefix("tiktoken:"))
    try:
        found = AutoTokenizer.from_pretrained(str(Path(setting).expanduser()), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--token-ids {setting}: no tokenizer can be loaded from it: {reason}") from error
    return _of(found)


def _of(tokenizer: PreTrainedTokenizerBase) -> Decode:
    size = len(tokenizer)

    def decode(ids: Sequence[int]) -> str:
        if any(not 0 <= token < size for token in ids):
            raise ValueError(f"a token id is not between 0 and {size - 1}")
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode


def _tiktoken(name: str) -> Decode:
    try:
        import tiktoken
    except ImportError:
        raise UserError(f"--token-ids tiktoken:{name}: tiktoken is not installed; pip install tiktoken") from None
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:
        # It fetches its vocabularies, and raises whatever its HTTP client does.
        raise UserError(f"--token-ids tiktoken:{name}: cannot be loaded: {error}") from error

    def decode(ids: Sequence[int]) -> str:
        try:
            return encoding.decode_bytes(list(ids)).decode("utf-8", "replace")
        except (KeyError, OverflowError) as error:
            raise ValueError(f"a token id is not of {name}") from error

    return decode
