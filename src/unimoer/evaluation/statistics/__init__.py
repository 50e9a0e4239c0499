"""Intervals, tests and plans for scores by seed and query.

Everything starts from per-query scores `{data set: array [seeds, queries]}`, paired between systems:

    specialist, joint = Sample.of(scores["emb_only"]), Sample.of(scores["joint_single"])
    difference = specialist - joint                    # a Sample: differences of paired systems
    ratio = joint.tir(specialist)                      # a Ratio, in percent; also difference.ratio(lost) for recovery
    both = Sample.average([ratio, ratio_of_reranking]) # macro over tasks
    ratio.mean, ratio.by_seed                          # ratio of means; every seed's own beside it
    ratio.interval(0.95)                               # over seeds and queries; over queries only with one seed
    ratio.p_value()                                    # of "equal in expectation over training runs and queries"
    ratio.p_models()                                   # of "these trained models are equal": no seed noise in it
    ratio.mde()                                        # minimum detectable effect, alpha 5%, power 80%
    ratio.required(line=2.0)                           # queries per data set, or seeds, that would settle a line
    holm(["embedding", "reranking"], {"embedding": 0.01, "reranking": 0.4})
    rival.interval(widened(len(rivals)))               # for the best of several, chosen for being best

Seeds (training runs) and queries are drawn and crossed: every run answers the same queries. Data sets are kept fixed:
they were chosen, so nothing here speaks of data sets that were not measured. The variance of a mean in this two-way
layout has a closed form (`components`), so nothing is resampled; what three or five seeds know about their own spread
enters through the critical value (`pivot`). `calibration` measures coverage and error rates; see docs/statistics.md.
"""

from unimoer.evaluation.statistics.components import Components, Required
from unimoer.evaluation.statistics.families import bonferroni, holm, widened
from unimoer.evaluation.statistics.pivot import Array, Spread
from unimoer.evaluation.statistics.randomisation import DRAWS, SEED, sign_flip
from unimoer.evaluation.statistics.sample import Interval, Ratio, Sample, SeedScores

__all__ = [
    "DRAWS",
    "SEED",
    "Array",
    "Components",
    "Interval",
    "Ratio",
    "Required",
    "Sample",
    "SeedScores",
    "Spread",
    "bonferroni",
    "holm",
    "sign_flip",
    "widened",
]
