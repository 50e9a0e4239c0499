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

import tiny
from unimoer.benchmarks.memory import ARITHMETIC
from unimoer.config import ModelConfig, StudyConfig
from unimoer.data.sampling import Sample
from unimoer.losses.contrastive import infonce
from unimoer.losses.ranking import group_softmax
from unimoer.model.adapter import MoELoRALinear
from unimoer.model.unified import UnifiedModel
from unimoer.training.conflict import LayerConflict, ceiling, compare
from unimoer.training.layers import BLOCK_BYTES, decoder_layers, gradient_products
from unimoer.training.objectives import compute_loss
from unimoer.training.probe import ConflictProbe, estimate_probe_bytes, shuffled_labels
from unimoer.training.setup import build_collator, build_probe, build_samplers
from unimoer.types import EmbeddingBatch, Example, RerankingBatch, Task, TokenBatch

Make = Callable[..., dict[str, Any]]
PLACES = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}


def make_probe(config: StudyConfig, model: UnifiedModel, folder: Path) -> ConflictProbe:
    spec, domains = tiny.train_spec(config, "joint_single"), tiny.domains(config)
    return build_probe(spec, domains, build_collator(spec, model, domains), folder)


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


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.cosine_similarity(first.double(), second.double(), dim=0))


def test_measures_are_those_of_brute_force(base: Path, experiment: Make, tmp_path: Path) -> None:
    config = tiny.parsed(experiment(training__probe={"every": 1, "batch_size": 6}))
    model = tiny.build(base, noise=0.05)
    probe = make_probe(config, model, tmp_path / "one")
    probe.measure(model, config.training, 3)
    lines = tiny.lines(tmp_path / "one" / "gradient_conflicts.jsonl")
    assert [(line["step"], line["layer"]) for line in lines] == [(3, 0), (3, 1), (3, 2)]

    reference = Unfused(base, model)
    domain, real, null = make_probe(config, model, tmp_path / "two").draw()
    halves = {task: [reference.gradients(batch) for batch in real[task]] for task in Task}
    shuffled = {task: [reference.gradients(batch) for batch in null[task]] for task in Task}
    for line in lines:
        assert line["domain"] == domain
        (e1, e2), (r1, r2) = ([half[line["layer"]] for half in halves[task]] for task in Task)
        e, r = (e1 + e2) / 2, (r1 + r2) / 2
        # A cosine is a difference of large sums over some ten thousand products: 1e-4 is what float32 leaves.
        assert line["cosine"] == pytest.approx(cosine(e, r), abs=1e-4)
        assert line["norm_embedding"] == pytest.approx(float(e.norm()), rel=1e-4)
        assert line["norm_reranking"] == pytest.approx(float(r.norm()), rel=1e-4)
        assert line["magnitude_ratio"] == pytest.approx(float(e.norm() / r.norm()), rel=1e-3)
        similarity = float(2 * e.norm() * r.norm() / (e.norm() ** 2 + r.norm() ** 2))
        assert line["magnitude_similarity"] == pytest.approx(similarity, rel=1e-3)
        nulls = [(first[line["layer"]] + second[line["layer"]]) / 2 for first, second in shuffled.values()]
        assert line["null_cosine"] == pytest.approx(cosine(*nulls), abs=1e-4)
        assert abs(line["null_cosine"] - line["cosine"]) > 1e-3
        reliable = []
        for name, first, second in (("embedding", e1, e2), ("reranking", r1, r2)):
            half = cosine(first, second)
            reliable.append(2 * half / (1 + half))
            assert line[f"half_cosine_{name}"] == pytest.approx(half, abs=1e-4)
            assert line[f"reliability_{name}"] == pytest.approx(reliable[-1], abs=2e-4)
        if min(reliable) > 0:
            corrected = max(-1.0, min(1.0, cosine(e, r) / math.sqrt(reliable[0] * reliable[1])))
            assert line["cosine_corrected"] == pytest.approx(corrected, abs=1e-2)
        else:
            assert line["cosine_corrected"] is None


ROUTED = {"experts": {"embedding": 2, "reranking": 2, "shared": 4}, "router": {"type": "sparsegen"}}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3", {}),
        ("qwen3", {"gradient_checkpointing": True}),
        ("qwen3", {"adapter": {"rank": 8, "alpha": 8.0, **ROUTED}}),
        ("qwen3", {"adapter": {"rank": 4, "targets": ["q_proj", "down_proj"]}}),
        ("qwen3", {"reranking": {"pooling": "mean", "head": "listwise"}}),
        ("qwen3", {"reranking": {"pooling": "mean", "head": "cosine"}}),
        ("llama", {}),
        ("olmo2", {}),
        ("gemma", {}),
    ],
    ids=str,
)
def test_layer_by_layer_is_plain_autograd(
    family: str, changes: dict[str, Any], bases: Callable[[str], Path], data: dict[str, Path], tmp_path: Path
) -> None:
    """One backward pass through the whole model, for all frozen weights at once."""
    loss = {"listwise": "listwise", "cosine": "ranknet"}.get(changes.get("reranking", {}).get("head"), "group_softmax")
    content = tiny.experiment(bases(family), data, training__reranking__loss={"type": loss})
    config = tiny.parsed(content | {"model": content["model"] | {k: v for k, v in changes.items() if k == "reranking"}})
    model = tiny.build(bases(family), noise=0.05, **changes)
    spec, domains = tiny.train_spec(config, "joint_single"), tiny.domains(config)
    collator = build_collator(spec, model, domains)
    [_, real, _] = build_probe(spec, domains, collator, tmp_path).draw()
    batches = [batch for task in Task for batch in real[task]]
    losses = [lambda batch=batch: compute_loss(model, batch, config.training)[0] for batch in batches]
    found = dict(gradient_products(model, losses))

    weights = {index: [module.weight for module in group] for index, (_, group) in decoder_layers(model).items()}
    gradients: dict[int, list[Tensor]] = {index: [] for index in weights}
    for group in weights.values():
        for weight in group:
            weight.requires_grad_(True)
    for loss_of in losses:
        value = loss_of()
        for index, group in weights.items():
            whole = torch.autograd.grad(value, group, retain_graph=True)
            gradients[index].append(torch.cat([one.flatten() for one in whole]).double())
    assert sorted(found) == [0, 1, 2]
    for index, products in found.items():
        each = torch.stack(gradients[index])
        assert tiny.relative(products, each @ each.t()) < 1e-5


def test_blocks_of_rows_add_up(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(base, noise=0.05)
    losses = [lambda seed=seed: model.embed(tiny.batch(tiny.ids([5, 9], seed=seed)))[0, :7].sum() for seed in range(3)]
    whole = dict(gradient_products(model, losses))
    monkeypatch.setattr("unimoer.training.layers.BLOCK_BYTES", 4 * 32 * 3 * 5)
    for index, products in gradient_products(model, losses):
        assert tiny.relative(products, whole[index]) < 1e-6


def products(*gradients: Tensor) -> Tensor:
    each = torch.stack(gradients).double()
    return each @ each.t()


NO_NULL = torch.eye(2).double()


def conflict(embedding: tuple[Tensor, Tensor], reranking: tuple[Tensor, Tensor]) -> LayerConflict:
    return compare(products(*embedding, *reranking), NO_NULL)


def test_a_task_agrees_with_itself_and_contradicts_its_opposite() -> None:
    first, second = torch.randn(17), torch.randn(17)
    same = conflict((first, second), (first, second))
    assert same.cosine == pytest.approx(1, abs=1e-6)
    assert same.magnitude_ratio == pytest.approx(1)
    assert same.magnitude_similarity == pytest.approx(1)
    opposite = conflict((first, second), (-3 * first, -3 * second))
    assert opposite.cosine == pytest.approx(-1, abs=1e-6)
    assert opposite.magnitude_ratio == pytest.approx(1 / 3)
    assert opposite.magnitude_similarity == pytest.approx(2 * 3 / 10)


def test_one_batch_twice_is_perfectly_reliable_and_its_cosine_stays() -> None:
    embedding, reranking = torch.randn(40), torch.randn(40)
    found = conflict((embedding, embedding), (reranking, reranking))
    assert found.reliability_embedding == pytest.approx(1, abs=1e-6)
    assert found.cosine_corrected == pytest.approx(found.cosine, abs=1e-6)
    assert found.cosine == pytest.approx(cosine(embedding, reranking), abs=1e-6)


def test_correction_recovers_the_agreement_under_noise() -> None:
    """Two tasks that agree by 0.6, each half hidden under noise of the signal's own size."""
    torch.manual_seed(0)
    size = 20_000
    shared = torch.randn(size)
    other = 0.6 * shared + 0.8 * torch.randn(size)
    embedding, reranking = ((signal + torch.randn(size), signal + torch.randn(size)) for signal in (shared, other))
    found = conflict(embedding, reranking)
    assert found.reliability_embedding == pytest.approx(2 / 3, abs=0.03)
    assert found.cosine == pytest.approx(0.6 * 2 / 3, abs=0.03)
    assert found.cosine_corrected == pytest.approx(0.6, abs=0.04)


def test_the_ceiling_of_many_probes_stands_above_no_half_of_pure_noise() -> None:
    """Reliabilities are averaged as they are: cut at 0 before that, noise around 0 would be a ceiling well above it."""
    torch.manual_seed(0)
    halves = {task: (0.4 * torch.randn(4000).tanh()).tolist() for task in Task}
    found = ceiling(halves[Task.EMBEDDING], halves[Task.RERANKING]) or 0.0
    cut = [max(0.0, 2 * half / (1 + half)) for half in halves[Task.EMBEDDING]]
    assert sum(cut) / len(cut) > 0.15
    assert found < 0.03
    assert ceiling([0.5, 0.5], [1.0]) == pytest.approx(math.sqrt(2 / 3))
    assert ceiling([0.6, 0.4], [0.5]) == pytest.approx(2 / 3)
    assert ceiling([-0.2, 0.1], [0.5]) is None
    assert ceiling([], []) is None


def test_gradients_of_nothing_are_no_conflict() -> None:
    zero, some = torch.zeros(5), torch.ones(5)
    found = conflict((zero, zero), (some, some))
    assert (found.cosine, found.cosine_corrected, found.magnitude_ratio) == (0, None, 0)
    cancelled = conflict((some, -some), (some, some))
    assert cancelled.cosine_corrected is None
    assert cancelled.reliability_embedding == -1
    assert math.isfinite(cancelled.cosine)
    nearly = conflict((some, -0.9 * some + 0.1 * torch.arange(5)), (some, some))
    assert nearly.reliability_embedding >= -1


def test_shuffled_labels_are_positives_of_others_and_no_document_is_both() -> None:
    def sample(number: int, positive: str, negatives: tuple[str, ...]) -> Sample:
        return Sample(Example("d", f"q{number}", "text", (positive,), ()), positive, negatives)

    given = [
        sample(0, "a", ("x", "y")),
        sample(1, "b", ("x", "a")),
        sample(2, "c", ("a", "z")),
        sample(3, "a", ("y", "b")),
    ]
    found = shuffled_labels(given)
    assert [one.positive_id for one in found] == ["c", "a", "a", "b"]
    assert [one.negative_ids for one in found] == [("x", "y"), ("x", "b"), ("c", "z"), ("y", "a")]
    assert [one.example for one in found] == [one.example for one in given]


def test_both_tasks_of_a_probe_read_one_domain_and_all_domains_come_by_weight(
    experiment: Make, base: Path, tmp_path: Path
) -> None:
    config = tiny.parsed(experiment(training__probe={"every": 1, "batch_size": 4}, data__domains__garden__weight=3.0))
    probe = make_probe(config, tiny.build(base), tmp_path)
    read: list[str] = []
    for _ in range(16):
        domain, real, null = probe.draw()
        assert {batch.domain for both in (real, null) for halves in both.values() for batch in halves} == {domain}
        read.append(domain)
    assert read.count("garden") == 12
    assert all(read[start : start + 4].count("kitchen") == 1 for start in range(0, 16, 4))


def test_the_estimate_grows_with_the_batch_and_is_small_beside_full_gradients(
    base: Path, experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four sets of gradients of 4 billion parameters are 29 GB in bfloat16, before a single activation."""
    training = tiny.parsed(experiment()).training
    config = ModelConfig(base=str(base))

    def estimate(batch_size: int) -> int:
        probe = training.probe.model_copy(update={"batch_size": batch_size})
        return estimate_probe_bytes(config, training.model_copy(update={"probe": probe}), 2)

    blocks = 2 * BLOCK_BYTES
    assert estimate(32) - blocks == 2 * (estimate(16) - blocks)
    monkeypatch.setattr("unimoer.training.probe.read_architecture", lambda _: ARITHMETIC["Qwen3-4B"])
    assert 2e9 < estimate(4) < estimate(16) < 29e9


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
    # All adapted layers, counted from 0; no hook has stayed.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
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
    domains = {"kitchen": tiny.domains(config)["kitchen"]}
    run = build_samplers(tiny.train_spec(config, "joint_single"), domains)
    for task in Task:
        orders = []
        for sampler in (probe.samplers["kitchen"][task], run[task]):
            batches = [sampler.next() for _ in range(8)]
            orders.append([(domain, sample.example.query_id) for domain, samples in batches for sample in samples])
        assert orders[0][:4] != orders[1][:4]
        assert set(orders[0]) & set(orders[1])
