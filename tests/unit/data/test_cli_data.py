"""The verbs of `unimoer data`, called as the command line calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from unimoer import assets
from unimoer.assets import ASSETS
from unimoer.assets.table import OPT_IN, OptIn
from unimoer.cli import data as cli
from unimoer.data import load_dataset
from unimoer.data.embedded import DOMAINS
from unimoer.errors import UserError
from unimoer.types import RetrievalDataset

runner = CliRunner()


def test_list_shows_counts_and_every_notice(cache: Path) -> None:
    result = runner.invoke(cli.app, ["list"])
    assert result.exit_code == 0
    for domain in DOMAINS.values():
        assert str(domain.documents) in result.output
        assert f"{domain.name}: {domain.attribution}. {domain.licence}." in result.output.splitlines()
    assert "yes" not in result.output
    wheel = assets.wheel_path(ASSETS["cwe"])
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    assert runner.invoke(cli.app, ["list"]).output.count("yes") == 1


def test_check_of_sound_data_prints_its_sizes(folder: Path) -> None:
    result = runner.invoke(cli.app, ["check", str(folder)])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "fruit: 5 documents, 3 queries",
        "train: 2 queries with relevant documents, 3 judgements",
        "test: 1 queries with relevant documents, 1 judgements",
        "median words: query 2, document 8",
        "no problems",
    ]


def test_check_prints_every_problem_on_one_line_and_exits_with_2(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("{\n" + '{"_id": "d1", "text": "again"}\n')
    result = runner.invoke(cli.app, ["check", str(folder)])
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[0] == "fruit: 5 documents, 3 queries"
    assert lines[-1] == "2 problems"
    assert lines[-3].startswith(f"{folder}/corpus.jsonl:6: is not valid JSON: ")
    assert lines[-2] == f"{folder}/corpus.jsonl:7: duplicate document id 'd1'"
    missing = runner.invoke(cli.app, ["check", "nowhere/at/all"])
    assert (missing.exit_code, missing.output) == (2, "folder 'nowhere/at/all' does not exist\n1 problem\n")


def test_check_counts_lapses_as_warnings_and_refuses_them_when_strict(folder: Path) -> None:
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q3\tgone\t1\nq3\tlost\t1\n")
    lenient = runner.invoke(cli.app, ["check", str(folder)])
    assert lenient.exit_code == 0
    where = f"{folder}/qrels/test.tsv"
    assert lenient.output.splitlines()[-2:] == [
        f"warning: {where}:3: document 'gone' is judged but is not in the corpus (left out; 2 such judgements)",
        "no problems",
    ]
    strict = runner.invoke(cli.app, ["check", "--strict", str(folder)])
    assert strict.exit_code == 2
    assert strict.output.splitlines()[-2:] == [
        f"{where}:3: document 'gone' is judged but is not in the corpus (2 such lines)",
        "1 problem",
    ]


def test_build_writes_a_folder_and_refuses_to_overwrite(
    dataset: RetrievalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "load_embedded", lambda name: dataset)
    output = tmp_path / "out"
    arguments = ["build", "attack", "--output", str(output)]
    assert runner.invoke(cli.app, arguments).exit_code == 0
    assert load_dataset(output).fingerprint == dataset.fingerprint
    refused = runner.invoke(cli.app, arguments)
    assert isinstance(refused.exception, UserError)
    assert "exists and is not empty; choose a new folder for --output" in str(refused.exception)
    unknown = runner.invoke(cli.app, ["build", "atack", "--output", str(output)])
    assert isinstance(unknown.exception, UserError)
    assert "did you mean 'attack'" in str(unknown.exception)


def test_list_names_the_opt_in_models_with_size_and_licence(cache: Path) -> None:
    lines = runner.invoke(cli.app, ["list"]).output.splitlines()
    for item in OPT_IN.values():
        [line] = [line for line in lines if line.startswith(f"opt-in {item.name}: ")]
        assert item.licence in line
        assert f"Not cached; unimoer data fetch {item.name} ({item.megabytes} MB)" in line


@pytest.fixture
def fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What the command hands on, as (name, consent); nothing is downloaded."""
    calls: list[tuple[str, bool]] = []

    def fetch(item: OptIn, *, accept_terms: bool) -> Path:
        calls.append((item.name, accept_terms))
        return Path("somewhere")

    monkeypatch.setattr(cli, "fetch_model", fetch)
    monkeypatch.setattr(cli, "fetch", lambda asset: pytest.fail(f"{asset.name} was fetched"))
    monkeypatch.setattr(cli, "terms_text", lambda terms: "Be good.")
    monkeypatch.delenv("UNIMOER_ACCEPT_TERMS", raising=False)
    return calls


def test_fetch_of_a_name_fetches_it_alone(fetched: list[tuple[str, bool]]) -> None:
    result = runner.invoke(cli.app, ["fetch", "all-minilm-l6-v2"])
    assert (result.exit_code, result.output) == (0, "all-minilm-l6-v2: somewhere\n")
    assert fetched == [("all-minilm-l6-v2", False)]
    unknown = runner.invoke(cli.app, ["fetch", "all-minilm-l6-v2", "gemma3"])
    assert isinstance(unknown.exception, UserError)
    assert str(unknown.exception) == "unknown opt-in model 'gemma3'; did you mean 'gemma3-270m'?"
    assert len(fetched) == 1


@pytest.mark.parametrize(("answer", "consent"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_fetch_shows_the_terms_and_asks(
    fetched: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, answer: str, consent: bool
) -> None:
    monkeypatch.setattr(cli, "_at_a_terminal", lambda: True)
    result = runner.invoke(cli.app, ["fetch", "gemma3-270m"], input=answer)
    assert result.output.index("Be good.") < result.output.index("Do you accept these terms for gemma3-270m?")
    assert fetched == [("gemma3-270m", consent)]


def test_fetch_without_a_terminal_needs_the_flag_or_the_environment(
    fetched: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.invoke(cli.app, ["fetch", "gemma3-270m"])
    result = runner.invoke(cli.app, ["fetch", "gemma3-270m", "--accept-terms"])
    assert "Do you accept" not in result.output
    monkeypatch.setenv("UNIMOER_ACCEPT_TERMS", "gemma3-270m")
    runner.invoke(cli.app, ["fetch", "gemma3-270m"])
    assert [consent for _, consent in fetched] == [False, True, True]
    nameless = runner.invoke(cli.app, ["fetch", "--accept-terms"])
    assert isinstance(nameless.exception, UserError)
    assert "name the models whose terms you accept" in str(nameless.exception)


@pytest.mark.assets
def test_fetch_verifies_what_is_cached() -> None:
    result = runner.invoke(cli.app, ["fetch"])
    assert result.exit_code == 0
    for asset in ASSETS.values():
        assert f"verified {asset.requirement}: " in result.output
