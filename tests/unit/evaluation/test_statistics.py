"""Calibration of the intervals and tests with seed noise in the simulation, and their exact cases.

Tolerances of simulated rates are four binomial standard errors, sqrt(p (1 - p) / trials), beyond the band that is
claimed: about one failure in 30,000 for a method at its edge, and the generators are seeded.
"""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unimoer.evaluation.statistics import Array, Sample, Spread, bonferroni, holm, sign_flip, widened
from unimoer.evaluation.statistics.calibration import SYSTEMS, Design, simulate, table


def within(rate: float, low: float, high: float, trials: int) -> bool:
    def slack(expected: float) -> float:
        return 4 * math.sqrt(expected * (1 - expected) / trials)

    return low - slack(low) <= rate <= high + slack(high)


def scores(generator: np.random.Generator, seeds: int = 3, queries: int = 40, datasets: int = 2) -> dict[str, Array]:
    return {f"d{n}": generator.uniform(0.2, 1.0, (seeds, queries + 5 * n)) for n in range(datasets)}


def check(design: Design, trials: int) -> None:
    rates = simulate(design, trials, draws=99)
    for name in ("score", "difference", "tir"):
        assert within(rates[name], 0.935, 0.965, trials), (name, rates)
    assert within(rates["recovery"], 0.935, 0.98, trials), rates
    assert within(rates["rejected"], 0.04, 0.06, trials), rates


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.0), (3, 0.03), (5, 0.01)])
def test_coverage_and_rejection_with_seed_noise(seeds: int, seed_sd: float) -> None:
    check(Design(seeds, queries=60, seed_sd=seed_sd), trials=250)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.01, 0.03])
def test_coverage_and_rejection_with_seed_noise_closely(seeds: int, seed_sd: float) -> None:
    check(Design(seeds, queries=300, seed_sd=seed_sd), trials=1000)


def test_sign_flip_speaks_of_trained_models_only() -> None:
    """Under noise of training it rejects equal arms far too often, as documented; the p-value does not."""
    rates = simulate(Design(3, queries=150, seed_sd=0.03), trials=150, draws=99)
    assert rates["rejected_models"] > 0.3
    assert within(rates["rejected"], 0.04, 0.06, 150)


def test_the_simulation_has_the_expectations_it_claims() -> None:
    design = Design(3, queries=2000, seed_sd=0.02)
    generator = np.random.default_rng(0)
    drawn = [design.draw(generator) for _ in range(60)]
    for system in SYSTEMS:
        means = [float(Sample.of(found[system]).mean) for found in drawn]
        assert np.mean(means) == pytest.approx(design.truth()[system], abs=4 * np.std(means) / math.sqrt(60))
    rows = [row for found in drawn for row in Sample.of(found["joint"]).by_seed]
    # 180 values, of which those of an experiment share queries: queries add 0.005^2.
    assert np.std(rows) == pytest.approx(0.02, rel=0.25)
    assert list(table([Design(3, 10, 0.0)], trials=5))[-1].count("|") == 11


@pytest.mark.parametrize("seed_df", [2, 4])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_critical_values_hold_their_level_for_every_true_share(seed_df: int, share: float) -> None:
    """Exactly, by integrating over what the seeds may show: no simulation. Satterthwaite's rule fails at 0.9."""
    quantiles = (np.arange(4000) + 0.5) / 4000
    seen = share * stats.chi2.ppf(quantiles, seed_df) / seed_df
    covered, by_satterthwaite = [], []
    for part in seen:
        spread = Spread(float(part), 1.0 - share, seed_df, 1e6)
        covered.append(2 * stats.norm.cdf(spread.critical(0.05) * math.sqrt(spread.variance)) - 1)
    df = seed_df * (seen + 1 - share) ** 2 / seen**2
    by_satterthwaite = 2 * stats.norm.cdf(stats.t.ppf(0.975, df) * np.sqrt(seen + 1 - share)) - 1
    assert 0.9405 < np.mean(covered) < 0.9575
    if (seed_df, share) == (2, 0.9):
        assert np.mean(by_satterthwaite) < 0.93
    # Rejections of the truth are power against no effect.
    assert Spread(share, 1.0 - share, seed_df, 1e6).power(0.0, 0.05) == pytest.approx(1 - np.mean(covered), abs=2e-3)


def test_pure_cases_are_students_t() -> None:
    assert Spread(1.0, 0.0, 2, 100).critical(0.05) == pytest.approx(stats.t.ppf(0.975, 2))
    assert Spread(0.0, 1.0, 2, 30).critical(0.05) == pytest.approx(stats.t.ppf(0.975, 30))
    assert Spread(1.0, 0.0, 2, 100).p_value(3.0) == pytest.approx(2 * stats.t.sf(3.0, 2))


def test_one_seed_is_the_t_test_over_queries() -> None:
    generator = np.random.default_rng(1)
    first, second = (scores(generator, seeds=1, datasets=1) for _ in range(2))
    difference = Sample.of(first) - Sample.of(second)
    expected = stats.ttest_1samp((first["d0"] - second["d0"])[0], 0.0)
    found = difference.interval()
    assert found.over == "queries"
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert difference.p_value() == pytest.approx(expected.pvalue, abs=1e-9)


def test_seeds_without_residuals_are_the_t_test_over_seeds() -> None:
    generator = np.random.default_rng(2)
    rows = generator.normal(0.05, 0.02, 4)
    difference = Sample.of({"d": np.repeat(rows[:, None], 30, axis=1)})
    expected = stats.ttest_1samp(rows, 0.0)
    assert difference.p_value() == pytest.approx(expected.pvalue, abs=1e-9)
    assert difference.interval().high == pytest.approx(expected.confidence_interval().high)
    assert difference.interval().over == "seeds and queries"


def test_components_are_unbiased() -> None:
    generator = np.random.default_rng(3)
    found = []
    for _ in range(400):
        values = (
            generator.normal(0, 0.3, (1, 20)) + generator.normal(0, 0.1, (3, 1)) + generator.normal(0, 0.2, (3, 20))
        )
        components = Sample.of({"d": values}).components
        found.append([components.total, components.between[0], components.residual[0], components.spread().variance])
    error = 4 * np.std(found, axis=0) / math.sqrt(len(found))
    truth = np.array([0.01 + 0.04 / 20, 0.09, 0.04, (0.01 + 0.04 / 20) / 3 + 0.09 / 20])
    assert (np.abs(np.mean(found, axis=0) - truth) < error).all()


def test_copies_of_a_seed_carry_no_more_information_than_one() -> None:
    generator = np.random.default_rng(4)
    one = scores(generator, seeds=1)
    three = {name: np.repeat(values, 3, axis=0) for name, values in one.items()}
    assert Sample.of(three).interval().low == pytest.approx(Sample.of(one).interval().low)


def test_ratio_is_that_of_means_and_its_interval_agrees_with_the_test() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        specialist, joint = Sample.of(scores(generator)), Sample.of(scores(generator))
        ratio = joint.tir(specialist)
        assert ratio.mean == pytest.approx(100 * (specialist.mean - joint.mean) / specialist.mean)
        assert ratio.by_seed == pytest.approx(100 * (1 - joint.by_seed / specialist.by_seed))
        assert ratio.mean != pytest.approx(float(ratio.by_seed.mean()), rel=1e-9), "a mean of ratios is another number"
        assert ratio.interval(1 - ratio.p_value() - 1e-6).excludes_zero
        assert not ratio.interval(1 - ratio.p_value() + 1e-6).excludes_zero
        assert Sample.average([ratio]).mean == pytest.approx(ratio.mean)
    # As a term of sums it is its linear approximation, close for a denominator that is well known.
    base = generator.uniform(0.4, 1.0, (1, 2000))
    specialist, joint = (Sample.of({"d": base + generator.normal(0, 0.1, (1, 2000))}) for _ in range(2))
    exact, linear = joint.tir(specialist).interval(), Sample.average([joint.tir(specialist)]).interval()
    assert (linear.low, linear.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_ratio_interval_is_fiellers_closed_form_for_one_seed() -> None:
    generator = np.random.default_rng(6)
    top, bottom = generator.normal(0.5, 1, (1, 200)), generator.normal(0.4, 1, (1, 200))
    found = Sample.of({"d": top}).ratio(Sample.of({"d": bottom})).interval()
    t2 = stats.t.ppf(0.975, 199) ** 2 / 200
    (a, b), (_, d) = np.cov(top[0], bottom[0])
    n, m = top.mean(), bottom.mean()
    roots = np.sort(np.roots([m**2 - t2 * d, -2 * (n * m - t2 * b), n**2 - t2 * a]))
    assert (found.low, found.high) == pytest.approx(tuple(roots), rel=1e-6)


def test_ratio_without_a_denominator_has_no_bounds() -> None:
    generator = np.random.default_rng(7)
    top, noise = Sample.of(scores(generator)), Sample.of({n: v - 0.59 for n, v in scores(generator).items()})
    found = top.ratio(noise).interval()
    assert (found.low, found.high) == (-math.inf, math.inf) or math.isnan(found.estimate)
    nothing = Sample.of({"d": np.zeros((3, 5))})
    found = nothing.tir(nothing).interval()
    assert math.isnan(found.estimate) and math.isnan(found.low) and not found.excludes_zero
    one_query = Sample.of({"d": np.full((3, 1), 0.5)})
    assert one_query.interval().high == math.inf and one_query.p_value() == 1.0


def test_systems_without_noise_are_exact() -> None:
    small, large = np.full((3, 10), 0.2), np.full((3, 1000), 0.8)
    specialist = Sample.of({"small": small, "large": large})
    assert specialist.mean == pytest.approx(0.5), "data sets have the same weight, whatever their size"
    found = Sample.of({"small": small, "large": large * 0.9}).tir(specialist).interval()
    assert (found.low, found.estimate, found.high) == pytest.approx((8.0, 8.0, 8.0))
    assert (specialist - specialist).p_value() == 1.0
    assert Sample.of({"small": small, "large": large}, ["small"]).mean == pytest.approx(0.2)


def test_averages_of_tasks_pair_shared_queries() -> None:
    generator = np.random.default_rng(8)
    first = Sample.of(scores(generator))
    assert Sample.average([first, -first]).interval().high == pytest.approx(0.0, abs=1e-12)
    other = Sample.of({"elsewhere": generator.uniform(size=(3, 9))})
    both = Sample.average([first, other])
    assert both.mean == pytest.approx((first.mean + other.mean) / 2)
    assert both.by_seed == pytest.approx((first.by_seed + other.by_seed) / 2)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_the_detectable_effect_is_detected_with_its_power(seeds: int, seed_sd: float) -> None:
    """With components known: those of a large simulation stand in for the estimate."""
    generator = np.random.default_rng(9)

    def draw(seeds: int, queries: int) -> Array:
        values = generator.normal(0, 0.3, (1, queries)) + generator.normal(0, 0.2, (seeds, queries))
        return values + generator.normal(0, seed_sd, (seeds, 1))

    plan = Sample.of({"d": draw(2000, 2000)}).components.planned(seeds, 50)
    effect = plan.detectable(0.05, 0.8)
    assert plan.power(effect, 0.05) == pytest.approx(0.8, abs=1e-6)
    found = [Sample.of({"d": draw(seeds, 50) + effect}).p_value() < 0.05 for _ in range(600)]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 600) + 0.02)


def test_required_numbers_settle_a_line_and_none_where_nothing_helps() -> None:
    generator = np.random.default_rng(10)
    base = generator.uniform(0.3, 0.9, (1, 100))
    many_queries = {"d": base + 0.01 + generator.normal(0, 0.2, (1, 100)) + generator.normal(0, 1e-4, (3, 1))}
    sample = Sample.of(many_queries) - Sample.of({"d": np.repeat(base, 3, axis=0)})
    needed = sample.required(sample.mean - 0.02)
    assert needed.seeds is None, "the queries at hand are the limit, however many seeds"
    assert needed.queries is not None and needed.queries > 100
    plan = sample.components
    assert plan.planned(queries=needed.queries).power(0.02, 0.05) >= 0.8
    assert plan.planned(queries=needed.queries - 1).power(0.02, 0.05) < 0.8
    assert sample.mde() > 0.02

    noisy = Sample.of(
        {"d": np.repeat(np.array([[0.1], [0.0], [-0.09]]), 100, axis=1) + generator.normal(0, 0.01, (1, 100))}
    )
    needed = noisy.required(noisy.mean + 0.05)
    assert needed.queries is None, "seeds are the limit, however many queries"
    assert needed.seeds is not None and needed.seeds > 3
    assert noisy.required(noisy.mean).seeds is None, "nothing tells a value from itself"
    one = Sample.of({"d": base}).required(0.5)
    assert one.seeds is None and one.queries is not None


def test_sign_flip_p_values_are_uniform_when_queries_are_the_noise() -> None:
    generator = np.random.default_rng(11)
    p_values = [sign_flip([generator.normal(size=40)], draws=499) for _ in range(400)]
    assert stats.kstest(p_values, "uniform").pvalue > 6e-5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.1, 0.25, 0.5]), min_size=1, max_size=9))
def test_exact_sign_flip_equals_enumeration(differences: list[float]) -> None:
    observed = abs(sum(differences))
    totals = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    expected = np.mean([total >= observed - 1e-12 for total in totals])
    assert sign_flip([np.array(differences)]) == pytest.approx(expected)


def test_sign_flip_exact_and_sampled_agree() -> None:
    values = np.random.default_rng(12).normal(0.3, 1.0, 16)
    # A 17th query with a negligible difference forces sampling and leaves the question as it was.
    sampled = sign_flip([values, np.array([1e-9])])
    assert sampled == pytest.approx(sign_flip([values]), abs=4 * math.sqrt(0.25 / 10_000))
    assert sign_flip([values + 5.0, values + 5.0], draws=999) == 1 / 1000
    assert sign_flip([np.zeros(3)]) == 1.0


def test_repeatable_and_fast() -> None:
    generator = np.random.default_rng(13)
    systems = [Sample.of(scores(generator, 5, 1000, 4)) for _ in range(21)]
    start = time.process_time()
    found = [(arm.tir(systems[0]).interval(), (arm - systems[0]).p_models()) for arm in systems[1:]]
    assert time.process_time() - start < 10.0, "about 0.7 s on an idle core"
    assert found[0] == (systems[1].tir(systems[0]).interval(), (systems[1] - systems[0]).p_models())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"d": np.zeros((1, 4))}, "not paired"),
        ({"e": np.zeros((1, 5))}, "not paired"),
        ({"d": np.zeros((2, 5))}, "not paired"),
        ({"d": np.zeros(5)}, r"expected scores \[seeds, queries\]"),
        ({"d": np.ones((1, 5)), "e": np.ones((2, 5))}, "the same seeds"),
        ({}, "no data sets"),
    ],
)
def test_unpaired_systems_are_refused(other: dict[str, Array], message: str) -> None:
    specialist = Sample.of({"d": np.ones((1, 5))})
    with pytest.raises(ValueError, match=message):
        Sample.of(other).tir(specialist)
    with pytest.raises(ValueError, match=message):
        Sample.of(other) - specialist


def test_holm_and_bonferroni_by_hand() -> None:
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm("abcd", p_values) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert bonferroni("abcd", p_values | {"d": 0.5})["d"] == 1.0
    assert holm("", {}) == bonferroni("", {}) == {}
    assert widened(4) == pytest.approx(0.9875) and widened(0) == pytest.approx(0.95)


def test_a_family_keeps_its_size_and_its_borders() -> None:
    """Tests that are not done yet count, and arms that come later do not."""
    assert holm("abcd", {"a": 0.01, "b": 0.02}) == pytest.approx({"a": 0.04, "b": 0.06})
    assert bonferroni("abcd", {"a": 0.01}) == pytest.approx({"a": 0.04})
    undefined = holm("ab", {"a": 0.01, "b": math.nan})
    assert undefined["a"] == pytest.approx(0.02) and math.isnan(undefined["b"])
    with pytest.raises(ValueError, match=r"outside of the declared family of 2: \['later'\]"):
        holm(["a", "b"], {"a": 0.01, "later": 0.001})
    with pytest.raises(ValueError, match="must not name a test twice"):
        bonferroni("aa", {"a": 0.1})


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 3))
def test_holm_lies_between_the_p_value_and_bonferroni(values: list[float], undone: int) -> None:
    p_values = {str(n): value for n, value in enumerate(values)}
    family = [*p_values, *(f"undone{n}" for n in range(undone))]
    step_down, single_step = holm(family, p_values), bonferroni(family, p_values)
    for label, raw in p_values.items():
        assert raw <= step_down[label] <= single_step[label]
