"""The bootstrap, profile intervals, and the test of K components."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import chi2

from pyro_moe import mixture
from pyro_moe.mixtures import bootstrap, bootstrap_test, resampling
from pyro_moe.mixtures.entry import fitted_to
from pyro_moe.mixtures.resampling import resampled, simulated


@pytest.fixture(scope="module")
def line(table):
    return mixture("y ~ x", table, num_components=1)


@pytest.mark.parametrize("resample", [bootstrap, bootstrap_test])
def test_an_interruption_ends_the_resampling(line, resample, monkeypatch):
    def interrupted(*arguments, **options):
        return replace(fitted_to(*arguments, **options), stopped="interrupted")

    monkeypatch.setattr(resampling, "fitted_to", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resample(line, number=2)


def test_the_profile_of_a_slope_has_a_closed_form(table, line):
    number, limit = len(table), chi2.isf(0.05, 1)
    half = line.bse[0, "y", "x"] * np.sqrt(number * np.expm1(limit / number))
    estimate = line.params[0, "y", "x"]
    found = line.profile_interval((0, "y", "x"))
    np.testing.assert_allclose(found, [estimate - half, estimate + half], rtol=1e-4)


def test_the_profile_of_a_scale_has_a_closed_form(table, line):
    sigma, number = line.params[0, "y", "sigma"], len(table)

    def excess(s):
        return number * (2 * np.log(s / sigma) + (sigma / s) ** 2 - 1) - chi2.isf(0.1, 1)

    expected = [brentq(excess, 0.5 * sigma, sigma), brentq(excess, sigma, 2 * sigma)]
    found = line.profile_interval((0, "y", "sigma"), alpha=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_profile_leaves_the_fit_as_it_was(fitted):
    before = fitted.params.copy()
    low, high = fitted.profile_interval((1, "y", "x"))
    assert (fitted.params == before).all()
    wald = fitted.conf_int().loc[(1, "y", "x")]
    np.testing.assert_allclose([low, high], wald, atol=0.3 * fitted.bse[1, "y", "x"])


def test_an_unknown_parameter_has_no_profile(fitted):
    with pytest.raises(ValueError, match=r"expected a parameter of .* got \('y', 'x'\)"):
        fitted.profile_interval(("y", "x"))


@pytest.mark.parametrize("kind", ["parametric", "rows"])
def test_the_errors_of_the_bootstrap_are_near_those_of_the_information(fitted, kind):
    found = bootstrap(fitted, 8, kind=kind)
    assert found.params.shape == (8, len(fitted.params))
    ratio = (found.bse / fitted.bse).to_numpy()  # each with an error of 25 %
    assert 0.7 < np.median(ratio) < 1.4
    interval = found.conf_int(0.2)
    assert (interval["lower"] < found.params.median()).all()
    assert (interval["upper"] > found.params.median()).all()


def test_the_same_seed_gives_the_same_draws(line):
    one, other, third = (bootstrap(line, 3, seed=seed).params for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, other)
    assert (one != third).all(axis=None)


def test_groups_stay_together(table):
    fit = mixture(
        "y ~ x", table, groups="group", initialize=table["component"].to_numpy(), order="fitted"
    )
    (x, y), about = simulated(fit, 1)
    groups = about.groups
    lines = [fit.params[k, "y"] for k in range(2)]
    near = [(y[:, 0] - b["Intercept"] - b["x"] * x[:, 0]).abs() / b["sigma"] for b in lines]
    of_first = (near[0] < 4).numpy()
    for group in groups.unique():
        rows = (groups == group).numpy()
        assert of_first[rows].all() or (near[1] < 4).numpy()[rows].all()
    again = resampled(fit, 1)[1].groups
    assert len(again.unique()) == 40
    assert len(again) == 160


@pytest.fixture(scope="module")
def aggregated(table):
    """Thirty rows that stand for 150, and the fit of these."""
    rows = table[:30].assign(w=np.arange(30) % 9 + 1)
    return rows, mixture("y ~ x", rows, num_components=1, weights="w")


def test_a_row_of_weight_w_has_w_draws(aggregated):
    rows, fit = aggregated
    (x, y), about = simulated(fit, 3)
    assert about.weights is None
    np.testing.assert_allclose(x[:, 0], rows["x"].repeat(rows["w"]), rtol=1e-6)
    assert len(y.unique()) == rows["w"].sum()
    many = mixture("y ~ x", rows.loc[rows.index.repeat(rows["w"])], num_components=1)
    assert simulated(many, 3)[0][1].allclose(y, rtol=1e-4)
    ratio = bootstrap(fit, 60).bse / fit.bse
    np.testing.assert_allclose(ratio, 1.0, atol=0.3)  # each with an error of 9 %


def test_rows_of_weight_w_stay_in_their_group(table):
    rows = table[:80].assign(w=np.resize([1, 3, 2, 2], 80))
    options = {"initialize": rows["component"].to_numpy(), "order": "fitted"}
    fit = mixture("y ~ x", rows, groups="group", weights="w", **options)
    (x, _), about = simulated(fit, 1)
    assert len(x) == rows["w"].sum()
    assert about.groups.bincount().tolist() == [8] * 20


def test_the_test_of_weighted_rows_is_that_of_many(aggregated):
    rows, fit = aggregated
    many = mixture("y ~ x", rows.loc[rows.index.repeat(rows["w"])], num_components=1)
    one, other = (bootstrap_test(each, number=2, restarts=1) for each in (fit, many))
    np.testing.assert_allclose(one.null, other.null, rtol=1e-2, atol=0.05)


@pytest.mark.parametrize(
    ("weight", "kind", "message"),
    [
        (0.5, "replication", r"expected whole weights to draw targets, .*; got 1.5: bootstrap"),
        (0.0, "sampling", "expected no sampling weights to draw targets"),
    ],
)
def test_weights_of_which_no_targets_can_be_drawn(aggregated, weight, kind, message):
    rows = aggregated[0].assign(w=aggregated[0]["w"] + weight)
    fit = mixture("y ~ x", rows, num_components=1, weights="w", weight_type=kind)
    with pytest.raises(ValueError, match=message):
        bootstrap(fit, 2)
    with pytest.raises(ValueError, match=message):
        bootstrap_test(fit, number=1)
    assert len(bootstrap(fit, 2, kind="rows").params) == 2


def test_one_line_is_rejected_for_two(table, line):
    found = bootstrap_test(line, number=2, restarts=1)
    assert found.statistic > found.null.max()
    assert found.pvalue == pytest.approx(1 / 3)
    assert found.larger.num_components == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "x"}, "expected kind in"), ({"number": 1}, "expected number of at least 2; got 1")],
)
def test_arguments_of_the_bootstrap(line, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(line, **options)
