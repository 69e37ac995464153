"""Intervals, tests and effect sizes: thin names over scipy and statsmodels.

The unit is the prompt pair: every array here has one value a pair, and paired arrays keep one order. What cannot be
computed (too few values, no variation) is None, never a number that looks like one.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import numpy as np
import statsmodels.api as sm
from scipy import special, stats
from statsmodels.stats import inter_rater, multitest, proportion, weightstats

RESAMPLES = 10_000
FINE_RESAMPLES = 100_000  # of a permutation test whose p nears the smallest that RESAMPLES can give
LEVEL = 0.95
SEED = 20251130  # of every resampling: the same run gives the same report


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at LEVEL and the number of pairs it stands on."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict:
        return asdict(self)

    def excludes(self, null: float) -> bool:
        return self.low > null or self.high < null


def clean(*columns) -> list[np.ndarray]:
    """The columns as float arrays, without the pairs of which any value is missing or infinite."""
    arrays = [np.asarray(column, dtype=float) for column in columns]
    kept = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    return [array[kept] for array in arrays]


def _bootstrap(columns: list[np.ndarray], statistic, resamples: int) -> Estimate | None:
    n = len(columns[0])
    if n < 3:
        return None
    value = float(statistic(*columns))
    if not np.isfinite(value):
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy warns of no variation; that case is answered below
        result = stats.bootstrap(
            columns,
            statistic,
            n_resamples=resamples,
            confidence_level=LEVEL,
            method="BCa",
            paired=len(columns) > 1,
            vectorized=True,
            batch=2_000,
            rng=np.random.default_rng(SEED),
        )
    low, high = map(float, result.confidence_interval)
    if not (np.isfinite(low) and np.isfinite(high)):
        if result.standard_error > 1e-12 * max(1.0, abs(value)):
            return None
        low = high = value  # no pair differs from another
    return Estimate(value, low, high, n)


def mean(values, resamples: int = RESAMPLES) -> Estimate | None:
    """Mean with a BCa bootstrap interval."""
    return _bootstrap(clean(values), lambda x, axis=-1: np.mean(x, axis=axis), resamples)


def mean_difference(a, b, resamples: int = RESAMPLES) -> Estimate | None:
    """Mean of a - b over pairs, BCa over pairs."""
    a, b = clean(a, b)
    return mean(a - b, resamples)


def ratio_of_means(numerator, denominator, resamples: int = RESAMPLES) -> Estimate | None:
    """mean(numerator) / mean(denominator), BCa over pairs."""
    return _bootstrap(
        clean(numerator, denominator),
        lambda x, y, axis=-1: np.mean(x, axis=axis) / np.mean(y, axis=axis),
        resamples,
    )


def _permutation_p(data, statistic, kind: str, alternative: str, resamples: int) -> float:
    def p_of(n: int) -> float:
        result = stats.permutation_test(
            data,
            statistic,
            permutation_type=kind,
            vectorized=True,
            n_resamples=n,
            batch=2_000,
            alternative=alternative,
            rng=np.random.default_rng(SEED),
        )
        return float(result.pvalue)

    p = p_of(resamples)
    return p_of(FINE_RESAMPLES) if resamples == RESAMPLES and p < 10 / RESAMPLES else p


def sign_flip_p(a, b, alternative: str = "two-sided", resamples: int = RESAMPLES) -> float | None:
    """Permutation test of mean(a - b) over pairs: each pair keeps or changes its order. Exact for small n."""
    a, b = clean(a, b)
    if len(a) < 3:
        return None
    return _permutation_p(
        (a, b), lambda x, y, axis=-1: np.mean(x - y, axis=axis), "samples", alternative, resamples
    )


def family_p(differences, alternative: str = "two-sided", resamples: int = RESAMPLES) -> list[float | None]:
    """Adjusted p of the mean of each column of `differences` (items x tests, NaN where an item has none).

    Step-down max T (Westfall & Young 1993): an item's signs are flipped in all tests at once, and each test is held against
    the largest t among those no stronger. The chance of any false positive is alpha, and tests that share their items,
    such as the points of a curve, cost no more than they differ. Exact where there are no more sign vectors than resamples.
    """
    x = np.asarray(differences, dtype=float)
    known = np.isfinite(x)
    n, x = known.sum(axis=0), np.where(known, x, 0.0)
    tests = np.flatnonzero(n >= 3)
    out: list[float | None] = [None] * x.shape[1]
    if not len(tests):
        return out
    n, x = n[tests], x[:, tests]
    flips = _sign_vectors(len(x), resamples)
    mean = flips @ x / n
    rest = np.maximum((x**2).sum(axis=0) - n * mean**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(mean / np.sqrt(rest / (n - 1) / n), posinf=1e12, neginf=-1e12)
    t = t if alternative == "greater" else np.abs(t)
    order = np.argsort(-t[0], kind="stable")
    largest = np.maximum.accumulate(t[:, order[::-1]], axis=1)[:, ::-1]
    found = t[0, order]  # the first vector flips nothing
    reached = (largest >= found - 1e-9 * np.abs(found)).mean(axis=0)
    for test, p in zip(tests[order], np.maximum.accumulate(reached)):
        out[test] = float(p)
    return out


def _sign_vectors(items: int, resamples: int) -> np.ndarray:
    """All of them, or the data's own and `resamples` drawn ones; the first is all ones."""
    if items < 60 and 2**items <= resamples:
        return 1.0 - 2.0 * ((np.arange(2**items)[:, None] >> np.arange(items)) & 1)
    drawn = np.random.default_rng(SEED).integers(0, 2, size=(resamples, items))
    return 1.0 - 2.0 * np.vstack([np.zeros((1, items)), drawn])


def independent_p(a, b, resamples: int = RESAMPLES) -> float | None:
    """Permutation test of mean(a) - mean(b), two groups, two-sided."""
    (a,), (b,) = clean(a), clean(b)
    if len(a) < 3 or len(b) < 3:
        return None
    return _permutation_p(
        (a, b), lambda x, y, axis=-1: np.mean(x, axis=axis) - np.mean(y, axis=axis), "independent", "two-sided", resamples
    )


def rank_p(value: float, null) -> float | None:
    """Share of the null values, with the value itself among them, that reach the value."""
    (null,) = clean(null)
    if not np.isfinite(value) or len(null) == 0:
        return None
    return float((1 + np.sum(null >= value)) / (1 + len(null)))


def _noncentrality_interval(t: float, df: float, scale: float) -> tuple[float, float]:
    """Steiger's interval: the noncentralities under which t is the upper and the lower tail's quantile."""
    tail = (1 - LEVEL) / 2
    return float(special.nctdtrinc(df, 1 - tail, t)) * scale, float(special.nctdtrinc(df, tail, t)) * scale


def _hedges_factor(df: float) -> float:
    """Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)) (Hedges 1981)."""
    return float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2))


def _effect(mean_difference_: float, deviation: float, scale: float, df: float, n: int) -> dict | None:
    if not deviation > 1e-12 * max(1.0, abs(mean_difference_)):
        return None
    d, scale = float(mean_difference_ / deviation), float(scale)
    low, high = _noncentrality_interval(d / scale, df, scale)
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    j = _hedges_factor(df)
    return {"d": Estimate(d, low, high, n).as_dict(), "g": Estimate(d * j, low * j, high * j, n).as_dict()}


def paired_effect(a, b) -> dict | None:
    """Cohen's d of the differences (d_z) and Hedges' g, with intervals from the noncentral t."""
    a, b = clean(a, b)
    n = len(a)
    if n < 3:
        return None
    difference = a - b
    return _effect(float(difference.mean()), float(difference.std(ddof=1)), n**-0.5, n - 1, n)


def independent_effect(a, b) -> dict | None:
    """Cohen's d of two groups (pooled deviation) and Hedges' g, with intervals from the noncentral t."""
    (a,), (b,) = clean(a), clean(b)
    n, m = len(a), len(b)
    if n < 3 or m < 3:
        return None
    pooled = np.sqrt(((n - 1) * a.var(ddof=1) + (m - 1) * b.var(ddof=1)) / (n + m - 2))
    return _effect(float(a.mean() - b.mean()), float(pooled), np.sqrt(1 / n + 1 / m), n + m - 2, n + m)


def controlled_effect(values, group, controls) -> dict | None:
    """d of `group` (0/1) with the columns of `controls` held fixed: OLS coefficient / residual deviation.

    The interval is the noncentral t's, scaled by the coefficient's standard error in residual deviations.
    """
    y, g, *c = clean(values, group, *np.asarray(controls, dtype=float).T)
    columns = [x for x in c if np.ptp(x) > 0]
    if len(y) < len(columns) + 5 or np.ptp(g) == 0 or np.ptp(y) == 0:
        return None
    design = sm.add_constant(np.column_stack([g, *columns]))
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    fit = sm.OLS(y, design).fit()
    deviation = float(np.sqrt(fit.mse_resid))
    if not deviation > 0:
        return None
    effect = _effect(float(fit.params[1]), deviation, float(fit.bse[1]) / deviation, float(fit.df_resid), len(y))
    return None if effect is None else {**effect, "p": float(fit.pvalues[1])}


def holm(p_values) -> list[float | None]:
    """Holm's step-down adjustment; a p that is None stays None and is not counted."""
    known = [i for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    if len(known) == 1:  # one hypothesis: nothing to adjust
        adjusted[known[0]] = p_values[known[0]]
    elif known:
        for i, p in zip(known, multitest.multipletests([p_values[i] for i in known], method="holm")[1]):
            adjusted[i] = float(p)
    return adjusted


def equivalence(a, b, margin: float) -> dict | None:
    """Two one-sided t tests: is mean(a - b) within +-margin? `p` small says yes."""
    a, b = clean(a, b)
    if len(a) < 3 or not margin > 0:
        return None
    difference = a - b
    if np.ptp(difference) <= 1e-12 * max(1.0, abs(float(difference.mean()))):  # t is undefined without variation
        inside = abs(float(difference.mean())) < margin
        return {"p": 0.0 if inside else 1.0, "margin": margin, "n": len(a)}
    p = weightstats.DescrStatsW(difference).ttost_mean(-margin, margin)[0]
    return {"p": float(p), "margin": margin, "n": len(a)}


def share(count: int, n: int) -> Estimate | None:
    """count / n with Wilson's interval."""
    if n == 0:
        return None
    low, high = proportion.proportion_confint(count, n, alpha=1 - LEVEL, method="wilson")
    return Estimate(count / n, float(low), float(high), n)


def weighted_kappa(first, second, categories=(1, 2, 3, 4, 5)) -> Estimate | None:
    """Cohen's kappa with quadratic weights over items that both raters rated."""
    pairs = [(a, b) for a, b in zip(first, second) if a is not None and b is not None]
    if len(pairs) < 3:
        return None
    table = np.zeros((len(categories), len(categories)))
    for a, b in pairs:
        table[categories.index(a), categories.index(b)] += 1
    with np.errstate(all="ignore"):
        result = inter_rater.cohens_kappa(table, wt="quadratic")
    if not np.isfinite(result.kappa):
        return None  # both raters gave one and the same mark to everything: agreement beyond chance is undefined
    return Estimate(float(result.kappa), float(result.kappa_low), float(result.kappa_upp), len(pairs))


def difference_of_ratios(a, b, c, d, resamples: int = RESAMPLES) -> Estimate | None:
    """mean(a) / mean(b) - mean(c) / mean(d), BCa over pairs."""
    return _bootstrap(
        clean(a, b, c, d),
        lambda a, b, c, d, axis=-1: np.mean(a, axis=axis) / np.mean(b, axis=axis)
        - np.mean(c, axis=axis) / np.mean(d, axis=axis),
        resamples,
    )
