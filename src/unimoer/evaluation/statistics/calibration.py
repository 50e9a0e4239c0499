"""Measures coverage and error rates of `Sample` on simulated experiments whose true values are known.

    python -m unimoer.evaluation.statistics.calibration 4000      # the table of docs/statistics.md, about ten minutes

A score is the clipped sum of a data set's level, the query's hardness, the system's luck with the query, the run's luck
overall and with the data set, and a residual of run and query; all normal, so that the expected score has a closed
form. Clipping to [0, 1] leaves about 15% zeros and 20% ones, as nDCG@10 may.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from unimoer.evaluation.statistics.pivot import Array
from unimoer.evaluation.statistics.sample import Sample

SYSTEMS = ("specialist", "joint", "twin", "arm")
RATES = ("score", "difference", "tir", "recovery", "reported", "rejected", "rejected_models")
"""Coverage of four kinds of intervals at 95%; share of recoveries with a bounded interval; rejections at 5% of the true
hypothesis that two arms are equal in expectation, by `p_value` and by `p_models`.
"""


@dataclass(frozen=True)
class Design:
    """`twin` is a system as good as `joint` in expectation; `arm` wins back half of what `joint` loses."""

    seeds: int
    queries: int
    """Of each data set."""
    seed_sd: float
    """Standard deviation over seeds of a system's macro mean on infinitely many queries."""
    levels: tuple[float, ...] = (0.45, 0.55, 0.65, 0.75)
    lost: float = 0.06
    """What `joint` loses to `specialist`, before clipping."""
    hardness: float = 0.5
    luck: float = 0.15
    """Of a system with a query, whatever the seed."""
    residual: float = 0.12
    common: float = 0.2
    """Share of the seed's variance that all systems of one seed have in common: they see the data in one order."""
    by_dataset: float = 0.3
    """Share of the seed's variance that is drawn anew for every data set."""

    def truth(self) -> dict[str, float]:
        """Expected macro mean of each system."""
        deviation = math.sqrt(
            self.hardness**2 + self.luck**2 + self.residual**2 + self._run_sd**2 + (self._dataset_sd**2)
        )
        return {
            system: float(np.mean([_expected(level + self._shift(system), deviation) for level in self.levels]))
            for system in SYSTEMS
        }

    def draw(self, generator: np.random.Generator) -> dict[str, dict[str, Array]]:
        """One experiment: system -> data set -> scores `[seeds, queries]`."""
        seeds, queries = self.seeds, self.queries
        shared = self._run_sd * math.sqrt(self.common) * generator.normal(size=(seeds, 1))
        own = self._run_sd * math.sqrt(1.0 - self.common) * generator.normal(size=(len(SYSTEMS), seeds, 1))
        scores: dict[str, dict[str, Array]] = {system: {} for system in SYSTEMS}
        for number, level in enumerate(self.levels):
            hardness = level + self.hardness * generator.normal(size=(1, queries))
            luck = self.luck * generator.normal(size=(len(SYSTEMS), 1, queries))
            run = self._dataset_sd * generator.normal(size=(len(SYSTEMS), seeds, 1))
            residual = self.residual * generator.normal(size=(len(SYSTEMS), seeds, queries))
            for position, system in enumerate(SYSTEMS):
                score = hardness + luck[position] + shared + own[position] + run[position] + residual[position]
                scores[system][f"d{number}"] = np.clip(score + self._shift(system), 0.0, 1.0)
        return scores

    @property
    def _latent_sd(self) -> float:
        """Of the seed before clipping, which takes most of what falls outside of [0, 1]."""
        deviation = math.sqrt(self.hardness**2 + self.luck**2 + self.residual**2)
        inside = [special.ndtr((1.0 - level) / deviation) - special.ndtr(-level / deviation) for level in self.levels]
        return self.seed_sd / float(np.mean(inside))

    @property
    def _run_sd(self) -> float:
        return self._latent_sd * math.sqrt(1.0 - self.by_dataset)

    @property
    def _dataset_sd(self) -> float:
        return self._latent_sd * math.sqrt(self.by_dataset * len(self.levels))

    def _shift(self, system: str) -> float:
        return {"specialist": self.lost, "arm": self.lost / 2.0}.get(system, 0.0)


def simulate(design: Design, trials: int, seed: int = 0, draws: int = 399) -> dict[str, float]:
    """`RATES` over `trials` simulated experiments. `draws` are those of the sign-flip test."""
    generator = np.random.default_rng([seed, design.seeds, design.queries, round(1e6 * design.seed_sd)])
    truth = design.truth()
    gap = truth["specialist"] - truth["joint"]
    counts = dict.fromkeys(RATES, 0)
    for trial in range(trials):
        scores = design.draw(generator)
        specialist, joint, twin, arm = (Sample.of(scores[system]) for system in SYSTEMS)
        recovery = (arm - joint).ratio(specialist - joint, 100.0).interval()
        for name, interval, value in (
            ("score", joint.interval(), truth["joint"]),
            ("difference", (specialist - joint).interval(), gap),
            ("tir", joint.tir(specialist).interval(), 100.0 * gap / truth["specialist"]),
            ("recovery", recovery, 100.0 * (truth["arm"] - truth["joint"]) / gap if gap else math.nan),
        ):
            # Without bounds, or undefined for a denominator below 0, it excludes nothing.
            counts[name] += not (value < interval.low or value > interval.high)
        counts["reported"] += math.isfinite(recovery.low)
        counts["rejected"] += (twin - joint).p_value() < 0.05
        counts["rejected_models"] += (twin - joint).p_models(draws, trial) <= 0.05
    return {name: count / trials for name, count in counts.items()}


def table(designs: Sequence[Design], trials: int) -> Iterator[str]:
    """Lines of a Markdown table, one design at a time."""
    yield "| seeds | queries | seed sd | score | difference | TIR | recovery | reported | p < .05 | p_models < .05 |"
    yield "|" + " ---: |" * 10
    for design in designs:
        rates = simulate(design, trials)
        cells = [str(design.seeds), str(design.queries), f"{design.seed_sd:g}"]
        yield "| " + " | ".join([*cells, *(f"{rates[name]:.3f}" for name in RATES)]) + " |"


def grid() -> list[Design]:
    return [
        Design(seeds, queries, seed_sd)
        for seeds in (3, 5)
        for queries in (50, 300)
        for seed_sd in (0.0, 0.003, 0.01, 0.03)
    ]


def _expected(mean: float, deviation: float) -> float:
    """Expectation of a normal variable clipped to [0, 1]."""
    low, high = -mean / deviation, (1.0 - mean) / deviation
    inside = special.ndtr(high) - special.ndtr(low)
    density = (math.exp(-(low**2) / 2.0) - math.exp(-(high**2) / 2.0)) / math.sqrt(2.0 * math.pi)
    return float(deviation * density + mean * inside + special.ndtr(-high))


if __name__ == "__main__":
    for line in table(grid(), int(sys.argv[1])):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
