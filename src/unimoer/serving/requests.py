"""What clients send, in the shapes of OpenAI, Jina, Cohere and vLLM; fields that are not named here are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

Kind = Literal["query", "document"]
_KINDS = {
    "query": "query",
    "document": "document",
    "search_query": "query",
    "search_document": "document",
    "passage": "document",
    "retrieval.query": "query",
    "retrieval.passage": "document",
}
"""What Cohere and Jina call the two."""


def _kind(value: Any) -> Any:
    return _KINDS.get(value, value) if isinstance(value, str) else value


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[StrictStr, AfterValidator(_whole)]
Dimensions = Annotated[StrictInt, Field(ge=1)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=1 << 31)]


class Request(BaseModel):
    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": True})

    model: Text | None = Field(None, description="A name of `/v1/models`; the only model if it is left out.")
    instruction: Text | None = Field(
        None,
        max_length=10_000,
        description="What to look for, in place of the model's own; prompts without it ignore it.",
    )


class EmbeddingRequest(Request):
    """`POST /v1/embeddings`."""

    input: Text | list[Text] | list[TokenId] | list[list[TokenId]] = Field(
        description="One text, or several. Token ids only if the server was told whose they are."
    )
    encoding_format: Literal["float", "base64"] = Field("float", description="`base64`: little-endian float32.")
    dimensions: Dimensions | None = Field(None, description="Keep the first numbers of each vector.")
    input_type: Annotated[Kind | None, BeforeValidator(_kind)] = Field(
        None,
        validation_alias=AliasChoices("input_type", "task"),
        description="Prompt and limit; `document` if it is left out. So does the model's name, as `NAME:query`.",
    )


class TextObject(BaseModel):
    """A document as an object."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": True})

    text: Text


class RerankRequest(Request):
    """`POST /v1/rerank` and `/v2/rerank`."""

    query: Text = Field(description="What the documents are compared with.")
    documents: list[Text | TextObject] = Field(
        validation_alias=AliasChoices("documents", "texts"), description="Texts, or objects with `text`."
    )
    top_n: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, validation_alias=AliasChoices("top_n", "top_k"), description="How many to return; all if left out."
    )
    return_documents: bool = Field(False, description="Whether the results hold their texts.")


class SearchRequest(Request):
    """`POST /v1/search`."""

    query: Text
    k: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(10, description="Documents to return.")
    retrieve: Literal["fused", "dense", "bm25"] = "fused"
    rerank: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(0, description="How many of the best to score again.")
    return_documents: bool = True


class RoutingRequest(Request):
    """`POST /v1/routing`."""

    query: Text
    document: Text | None = Field(None, description="With it, the routing of the pair as the score head reads it.")
