"""What an operator can set: limits of a request, the length of the queue, who may ask."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Settings(BaseModel):
    """Of one server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", description="The name that clients give the model; empty: that of its folder.")
    api_key: SecretStr | None = Field(None, description="What clients must send as a bearer token; none: all may ask.")
    hosts: frozenset[str] = Field(
        frozenset(),
        description="Names and addresses that requests may call this server by; none: any. A page of another site can "
        "give its own name this machine's address, and then its scripts may read what a local server answers.",
    )
    max_texts: int = Field(2048, ge=1, description="Texts, documents or token lists in one request.")
    max_characters: int = Field(1_000_000, ge=1, description="Of one text. Texts are cut to the model's tokens anyway.")
    max_body_bytes: int = Field(32 << 20, ge=1024, description="Of one request.")
    body_seconds: float = Field(30, gt=0, description="To wait for the next piece of a request.")
    batch_tokens: int | None = Field(
        None, ge=1, description="Taken from the queue together; none: 2,048, or 16,384 on a GPU."
    )
    queue_tokens: int = Field(
        262_144,
        ge=1,
        description="Tokens that wait or are being computed; a request beyond them is sent away with 429.",
    )
    token_ids: str | None = Field(
        None,
        description="Whose token ids clients may send in place of text: `own`, a folder or hub id of a tokenizer, or "
        "`tiktoken:NAME`. None: they are refused, since ids of another tokenizer are another text.",
    )


DEFAULT_BATCH_TOKENS = {"cuda": 16_384}
OTHER_BATCH_TOKENS = 2048
"""On a CPU larger batches are no faster, and a single query waits for the one that is being computed."""
