"""Token ids and sampled examples in, padded batches out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from unimoer.config.heads import HEADS, HeadName, Reads
from unimoer.data.prompts import Prompter
from unimoer.data.sampling import Sample
from unimoer.types import (
    EmbeddingBatch,
    FeedbackBatch,
    ListBatch,
    PairBatch,
    RerankingBatch,
    RetrievalDataset,
    TokenBatch,
)


def reads(head: HeadName) -> Reads:
    """What the score head of this name reads."""
    return HEADS[head].reads


def join(first: TokenBatch, second: TokenBatch) -> TokenBatch:
    """The rows of both, the shorter ones padded further on the side where theirs are: `[B1 + B2, max(T1, T2)]`."""
    length = max(first.input_ids.shape[1], second.input_ids.shape[1])
    parts = []
    for part in (first, second):
        missing = length - part.input_ids.shape[1]
        left = not bool(part.attention_mask[:, 0].all())
        sides = (missing, 0) if left else (0, missing)
        parts.append([F.pad(found, sides) for found in (part.input_ids, part.attention_mask, part.position_ids)])
    return TokenBatch(*(torch.cat(pair) for pair in zip(*parts, strict=True)))


def pad(
    sequences: Sequence[Sequence[int]],
    *,
    pad_id: int,
    padding: Literal["left", "right"] = "right",
    multiple: int = 1,
) -> TokenBatch:
    """Pad to the longest sequence, rounded up to `multiple`.

    Position ids count real tokens only (0 on padding), so the side of the padding cannot change a result.
    """
    longest = max(len(ids) for ids in sequences)
    length = -(-longest // multiple) * multiple
    input_ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), length), dtype=torch.long)
    for row, ids in enumerate(sequences):
        span = slice(length - len(ids), length) if padding == "left" else slice(0, len(ids))
        input_ids[row, span] = torch.tensor(ids, dtype=torch.long)
        mask[row, span] = 1
    return TokenBatch(input_ids, mask, (mask.cumsum(1) - 1).clamp_(min=0))


def place_marks(marks: Sequence[Sequence[int]], batch: TokenBatch) -> torch.Tensor:
    """Positions in unpadded prompts -> `[B, M]` in the padded batch."""
    # Under left padding everything moves right by what was put before it.
    before = batch.attention_mask.argmax(1, keepdim=True)
    return torch.tensor(marks, dtype=torch.long, device=before.device) + before


class Collator:
    """Turns samples of one domain into the batch of a task."""

    def __init__(
        self,
        prompter: Prompter,
        datasets: Mapping[str, RetrievalDataset],
        *,
        instructions: Mapping[str, str | None],
        padding: Literal["left", "right"],
        multiple: int,
        head: HeadName = "linear",
    ) -> None:
        self.prompter = prompter
        self.datasets = datasets
        self.instructions = instructions
        self.padding = padding
        self.multiple = multiple
        self.reads = reads(head)

    def _pad(self, sequences: Sequence[Sequence[int]]) -> TokenBatch:
        pad_id = self.prompter.tokenizer.pad_token_id
        return pad(sequences, pad_id=pad_id, padding=self.padding, multiple=self.multiple)

    def embedding(self, domain: str, samples: Sequence[Sample]) -> EmbeddingBatch:
        """Queries, then all positives, then the negatives of each query in turn."""
        dataset, instruction = self.datasets[domain], self.instructions[domain]
        corpus = dataset.corpus
        ids = [sample.positive_id for sample in samples]
        ids += [negative for sample in samples for negative in sample.negative_ids]
        return EmbeddingBatch(
            domain=domain,
            queries=self._pad(self.prompter.queries([sample.example.query for sample in samples], instruction)),
            documents=self._pad(self.prompter.documents([corpus[i].content for i in ids], instruction)),
            relevant=torch.tensor([_may_be_relevant(sample, ids, dataset) for sample in samples]),
        )

    def reranking(self, domain: str, samples: Sequence[Sample]) -> RerankingBatch:
        """One group a sample: pairs, its positive first; or all of its documents in one prompt, shuffled."""
        if self.reads != "pairs":
            return self._lists(domain, samples)
        corpus = self.datasets[domain].corpus
        queries = [sample.example.query for sample in samples for _ in range(1 + len(sample.negative_ids))]
        ids = [i for sample in samples for i in (sample.positive_id, *sample.negative_ids)]
        pairs = self.prompter.pairs(queries, [corpus[i].content for i in ids], self.instructions[domain])
        labels = torch.zeros(len(samples), 1 + len(samples[0].negative_ids))
        labels[:, 0] = 1
        return PairBatch(domain=domain, pairs=self._pad(pairs), labels=labels)

    def _lists(self, domain: str, samples: Sequence[Sample]) -> RerankingBatch:
        corpus, instruction = self.datasets[domain].corpus, self.instructions[domain]
        orders = [_shuffled(sample) for sample in samples]
        texts = [[corpus[i].content for i in order] for order in orders]
        labels = torch.tensor(
            [[float(i == sample.positive_id) for i in order] for sample, order in zip(samples, orders, strict=True)]
        )
        ids, marks = self.prompter.lists(
            [sample.example.query for sample in samples], texts, instruction, marked=self.reads == "marked lists"
        )
        prompts = self._pad(ids)
        if self.reads == "marked lists":
            return ListBatch(domain, prompts, place_marks(marks, prompts), labels)
        documents = self.prompter.documents([text for group in texts for text in group], instruction)
        return FeedbackBatch(domain, prompts, self._pad(documents), labels)


def _may_be_relevant(sample: Sample, documents: Sequence[str], dataset: RetrievalDataset) -> list[bool]:
    """Which documents are a sample's positives, or relatives of them that are not its hard negatives."""
    positives, negatives = set(sample.example.positive_ids), set(sample.example.negative_ids)
    families = dataset.families_of(positives)
    return [i in positives or (dataset.families.get(i) in families and i not in negatives) for i in documents]


def _shuffled(sample: Sample) -> list[str]:
    """A sample's documents in an order that tells nothing: finding what always stands first is no task."""

    def key(document: str) -> bytes:
        return hashlib.sha256(f"{sample.example.query_id}\0{document}".encode()).digest()

    return sorted((sample.positive_id, *sample.negative_ids), key=key)
