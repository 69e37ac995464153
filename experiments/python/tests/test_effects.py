"""Each statistic against a second computation of it: closed forms, enumeration, integrals."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

import effects

A = np.array([3.1, 2.2, 4.8, 5.0, 1.9, 4.4, 3.6, 2.7])
B = np.array([2.5, 2.6, 3.0, 4.1, 1.1, 4.9, 2.2, 2.0])


def test_sign_flip_is_the_enumeration_of_all_sign_changes():
    d = A - B
    means = [np.mean(d * signs) for signs in itertools.product((1, -1), repeat=len(d))]
    one_sided = np.mean([m >= d.mean() - 1e-12 for m in means])
    assert effects.sign_flip_p(A, B, "greater") == pytest.approx(one_sided, abs=1e-12)  # observed: equal
    other_side = np.mean([m <= d.mean() + 1e-12 for m in means])
    assert effects.sign_flip_p(A, B) == pytest.approx(2 * min(one_sided, other_side), abs=1e-12)


def test_independent_test_is_the_enumeration_of_all_divisions():
    pooled = np.concatenate([A[:5], B[:4]])
    differences = []
    for chosen in itertools.combinations(range(9), 5):
        first = np.isin(range(9), chosen)
        differences.append(pooled[first].mean() - pooled[~first].mean())
    observed = A[:5].mean() - B[:4].mean()
    tails = [np.mean([x >= observed - 1e-12 for x in differences]), np.mean([x <= observed + 1e-12 for x in differences])]
    assert effects.independent_p(A[:5], B[:4]) == pytest.approx(2 * min(tails), abs=1e-12)


def test_a_small_p_is_made_finer_than_the_first_resamples_can_give():
    rng = np.random.default_rng(1)
    p = effects.sign_flip_p(rng.normal(5, 1, 40), np.zeros(40), "greater")
    assert p == pytest.approx(1 / (effects.FINE_RESAMPLES + 1))


def bca_by_hand(x, statistic, resamples, rng):
    """Efron 1987, written down."""
    n = len(x)
    value = statistic(x)
    draws = np.sort([statistic(x[rng.integers(0, n, n)]) for _ in range(resamples)])
    bias = stats.norm.ppf((np.sum(draws < value) + 0.5 * np.sum(draws == value)) / resamples)
    left_out = np.array([statistic(np.delete(x, i, axis=0)) for i in range(n)])
    u = left_out.mean() - left_out
    acceleration = np.sum(u**3) / (6 * np.sum(u**2) ** 1.5)
    ends = []
    for z in stats.norm.ppf([0.025, 0.975]):
        ends.append(np.quantile(draws, stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))))
    return ends


def test_bca_interval_of_a_skewed_mean_is_efrons():
    x = np.random.default_rng(2).lognormal(0, 1, 40)
    low, high = bca_by_hand(x, np.mean, 10_000, np.random.default_rng(3))
    ours = effects.mean(x)
    spread = x.std() / math.sqrt(40)
    # Two resamplings of 10,000 differ: observed 0.07 standard errors. The plain percentile interval is 0.29 and 0.74 off.
    assert abs(ours.low - low) < 0.15 * spread and abs(ours.high - high) < 0.15 * spread


def test_ratio_of_means_has_fiellers_interval_where_data_are_normal():
    rng = np.random.default_rng(4)
    y = rng.normal(10, 2, 200)
    x = 0.5 * y + rng.normal(0, 1, 200)
    ours = effects.ratio_of_means(x, y)
    t = stats.t.ppf(0.975, 199)
    # Fieller: all r with (mx - r my)^2 <= t^2 var(x - r y) / n, found on a grid.
    grid = np.linspace(0.4, 0.6, 20_001)
    inside = [r for r in grid if abs((x - r * y).mean()) <= t * (x - r * y).std(ddof=1) / math.sqrt(200)]
    assert ours.value == pytest.approx(x.mean() / y.mean())
    assert ours.low == pytest.approx(inside[0], abs=1e-3)  # observed 4e-4
    assert ours.high == pytest.approx(inside[-1], abs=1e-3)


def test_difference_of_ratios_is_that_of_the_means_and_zero_of_equal_parts():
    rng = np.random.default_rng(5)
    a, b, c, d = rng.normal(5, 1, (4, 60))
    ours = effects.difference_of_ratios(a, b, c, d)
    assert ours.value == pytest.approx(a.mean() / b.mean() - c.mean() / d.mean())
    # Delta method, standard error of the two ratios as one mean of residuals; observed 1.7% off.
    residual = (a - a.mean() / b.mean() * b) / b.mean() - (c - c.mean() / d.mean() * d) / d.mean()
    assert (ours.high - ours.low) / 2 == pytest.approx(1.96 * residual.std(ddof=1) / math.sqrt(60), rel=0.1)
    same = effects.difference_of_ratios(a, b, a, b)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def noncentral_t_cdf(t, df, nc):
    """P(Z + nc <= t sqrt(V / df)), integrated over the chi-square V."""
    return integrate.quad(lambda v: stats.norm.cdf(t * math.sqrt(v / df) - nc) * stats.chi2.pdf(v, df), 0, np.inf)[0]


def test_paired_d_and_its_interval():
    d = A - B
    effect = effects.paired_effect(A, B)["d"]
    assert effect["value"] == pytest.approx(d.mean() / np.sqrt(np.sum((d - d.mean()) ** 2) / 7))
    t = effect["value"] * math.sqrt(8)
    assert noncentral_t_cdf(t, 7, effect["low"] * math.sqrt(8)) == pytest.approx(0.975, abs=1e-5)  # observed 2.4e-8
    assert noncentral_t_cdf(t, 7, effect["high"] * math.sqrt(8)) == pytest.approx(0.025, abs=1e-5)


def test_independent_d_and_hedges_correction():
    a, b = A, B[:5]
    effect = effects.independent_effect(a, b)
    pooled = math.sqrt((np.sum((a - a.mean()) ** 2) + np.sum((b - b.mean()) ** 2)) / 11)
    assert effect["d"]["value"] == pytest.approx((a.mean() - b.mean()) / pooled)
    assert effect["g"]["value"] / effect["d"]["value"] == pytest.approx(1 - 3 / (4 * 11 - 1), abs=1e-3)  # observed 3e-4
    scale = math.sqrt(1 / 8 + 1 / 5)
    t = effect["d"]["value"] / scale
    assert noncentral_t_cdf(t, 11, effect["d"]["low"] / scale) == pytest.approx(0.975, abs=1e-5)


def test_large_effects_have_finite_intervals():
    rng = np.random.default_rng(6)
    for size in (5, 20, 80):
        d = effects.paired_effect(rng.normal(size, 1, 50), np.zeros(50))["d"]
        assert d["low"] < d["value"] < d["high"]


def test_controlled_d_is_that_of_residuals():
    rng = np.random.default_rng(7)
    length = rng.normal(10, 2, 80)
    group = (length + rng.normal(0, 2, 80) > 10).astype(float)
    y = 3 * length + rng.normal(0, 1, 80)
    effect = effects.controlled_effect(y, group, length[:, None])
    # Frisch-Waugh: regress the control and the constant out of both, then one through the other.
    design = np.column_stack([np.ones(80), length])
    out = lambda v: v - design @ np.linalg.lstsq(design, v, rcond=None)[0]  # noqa: E731
    ry, rg = out(y), out(group)
    slope = ry @ rg / (rg @ rg)
    residual = math.sqrt(np.sum((ry - slope * rg) ** 2) / 77)
    assert effect["d"]["value"] == pytest.approx(slope / residual)
    raw = effects.independent_effect(y[group == 1], y[group == 0])["d"]
    assert raw["low"] > 0.3 and effect["d"]["low"] < 0 < effect["d"]["high"]  # the raw effect is the length's alone


def test_holm_by_hand():
    assert effects.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert effects.holm([]) == [] and effects.holm([None]) == [None]


def test_family_p_is_the_enumeration_of_joint_sign_changes():
    rng = np.random.default_rng(3)
    x = rng.normal(0.3, 1, size=(7, 4))
    x[:, 3] = x[:, 2] + 0.01 * rng.normal(size=7)  # a test that is nearly another
    x[5:, 0] = np.nan  # and one that lacks two items
    x = np.column_stack([x, np.full(7, np.nan)])  # and one that lacks all

    def t(column):
        column = column[np.isfinite(column)]
        return abs(column.mean()) / (column.std(ddof=1) / math.sqrt(len(column)))

    observed = [t(x[:, j]) for j in range(4)]
    strongest_first = sorted(range(4), key=lambda j: -observed[j])
    expected, last = {}, 0.0
    for i, j in enumerate(strongest_first):
        largest = [max(t(x[:, k] * signs) for k in strongest_first[i:]) for signs in itertools.product((1, -1), repeat=7)]
        last = max(last, np.mean([m >= observed[j] - 1e-9 for m in largest]))
        expected[j] = last
    found = effects.family_p(x)
    assert found[4] is None and found[:4] == pytest.approx([expected[j] for j in range(4)], abs=1e-12)


def test_family_p_holds_the_chance_of_any_false_positive_and_sees_what_is_there():
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(300):
        shared = rng.normal(size=(9, 1))
        false += min(effects.family_p(shared + 0.5 * rng.normal(size=(9, 40)), "greater")) < 0.05
    assert false <= 24  # observed 18 of 300; 5% are 15
    strong = rng.normal(3.0, 1.0, size=(10, 200))
    assert max(effects.family_p(strong, "greater")) < 0.05 < max(effects.holm([2.0**-10] * 200))
    many = rng.normal(0.0, 1.0, size=(60, 3)) + np.array([0.0, 1.0, 0.0])
    assert [p < 0.05 for p in effects.family_p(many)] == [False, True, False]


def test_equivalence_is_two_t_tests():
    d = A - B
    se = d.std(ddof=1) / math.sqrt(8)
    by_hand = max(stats.t.sf((d.mean() + 2) / se, 7), stats.t.cdf((d.mean() - 2) / se, 7))
    assert effects.equivalence(A, B, 2.0)["p"] == pytest.approx(by_hand)
    assert effects.equivalence(A, A, 0.1)["p"] == 0.0 and effects.equivalence(A, A + 1, 0.1)["p"] == 1.0


def test_share_is_wilsons():
    n, k, z = 40, 7, stats.norm.ppf(0.975)
    middle = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    share = effects.share(k, n)
    assert (share.low, share.high) == pytest.approx((middle - half, middle + half))


def test_weighted_kappa_by_hand():
    first, second = [1, 2, 3, 4, 5, 5, 2, 1, None], [1, 3, 3, 4, 4, 5, 1, 2, 5]
    a, b = np.array(first[:8], float), np.array(second[:8], float)
    observed = np.mean((a - b) ** 2)
    expected = np.mean([(x - y) ** 2 for x in a for y in b])
    kappa = effects.weighted_kappa(first, second)
    assert kappa.n == 8 and kappa.value == pytest.approx(1 - observed / expected)
    assert effects.weighted_kappa([3, 3, 3], [3, 3, 3]) is None


def test_rank_counts_the_value_itself():
    assert effects.rank_p(5.0, range(99)) == pytest.approx((1 + 94) / 100)
    assert effects.rank_p(1000.0, range(99)) == 0.01


def test_what_cannot_be_computed_is_none():
    nan = float("nan")
    assert effects.mean([1.0, nan, 2.0]) is None
    assert effects.paired_effect([1, 1, 1, 1], [0, 0, 0, 0]) is None
    assert effects.rank_p(nan, [1, 2]) is None and effects.share(0, 0) is None
    constant = effects.mean([2.0, 2.0, 2.0, 2.0])
    assert (constant.low, constant.high) == (2.0, 2.0)
    assert effects.sign_flip_p([1, 2], [0, 0]) is None
