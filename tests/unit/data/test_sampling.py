"""The order of examples: a function of the seed, fair to domains and examples, restored from a few numbers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimoer.data.sampling import DomainOrder, SamplerConfig, TaskSampler
from unimoer.errors import UserError
from unimoer.types import Example, Task

DOCUMENTS = [f"d{number}" for number in range(20)]


def examples(domain: str, count: int = 7, mined: int = 5) -> list[Example]:
    return [
        Example(
            domain,
            f"{domain}{number}",
            "text",
            positive_ids=(f"d{number}", f"d{number + 1}"),
            negative_ids=tuple(DOCUMENTS[15 : 15 + mined]),
        )
        for number in range(count)
    ]


def sampler(seed: int = 1, task: Task = Task.EMBEDDING, **changes: Any) -> TaskSampler:
    pool = {"a": examples("a"), "b": examples("b", 11)}
    settings = {"batch_size": 4, "negatives": 3, "random_until": 5} | changes
    return TaskSampler(
        task, pool, dict.fromkeys(pool, DOCUMENTS), {"a": 1.0, "b": 3.0}, SamplerConfig(**settings), seed
    )


def draw(source: TaskSampler, batches: int) -> list[Any]:
    return [source.next() for _ in range(batches)]


@settings(deadline=None, max_examples=30)
@given(before=st.integers(0, 30), seed=st.integers(0, 2**40))
def test_state_goes_through_json_and_restores_the_stream(before: int, seed: int) -> None:
    source = sampler(seed)
    draw(source, before)
    state = json.loads(json.dumps(source.state_dict()))
    expected = draw(source, 12)
    twin = sampler(seed)
    twin.load_state_dict(state)
    assert twin.batches == before
    assert draw(twin, 12) == expected


def test_a_saved_state_does_not_move_with_the_sampler() -> None:
    source = sampler()
    state = source.state_dict()
    frozen = json.dumps(state)
    draw(source, 3)
    assert json.dumps(state) == frozen


def test_the_stream_is_a_function_of_seed_and_task() -> None:
    first = draw(sampler(1), 10)
    assert draw(sampler(1), 10) == first
    assert draw(sampler(2), 10) != first
    assert draw(sampler(1, Task.RERANKING), 10) != first


def test_every_example_comes_once_an_epoch_and_in_another_order_in_the_next() -> None:
    source = sampler(batch_size=1)
    order = [sample.example.query_id for domain, [sample] in draw(source, 400) if domain == "b"]
    epochs = [order[start : start + 11] for start in range(0, 220, 11)]
    assert all(sorted(epoch) == sorted(f"b{number}" for number in range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15


def test_domains_have_their_shares_at_every_seed_and_never_mix() -> None:
    orders = []
    for seed in range(20):
        batches = draw(sampler(seed), 40)
        assert all({sample.example.domain for sample in samples} == {domain} for domain, samples in batches)
        orders.append([domain for domain, _ in batches])
        assert all(orders[-1][start : start + 4].count("a") == 1 for start in range(0, 40, 4))
    assert len({tuple(order) for order in orders}) == 20


weights = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.05, 5.0), min_size=1)


@settings(deadline=None, max_examples=80)
@given(weights=weights, seed=st.integers(0, 2**40), cycles=st.integers(1, 12))
def test_counts_follow_the_shares(weights: dict[str, float], seed: int, cycles: int) -> None:
    order = DomainOrder(weights, str(seed))
    assert order.cycle == pytest.approx(sum(weights.values()) / min(weights.values()), abs=1 + 1e-6)
    counts: Counter[str] = Counter()
    for position in range(cycles * order.cycle):
        counts[order.at(position)] += 1
        done = position + 1
        for domain, share in order.shares.items():
            bound = 1 if done % order.cycle == 0 else 1 + order.cycle * share
            assert abs(counts[domain] - done * share) < bound


@settings(deadline=None, max_examples=30)
@given(weights=weights, seed=st.integers(0, 2**40), positions=st.lists(st.integers(0, 150), min_size=1, max_size=8))
def test_a_domain_is_a_function_of_position_and_seed(
    weights: dict[str, float], seed: int, positions: list[int]
) -> None:
    reference = DomainOrder(weights, str(seed))
    stream = [reference.at(position) for position in range(151)]
    jumping = DomainOrder(dict(reversed(weights.items())), str(seed))
    assert [jumping.at(position) for position in positions] == [stream[position] for position in positions]


def test_every_seed_of_the_audited_setting_shows_all_domains_alike() -> None:
    """44 reranking batches of four domains: drawn independently, one domain had 4 of them and another 17."""
    pool = {domain: examples(domain) for domain in ("attack", "code", "cwe", "hpo")}
    for seed in range(30):
        source = TaskSampler(
            Task.RERANKING,
            pool,
            dict.fromkeys(pool, DOCUMENTS),
            dict.fromkeys(pool, 1.0),
            SamplerConfig(1, 0, 0),
            seed,
        )
        assert set(Counter(domain for domain, _ in draw(source, 44)).values()) == {11}


def test_negatives_are_random_first_and_mined_afterwards() -> None:
    source = sampler(random_until=50)
    early, late = draw(source, 50), draw(source, 50)
    mined = set(DOCUMENTS[15:])
    easy = {key for _, samples in early for sample in samples for key in sample.negative_ids}
    hard = {key for _, samples in late for sample in samples for key in sample.negative_ids}
    assert easy - mined
    assert hard == mined


def test_negatives_are_distinct_and_never_positive() -> None:
    for _, samples in draw(sampler(negatives=6, random_until=10), 40):
        for sample in samples:
            assert len(set(sample.negative_ids)) == 6
            assert not set(sample.negative_ids) & set(sample.example.positive_ids)
            assert sample.positive_id in sample.example.positive_ids


def test_a_short_list_of_mined_negatives_is_filled_up_at_random() -> None:
    pool = {"a": examples("a", mined=2)}
    source = TaskSampler(Task.RERANKING, pool, {"a": DOCUMENTS}, {"a": 1.0}, SamplerConfig(2, 4, 0), 1)
    for _, samples in draw(source, 20):
        for sample in samples:
            assert set(sample.negative_ids) > set(DOCUMENTS[15:17])


def test_every_positive_has_its_turn() -> None:
    drawn = {(s.example.query_id, s.positive_id) for _, samples in draw(sampler(), 200) for s in samples}
    assert {("a0", "d0"), ("a0", "d1")} <= drawn


def test_no_negatives_when_none_are_wanted() -> None:
    assert all(sample.negative_ids == () for _, samples in draw(sampler(negatives=0), 5) for sample in samples)


@pytest.mark.timeout(5)
def test_a_corpus_with_too_few_negatives_is_an_error_and_no_endless_search() -> None:
    pool = {"a": [Example("a", "q", "text", ("d0",), ("d1",))]}
    with pytest.raises(UserError, match=r"data\.domains\.a: .*negatives"):
        source = TaskSampler(Task.RERANKING, pool, {"a": ["d0", "d1"]}, {"a": 1.0}, SamplerConfig(1, 3, 0), 1)
        source.next()


def test_relatives_of_a_positive_are_never_drawn() -> None:
    """d0 to d9 are one family, d10 to d14 another, the rest are alone."""
    families = {f"d{number}": "x" if number < 10 else "y" for number in range(15)}
    pool = {"a": [Example("a", "q", "text", ("d0", "d19"), ())], "b": [Example("b", "q", "text", ("d12",), ("d1",))]}
    source = TaskSampler(
        Task.EMBEDDING,
        pool,
        dict.fromkeys(pool, DOCUMENTS),
        dict.fromkeys(pool, 1.0),
        SamplerConfig(4, 9, 50),
        1,
        dict.fromkeys(pool, families),
    )
    drawn: dict[str, set[str]] = {"a": set(), "b": set()}
    for domain, samples in draw(source, 100):
        drawn[domain].update(key for sample in samples for key in sample.negative_ids)
    assert drawn == {"a": set(DOCUMENTS[10:19]), "b": {*DOCUMENTS[:10], *DOCUMENTS[15:]}}


@pytest.mark.timeout(5)
def test_a_family_that_leaves_too_few_negatives_is_an_error_and_no_endless_search() -> None:
    pool = {"a": [Example("a", "q", "text", ("d0",), ()), Example("a", "r", "text", ("d19",), ())]}
    families = {"a": dict.fromkeys(DOCUMENTS[:18], "x")}
    settings = SamplerConfig(1, 3, 9)
    with pytest.raises(UserError, match=r"data\.domains\.a: 20 documents .* training\.reranking\.negatives to 2"):
        TaskSampler(Task.RERANKING, pool, {"a": DOCUMENTS}, {"a": 1.0}, settings, 1, families)
