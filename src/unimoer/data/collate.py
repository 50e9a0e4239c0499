"""Token ids and sampled examples in, padded batches out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from unimoer.data.prompts import Prompter
from unimoer.data.sampling import Sample
from unimoer.types import EmbeddingBatch, RerankingBatch, RetrievalDataset, TokenBatch


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
    ) -> None:
        self.prompter = prompter
        self.datasets = datasets
        self.instructions = instructions
        self.padding = padding
        self.multiple = multiple

    def _pad(self, sequences: Sequence[Sequence[int]]) -> TokenBatch:
        pad_id = self.prompter.tokenizer.pad_token_id
        return pad(sequences, pad_id=pad_id, padding=self.padding, multiple=self.multiple)

    def embedding(self, domain: str, samples: Sequence[Sample]) -> EmbeddingBatch:
        """Queries, then all positives, then the negatives of each query in turn."""
        corpus = self.datasets[domain].corpus
        instruction = self.instructions[domain]
        ids = [sample.positive_id for sample in samples]
        ids += [negative for sample in samples for negative in sample.negative_ids]
        judged = [set(sample.example.positive_ids) for sample in samples]
        return EmbeddingBatch(
            domain=domain,
            queries=self._pad(self.prompter.queries([sample.example.query for sample in samples], instruction)),
            documents=self._pad(self.prompter.documents([corpus[i].content for i in ids], instruction)),
            relevant=torch.tensor([[i in positives for i in ids] for positives in judged]),
        )

    def reranking(self, domain: str, samples: Sequence[Sample]) -> RerankingBatch:
        """One group a sample: its positive first, then its negatives."""
        corpus = self.datasets[domain].corpus
        queries = [sample.example.query for sample in samples for _ in range(1 + len(sample.negative_ids))]
        ids = [i for sample in samples for i in (sample.positive_id, *sample.negative_ids)]
        pairs = self.prompter.pairs(queries, [corpus[i].content for i in ids], self.instructions[domain])
        labels = torch.zeros(len(samples), 1 + len(samples[0].negative_ids))
        labels[:, 0] = 1
        return RerankingBatch(domain=domain, pairs=self._pad(pairs), labels=labels)
