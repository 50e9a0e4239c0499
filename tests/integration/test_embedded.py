"""The shipped configurations over the embedded model and data, made small enough to run in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from unimoer.cli import main
from unimoer.files import read_json

DOMAINS = ("attack", "cwe", "hpo", "code")
SMALL = [
    "model.layers=2",
    "training.embedding.steps=2",
    "training.reranking.steps=2",
    "training.embedding.batch_size=4",
    "training.reranking.batch_size=2",
    "training.probe.every=4",
    "training.probe.batch_size=4",
    "seeds=[42]",
    *(f"data.domains.{name}.{key}" for name in DOMAINS for key in ("queries=12", "documents=30")),
    "evaluation.suites.test.queries=3",
    "evaluation.suites.test.documents=30",
    "evaluation.suites.test.rerank_depth=5",
    "evaluation.latency_requests=2",
]


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("tier", ["quick", "full", "e2rank"])
def test_a_tier_runs_from_end_to_end(tier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "kill-gate", "--config", tier, "--output", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *(word for setting in SMALL for word in ("--set", setting))])
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0, err) == (0, "")
    decision = read_json(tmp_path / "out" / "decision.json")
    assert decision["verdict"] in out
    declared = read_json(tmp_path / "out" / "plan.json")["declared"]
    assert declared["domains"].keys() == declared["suites"]["test"]["collections"].keys() == set(DOMAINS)
    # Two steps teach nothing, and the decision has to say so.
    assert decision["preliminary"] is True
    assert (tmp_path / "out" / "report.html").is_file()
