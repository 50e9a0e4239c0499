"""On a GPU: the numbers of the CPU, exact resumption, a whole study, also with several runs on one card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from unimoer.config import RunSpec
from unimoer.executors import build_executor
from unimoer.library import UniMoER
from unimoer.model.checkpoint import load_model
from unimoer.model.export import export_model
from unimoer.model.unified import UnifiedModel
from unimoer.runs import execute, ignore, is_done
from unimoer.runs.folder import checkpoint_folder
from unimoer.studies.planning import single_run
from unimoer.training.objectives import compute_loss
from unimoer.types import EmbeddingBatch, Task

Make = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

EXPERTS = {"embedding": 2, "reranking": 2, "shared": 4}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8, "alpha": 16.0},
    "sequence": {"rank": 8, "experts": EXPERTS, "router": {"type": "sparsegen"}},
    "token": {"rank": 8, "experts": EXPERTS, "router": {"type": "sparsegen", "granularity": "token"}},
    "causal": {"rank": 8, "experts": EXPERTS, "router": {"type": "softmax", "granularity": "causal"}},
    "told": {"rank": 8, "experts": EXPERTS, "router": {"type": "sparsegen", "task_aware": True}},
    "switch": {"rank": 8, "experts": {"embedding": 4, "reranking": 4}, "router": {"type": "hard"}},
}


@pytest.mark.parametrize("family", [*tiny.FUSED, *tiny.HOSTED])
def test_every_family_gives_what_the_cpu_gives(family: str, bases: Callable[[str], Path]) -> None:
    agree(tiny.model_config(bases(family)))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_gives_what_the_cpu_gives(adapter: str, attention: str, base: Path) -> None:
    agree(
        tiny.model_config(
            base,
            adapter=ADAPTERS[adapter],
            embedding={"pooling": "mean", "attention": attention},
            reranking={"pooling": "mean", "attention": attention, "head": "linear"},
        )
    )


def agree(config: Any) -> None:
    """Vectors, scores and the gradients of whatever is trained, in float32."""
    found = {}
    batch = tiny.batch(tiny.ids([40, 23, 64, 5]), "right", 16)
    for name in ("cpu", "cuda"):
        model = UnifiedModel(config, torch.device("cpu"))
        tiny.stir(model, 0.1)
        model.to(name)
        vectors, scores = model.embed(batch.to(name)), model.score(batch.to(name))
        weights = torch.linspace(-1, 1, vectors.shape[1], device=name)
        ((vectors * weights).sum() + scores.square().sum()).backward()
        grads = {key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None}
        found[name] = {"vectors": vectors.detach().cpu(), "scores": scores.detach().cpu(), **grads}
    assert found["cpu"].keys() == found["cuda"].keys()
    for key, expected in found["cpu"].items():
        if expected.norm() > 0:
            assert tiny.relative(found["cuda"][key], expected) < 1e-4, key


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("adapter", ["lora", "sequence", "switch"])
def test_a_training_batch_costs_what_it_costs_on_the_cpu(
    adapter: str, padding: str, experiment: Make, base: Path
) -> None:
    """On a GPU queries and documents of unrouted models pass in one batch."""
    settings = tiny.parsed(experiment()).training
    batch = EmbeddingBatch(
        "kitchen",
        tiny.batch(tiny.ids([4, 9, 6]), padding),
        tiny.batch(tiny.ids([30, 12, 20], seed=1), padding, 8),
        torch.eye(3, dtype=torch.bool),
    )
    found = {}
    for name in ("cpu", "cuda"):
        model = UnifiedModel(tiny.model_config(base, adapter=ADAPTERS[adapter]), torch.device("cpu"))
        tiny.stir(model, 0.1)
        loss, _ = compute_loss(model.to(name), batch, settings)
        loss.backward()
        grads = {key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None}
        found[name] = {"loss": loss.detach().cpu(), **grads}
    assert found["cpu"].keys() == found["cuda"].keys()
    for key, expected in found["cpu"].items():
        if expected.norm() > 0:
            assert tiny.relative(found["cuda"][key], expected) < 1e-4, key


def job(content: dict[str, Any], folder: Path) -> tuple[RunSpec, Path]:
    spec = single_run(tiny.parsed(content), torch.device("cuda"))
    return spec, folder / spec.folder


@pytest.mark.parametrize("arm", ["joint_single", "joint_moe", "hard_switch", "famo"])
def test_a_stopped_run_ends_in_the_same_bits(arm: str, experiment: Make, tmp_path: Path) -> None:
    """Dropout's random numbers, which a GPU draws for itself, are among what is resumed."""
    content = experiment(arms=[arm], model__adapter={"rank": 12, "alpha": 24.0, "dropout": 0.1})
    whole, stopped = job(content, tmp_path / "whole"), job(content, tmp_path / "stopped")
    execute(*whole)

    class StoppedError(Exception):
        pass

    def stop(event: Any) -> None:
        if event.detail.startswith("step 3/"):
            raise StoppedError

    with pytest.raises(StoppedError):
        execute(*stopped, stop)
    execute(*stopped)
    assert all(is_done(folder, spec) for spec, folder in (whole, stopped))
    weights = [(checkpoint_folder(folder) / "adapter.safetensors").read_bytes() for _, folder in (whole, stopped)]
    assert weights[0] == weights[1]


def test_a_study_with_two_runs_at_a_time_on_one_card(experiment: Make, tmp_path: Path) -> None:
    """Every kind of router, in bfloat16; serving costs and the report's provenance name the card."""
    content = experiment(
        arms=["emb_only", "rank_only", "joint_single", "hard_switch", "moe_task", "joint_moe", "moe_token"],
        model__dtype="bfloat16",
        model__adapter={"rank": 12, "alpha": 24.0},
    )
    folder = tmp_path / "study"
    tiny.run_study(content, folder, device=torch.device("cuda"), executor=build_executor("local", 2))
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["verdict"] in ("PASS", "MARGINAL", "FAIL")
    environments = [json.loads(file.read_text()) for file in folder.glob("runs/*/env.json")]
    assert {one["hardware"]["gpu"] for one in environments} == {torch.cuda.get_device_name()}
    statuses = [json.loads(file.read_text()) for file in folder.glob("runs/*/status.json")]
    served = [one["serving"] for one in statuses if one["serving"]]
    assert served and all(one["embedding_ms"] or one["reranking_ms"] for one in served)


def test_a_run_of_a_gpu_is_exported_and_used(experiment: Make, tmp_path: Path) -> None:
    spec, folder = job(experiment(arms=["joint_single"]), tmp_path)
    execute(spec, folder, ignore)
    texts = ["the red kettle", "where is the blue plate"]
    on_gpu, on_cpu = (UniMoER.load(folder, device=name) for name in ("cuda", "cpu"))
    found, expected = (torch.from_numpy(model.encode(texts, "document")) for model in (on_gpu, on_cpu))
    assert tiny.relative(found, expected) < 1e-4
    pairs = [("red kettle", text) for text in texts]
    assert tiny.relative(torch.from_numpy(on_gpu.score(pairs)), torch.from_numpy(on_cpu.score(pairs))) < 1e-4
    model = load_model(checkpoint_folder(folder), torch.device("cuda"))
    (merged,) = export_model(model, tmp_path / "merged", form="merged", tasks=(Task.EMBEDDING,))
    assert (merged / "model.safetensors").exists()
