"""The gradient probe against gradients of merged weights in an unfused model, and that it only watches."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from unimoer.experiments.run import RunContext, build_probe

import tiny
from unimoer.config import ExperimentConfig
from unimoer.data.collate import Collator
from unimoer.losses.contrastive import infonce
from unimoer.losses.ranking import group_softmax
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.unified import UnifiedModel
from unimoer.training.conflict import ConflictProbe, compare
from unimoer.types import EmbeddingBatch, RerankingBatch, Task, TokenBatch, TrainingMode

Make = Callable[..., dict[str, Any]]
PLACES = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}


def make_probe(config: ExperimentConfig, model: UnifiedModel, folder: Path) -> ConflictProbe:
    shared: RunContext = tiny.context(config)
    collator = Collator(
        model.prompter,
        {name: domain.dataset for name, domain in shared.domains.items()},
        instructions=shared.instructions,
        padding=config.model.padding,
        multiple=config.training.pad_to_multiple,
    )
    return build_probe(shared, TrainingMode.JOINT_SINGLE, 1, collator, folder)


class Unfused:
    """The same model without any code of ours in its forward pass, differentiable in W + s B A."""

    def __init__(self, base: Path, model: UnifiedModel) -> None:
        self.body = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().base_model
        self.head: nn.Module = model.head
        self.merged: dict[str, Tensor] = {}
        for path, module in model.decoder.named_modules():
            if isinstance(module, MoELoRALinear):
                layer, _, last = path.rpartition(".")
                for name in module.targets:
                    key = f"{layer}.{PLACES[last]}.{name}.weight"
                    a, b, scale = module.lora(name, "shared")
                    merged = (self.body.get_parameter(key) + scale * b @ a).detach()
                    self.merged[key] = merged.requires_grad_()

    def mean_state(self, batch: TokenBatch) -> Tensor:
        arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        arguments |= {"position_ids": batch.position_ids, "use_cache": False}
        hidden = torch.func.functional_call(self.body, self.merged, kwargs=arguments).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)

    def gradients(self, batch: EmbeddingBatch | RerankingBatch) -> dict[int, Tensor]:
        """dL/dW of all adapted projections of each layer, flat."""
        if isinstance(batch, EmbeddingBatch):
            vectors = [nn.functional.normalize(self.mean_state(part)) for part in (batch.queries, batch.documents)]
            loss, _ = infonce(*vectors, batch.relevant, temperature=0.05)
        else:
            loss, _ = group_softmax(self.head(self.mean_state(batch.pairs)).view(batch.labels.shape), batch.labels)
        found = dict(zip(self.merged, torch.autograd.grad(loss, list(self.merged.values())), strict=True))
        return {
            layer: torch.cat([grad.flatten() for key, grad in found.items() if key.startswith(f"layers.{layer}.")])
            for layer in range(len(self.body.layers))
        }


def test_measures_are_those_of_brute_force(base: Path, experiment: Make, tmp_path: Path) -> None:
    config = tiny.parsed(experiment(training__probe={"every": 1, "batch_size": 6}))
    model = tiny.build(base, noise=0.05)
    probe = make_probe(config, model, tmp_path / "one")
    probe.measure(model, config.training, 3)
    lines = tiny.lines(tmp_path / "one" / "gradient_conflicts.jsonl")
    assert [(line["step"], line["layer"]) for line in lines] == [(3, 0), (3, 1), (3, 2)]

    twin, reference = make_probe(config, model, tmp_path / "two"), Unfused(base, model)
    halves = {task: [reference.gradients(batch) for batch in pair] for task, pair in twin._draw().items()}
    for line in lines:
        (e1, e2), (r1, r2) = ([half[line["layer"]] for half in halves[task]] for task in Task)
        e, r = (e1 + e2) / 2, (r1 + r2) / 2
        cosine = float(torch.cosine_similarity(e, r, dim=0))
        # A cosine is a difference of large sums over some ten thousand products: 1e-4 is what float32 leaves.
        assert line["cosine"] == pytest.approx(cosine, abs=1e-4)
        assert line["norm_embedding"] == pytest.approx(float(e.norm()), rel=1e-4)
        assert line["norm_reranking"] == pytest.approx(float(r.norm()), rel=1e-4)
        assert line["magnitude_ratio"] == pytest.approx(float(e.norm() / r.norm()), rel=1e-3)
        similarity = float(2 * e.norm() * r.norm() / (e.norm() ** 2 + r.norm() ** 2))
        assert line["magnitude_similarity"] == pytest.approx(similarity, rel=1e-3)
        reliable = []
        for name, first, second in (("embedding", e1, e2), ("reranking", r1, r2)):
            half = float(torch.cosine_similarity(first, second, dim=0))
            reliable.append(2 * half / (1 + half))
            assert line[f"reliability_{name}"] == pytest.approx(reliable[-1], abs=2e-4)
        if min(reliable) > 0:
            corrected = max(-1.0, min(1.0, cosine / math.sqrt(reliable[0] * reliable[1])))
            assert line["cosine_corrected"] == pytest.approx(corrected, abs=1e-2)
        else:
            assert line["cosine_corrected"] is None


def test_a_task_agrees_with_itself_and_contradicts_its_opposite() -> None:
    first, second = ([torch.randn(4, 3), torch.randn(5)] for _ in range(2))
    same = compare((first, second), (first, second))
    assert same.cosine == pytest.approx(1, abs=1e-6)
    assert same.magnitude_ratio == pytest.approx(1)
    assert same.magnitude_similarity == pytest.approx(1)
    opposite = compare((first, second), ([-3 * g for g in first], [-3 * g for g in second]))
    assert opposite.cosine == pytest.approx(-1, abs=1e-6)
    assert opposite.magnitude_ratio == pytest.approx(1 / 3)
    assert opposite.magnitude_similarity == pytest.approx(2 * 3 / 10)


def test_one_batch_twice_is_perfectly_reliable_and_its_cosine_stays() -> None:
    embedding, reranking = [torch.randn(40)], [torch.randn(40)]
    found = compare((embedding, embedding), (reranking, reranking))
    assert found.reliability_embedding == pytest.approx(1, abs=1e-6)
    assert found.cosine_corrected == pytest.approx(found.cosine, abs=1e-6)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(embedding[0], reranking[0], dim=0)), abs=1e-6)


def test_correction_recovers_the_agreement_under_noise() -> None:
    """Two tasks that agree by 0.6, each half hidden under noise of the signal's own size."""
    torch.manual_seed(0)
    size = 20_000
    shared = torch.randn(size)
    other = 0.6 * shared + 0.8 * torch.randn(size)
    embedding, reranking = (tuple([signal + torch.randn(size)] for _ in range(2)) for signal in (shared, other))
    found = compare(embedding, reranking)  # type: ignore[arg-type]
    assert found.reliability_embedding == pytest.approx(2 / 3, abs=0.03)
    assert found.cosine == pytest.approx(0.6 * 2 / 3, abs=0.03)
    assert found.cosine_corrected == pytest.approx(0.6, abs=0.04)


def test_gradients_of_nothing_are_no_conflict() -> None:
    zero, some = [torch.zeros(5)], [torch.ones(5)]
    found = compare((zero, zero), (some, some))
    assert (found.cosine, found.cosine_corrected, found.magnitude_ratio) == (0, None, 0)
    halves = ([torch.ones(5)], [-torch.ones(5)])
    cancelled = compare(halves, (some, some))
    assert cancelled.cosine_corrected is None
    assert math.isfinite(cancelled.cosine)


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_a_probe_leaves_everything_as_it_was(
    family: str, bases: Callable[[str], Path], data: dict[str, Path], tmp_path: Path
) -> None:
    content = tiny.experiment(bases(family), data, model__adapter={"rank": 4, "alpha": 8.0, "dropout": 0.5})
    config = tiny.parsed(content)
    model = UnifiedModel(config.model, tiny.CPU).train()
    probe = make_probe(config, model, tmp_path)
    model.embed(tiny.batch(tiny.ids([5, 7]))).sum().backward()
    before = {name: (p.clone(), p.grad, p.requires_grad) for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    random = torch.get_rng_state()
    probe.measure(model, config.training, 1)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    for name, parameter in model.named_parameters():
        value, gradient, trained = before[name]
        assert torch.equal(parameter, value), name
        assert parameter.grad is gradient, name
        assert parameter.requires_grad == trained, name
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in gradients.items())
    # All adapted layers, counted from 0.
    assert [line["layer"] for line in tiny.lines(tmp_path / "gradient_conflicts.jsonl")] == [0, 1, 2]


def test_probing_does_not_change_the_run(experiment: Make, tmp_path: Path) -> None:
    runs = {}
    for every in (0, 1, 5):
        content = experiment(
            training__probe={"every": every, "batch_size": 4},
            model__adapter={"rank": 4, "alpha": 8.0, "dropout": 0.3},
        )
        folder = tmp_path / str(every)
        model = tiny.train_arm(tiny.parsed(content), "joint_single", folder).model
        lines = [{**line, "seconds": 0} for line in tiny.lines(folder / "metrics.jsonl")]
        runs[every] = (lines, model.trainable())
    for every in (1, 5):
        assert runs[every][0] == runs[0][0]
        assert all(torch.equal(parameter, runs[0][1][name]) for name, parameter in runs[every][1].items())
    assert not (tmp_path / "0" / "gradient_conflicts.jsonl").exists()
    for every, expected in ((1, list(range(1, 13))), (5, [1, 5, 10])):
        lines = tiny.lines(tmp_path / str(every) / "gradient_conflicts.jsonl")
        assert sorted({line["step"] for line in lines}) == expected


def test_a_specialist_is_not_probed(experiment: Make, tmp_path: Path) -> None:
    tiny.train_arm(tiny.parsed(experiment()), "emb_only", tmp_path)
    assert not (tmp_path / "gradient_conflicts.jsonl").exists()


def test_a_probe_reads_other_batches_than_the_run(experiment: Make, base: Path, tmp_path: Path) -> None:
    """The same examples in another order, so that a probe is not the gradient of a step just taken."""
    config = tiny.parsed(experiment(training__probe={"every": 1, "batch_size": 6}))
    probe = make_probe(config, tiny.build(base), tmp_path)
    run = tiny.build_samplers(tiny.context(config), TrainingMode.JOINT_SINGLE, 1)
    for task in Task:
        orders = []
        for sampler in (probe.samplers[task], run[task]):
            batches = [sampler.next() for _ in range(8)]
            orders.append([(domain, sample.example.query_id) for domain, samples in batches for sample in samples])
        assert orders[0][:4] != orders[1][:4]
        assert set(orders[0]) & set(orders[1])
