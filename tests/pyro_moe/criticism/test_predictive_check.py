"""A check names what a story gets wrong, and is silent about a story that is right."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_moe
from pyro_moe import DataError, Rows, SiteError, criticism, models
from pyro_moe.criticism import Check, check

EM = {"loss": "em", "epochs": 50, "prior": "none", "progress": False}
N_FITTED, N_NEW = 1000, 300
EVERYWHERE = pd.NA


def simulated(noise, seed=0, number=N_FITTED + N_NEW):
    """Rows in two clusters with an affine target in each, and noise of any kind, by cluster."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.arange(number) % 2
    x = torch.randn(number, 2, generator=generator)
    x[:, 0] += 6.0 * c
    line = torch.where(c == 0, x.sum(-1), 4.0 - x[:, 1])
    return x, (line + noise(x, c, generator)).unsqueeze(-1), c


def normal_noise(x, c, generator):
    return 0.5 * torch.randn(len(x), generator=generator)


def heavy_noise(x, c, generator):
    chi2 = torch.randn(len(x), 3, generator=generator).square().mean(-1)
    return normal_noise(x, c, generator) / chi2.sqrt()


def noise_by_cluster(x, c, generator):
    """Of one size in the first cluster, and growing with a column of x in the second."""
    return (x[:, 1] * c).exp() * normal_noise(x, c, generator)


def fitted(story, x, y, c):
    """A fit that starts at the clusters, so that components have their numbers."""
    start = torch.nn.functional.one_hot(c, 2).float()
    rows = (x,) if y is None else (x, y)
    return pyro_moe.fit(
        story.model,
        story.guide,
        tuple(r[:N_FITTED] for r in rows),
        initialize=start[:N_FITTED],
        **EM,
    )


@pytest.fixture(scope="module")
def right():
    """Of each kind a right story and rows that it has not seen."""
    x, y, c = simulated(normal_noise)
    stories = {"x": models.GMM(2, 2), "y": models.ME(2, 1, 2), "both": models.GMMMoE(2, 1, 2)}
    return {
        name: (
            fitted(story, x, None if name == "x" else y, c),
            x[N_FITTED:] if name == "x" else (x[N_FITTED:], y[N_FITTED:]),
        )
        for name, story in stories.items()
    }


@pytest.mark.parametrize("name", ["x", "y", "both"])
def test_a_right_story_raises_no_alarm(right, name):
    found = check(*right[name])
    assert found.p_value > 0.05
    assert found.surprises().empty
    assert str(found) == (
        f"none of {len(found.table)} statistics differs significantly from the model's "
        f"(smallest adjusted p-value: {found.p_value:.3f})"
    )


def test_heavy_tails_are_named(right):
    """Normal experts give every row the same noise; Student's have few large errors."""
    x, y, c = simulated(heavy_noise)
    found = check(fitted(models.ME(2, 1, 2), x, y, c), (x[N_FITTED:], y[N_FITTED:]))
    assert found.p_value <= 0.05
    assert "largest score" in found.surprises()["statistic"].tolist()
    assert str(found) == (
        f"{len(found.surprises())} of {len(found.table)} statistics differ significantly from the "
        f"model's (smallest adjusted p-value: {found.p_value:.3f})"
    )
    story = models.ME(2, 1, 2, experts="student-t")
    better = check(fitted(story, x, y, c), (x[N_FITTED:], y[N_FITTED:]))
    assert better.p_value > 0.05


def test_the_component_that_is_wrong_is_named():
    x, y, c = simulated(noise_by_cluster)
    found = check(fitted(models.ME(2, 1, 2), x, y, c), (x[N_FITTED:], y[N_FITTED:]))
    surprises = found.surprises()
    named = set(zip(surprises["statistic"], surprises["column"], strict=True))
    assert ("correlation of squared scores with", "y, x1") in named
    assert ("correlation of squared scores with", "y, x0") not in named
    assert surprises["component"].dropna().unique().tolist() == [1]


def test_too_few_components_are_noticed_in_x():
    """By the shape of the column along which there are two clusters."""
    x = simulated(normal_noise)[0]
    story = models.GMM(2, 1)
    fit = pyro_moe.fit(story.model, story.guide, x[:N_FITTED], **EM)
    surprises = check(fit, x[N_FITTED:]).surprises()
    assert ("distance of distributions", "x0") in zip(
        surprises["statistic"], surprises["column"], strict=True
    )
    assert "x1" not in surprises["column"].tolist()


def test_a_component_that_stands_for_two_clusters_is_named():
    generator = torch.Generator().manual_seed(0)
    c = torch.arange(N_FITTED + N_NEW) % 3
    centers = torch.tensor([[0.0, 0.0], [8.0, 0.0], [8.0, 4.0]])
    x = centers[c] + torch.randn(len(c), 2, generator=generator)
    found = check(fitted(models.GMM(2, 2), x, None, c.clamp_max(1)), x[N_FITTED:])
    surprises = found.surprises()
    of_component = surprises[surprises["component"].notna()]
    assert of_component["component"].unique().tolist() == [1]
    assert of_component["column"].unique().tolist() == ["x1"]
    assert "log kurtosis" in of_component["statistic"].tolist()


def test_a_correlation_that_a_story_lacks_is_named():
    x = torch.randn(N_NEW, 2, generator=torch.Generator().manual_seed(0))
    story = models.GMM(2, 1)
    fit = pyro_moe.fit(story.model, story.guide, x, **EM)
    together = torch.stack([x[:, 0], 0.6 * x[:, 0] + 0.8 * x[:, 1]], -1)
    surprises = check(fit, together).surprises()
    assert ("correlation", "x0, x1") in zip(
        surprises["statistic"], surprises["column"], strict=True
    )


def test_counts_with_more_spread_than_poisson_are_noticed():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_FITTED + N_NEW, 1, generator=generator)
    rate = (1.0 + 0.5 * x).exp()
    counts = {
        "right": torch.poisson(rate, generator=generator),
        "wrong": torch.poisson(
            rate * -torch.rand(len(x), 1, generator=generator).log(), generator=generator
        ),
    }
    found = {}
    for name, y in counts.items():
        story = models.ME(1, 1, 1, experts="poisson")
        fit = pyro_moe.fit(story.model, story.guide, (x[:N_FITTED], y[:N_FITTED]), **EM)
        found[name] = check(fit, (x[N_FITTED:], y[N_FITTED:]))
    assert found["right"].p_value > 0.05
    assert "standard deviation of scores" in found["wrong"].surprises()["statistic"].tolist()


def test_classes_in_other_shares_are_noticed(fits, data):
    fit, (x, y) = fits("me, classes"), data["classes"]
    prediction = pyro_moe.evaluation.predict(fit, x)
    drawn = prediction.sample(1, seed=3)[0]
    assert check(fit, (x, drawn)).p_value > 0.05
    found = check(fit, (x, torch.zeros_like(y)))
    shares = found.table[(found.table["statistic"] == "share") & found.table["component"].isna()]
    assert shares["column"].tolist() == ["0", "1", "2"]
    assert shares["observed"].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(shares["replicated"], prediction.mean.mean(0), atol=0.02)
    assert found.pit is None
    assert found.calibration is None
    assert found.p_value <= 0.05


# What is in it


def test_numbers_are_those_of_the_data_and_of_replicates(right):
    fit, (x, y) = right["both"]
    table = check(fit, (x, y)).table
    everywhere = table[table["component"].isna()].set_index(["site", "statistic", "column"])
    prediction = pyro_moe.evaluation.predict(fit, x)
    row = everywhere.loc[("y", "mean", "y")]
    assert row["observed"] == pytest.approx(y.mean().item(), rel=1e-5)
    error = (prediction.variance.sum().sqrt() / len(x)).item()  # of a replicate's mean
    assert row["replicated"] == pytest.approx(prediction.mean.mean().item(), abs=5 * error / 14)
    assert row["standard_deviation"] == pytest.approx(error, rel=0.3)
    row = everywhere.loc[("y", "mean log density", "y")]
    assert row["observed"] == pytest.approx(prediction.log_prob(y).mean().item(), rel=1e-5)
    components = prediction.gate.argmax(-1)
    for k in (0, 1):
        of_k = table[table["component"] == k].set_index(["site", "statistic", "column"])
        own = components == k
        assert of_k.loc[("x", "mean", "x1"), "observed"] == pytest.approx(
            x[own, 1].mean().item(), abs=1e-5
        )
        assert of_k.loc[("y", "largest", "y"), "observed"] == pytest.approx(
            y[own].max().item(), rel=1e-5
        )


def test_surprises_are_sorted_and_cut_at_the_level():
    table = pd.DataFrame(
        {
            "statistic": list("abcd"),
            "p_value": [0.02, 0.01, 0.03, 0.5],
            "adjusted_p_value": [0.05, 0.05, 0.01, 0.9],
        }
    )
    found = Check(table, None, 10, 99)
    assert found.p_value == 0.01
    assert found.surprises()["statistic"].tolist() == ["c", "b", "a"]
    assert found.surprises(0.02)["statistic"].tolist() == ["c"]


def test_one_statistic_differs_and_several_differ():
    table = pd.DataFrame(
        {"statistic": list("ab"), "p_value": 0.01, "adjusted_p_value": [0.01, 0.3]}
    )
    ending = "significantly from the model's (smallest adjusted p-value: 0.010)"
    assert str(Check(table, None, 10, 99)) == f"1 of 2 statistics differs {ending}"
    both = table.assign(adjusted_p_value=0.01)
    assert str(Check(both, None, 10, 99)) == f"2 of 2 statistics differ {ending}"


def test_columns_have_their_names(right):
    fit, (x, y) = right["both"]
    named = Rows(x, y, targets=("price",))
    columns = check(fit, named, num_replicates=20).table.set_index("site")["column"]
    assert {"price", "price, x0", "price, x1"} <= set(columns["y"])
    assert {"x0", "x1", "x0, x1"} <= set(columns["x"])
    named = Rows(x, y, columns=("age", "weight"))
    columns = check(fit, named, num_replicates=20).table.set_index("site")["column"]
    assert {"y", "y, age", "y, weight"} <= set(columns["y"])
    assert {"age", "weight", "age, weight"} <= set(columns["x"])


def test_the_seed_decides(right):
    tables = [check(*right["both"], num_replicates=20, seed=seed).table for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0]["replicated"].equals(tables[2]["replicated"])


def test_the_training_rows_are_checked_if_none_are_given(right):
    fit, _ = right["x"]
    found = check(fit, num_replicates=20)
    assert found.num_rows == N_FITTED
    pd.testing.assert_frame_equal(found.table, check(fit, fit.data[0], num_replicates=20).table)


def test_fewer_fitted_rows_allow_for_more():
    """By a factor that only the number of fitted rows decides."""
    x = torch.randn(2100, 1, generator=torch.Generator().manual_seed(0))
    p_values = []
    for number in (100, 2000):
        story = models.GMM(1, 1)
        fit = pyro_moe.fit(story.model, story.guide, x[:100].repeat(number // 100, 1), **EM)
        table = check(fit, x[2000:] + 0.2).table
        p_values.append(table["p_value"][table["statistic"] != "distance of distributions"])
    assert (p_values[0] >= p_values[1]).all()
    assert (p_values[0] > p_values[1]).any()


# Statistics of one's own


def test_further_statistics_are_plain_functions(right):
    fit, (x, y) = right["both"]
    statistics = {
        "y": {"range": lambda sample: sample.y.max() - sample.y.min()},
        "x": {"median": lambda sample: sample.x.median(0).values},
    }
    table = check(fit, (x, y), statistics=statistics, num_replicates=50).table
    everywhere = table[table["component"].isna()]
    ranges = everywhere[everywhere["statistic"] == "range"]
    assert ranges["site"].tolist() == ["y"]
    assert ranges["observed"].item() == pytest.approx((y.max() - y.min()).item())
    medians = everywhere[everywhere["statistic"] == "median"]
    assert medians["column"].tolist() == ["x0", "x1"]
    assert medians["observed"].tolist() == pytest.approx(x.median(0).values.tolist())
    assert set(table["statistic"][table["component"] == 1]) >= {"range", "median"}


def test_a_statistic_of_ones_own_can_find_what_others_do_not():
    """A wave that no moment shows: the sum of sines at its frequency."""
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.rand(N_FITTED + N_NEW, 1, generator=generator)
    y = 0.5 * (20 * x).sin() + 0.5 * torch.randn(len(x), 1, generator=generator)
    story = models.ME(1, 1, 1)
    fit = pyro_moe.fit(story.model, story.guide, (x[:N_FITTED], y[:N_FITTED]), **EM)
    new = (x[N_FITTED:], y[N_FITTED:])
    assert check(fit, new).p_value > 0.05

    def wave(sample):
        return (sample.scores * (20 * sample.x).sin()).mean()

    found = check(fit, new, statistics={"y": {"wave": wave}})
    assert found.surprises()["statistic"].tolist() == ["wave"]


def test_statistics_of_a_site_that_is_not_checked_are_an_error(right):
    fit, x = right["x"]
    with pytest.raises(ValueError, match=r"^expected statistics of sites \['x'\]; got \['y'\]$"):
        check(fit, x, statistics={"y": {"range": len}})


# Rows and components that lack something


def test_rows_without_a_target_count_for_x_alone(data, fits):
    fit, (x, y) = fits("me, missing targets"), data["missing"]
    known = ~y.isnan().flatten()
    found, without = check(fit, (x, y)), check(fit, (x[known], y[known]))
    assert found.num_rows == len(x)
    assert found.pit.shape == (int(known.sum()), 1)
    torch.testing.assert_close(found.pit, without.pit)
    assert found.table["observed"].tolist() == without.table["observed"].tolist()


def test_a_component_of_few_rows_is_not_looked_at_by_itself():
    x, _, c = simulated(normal_noise)
    fit = fitted(models.GMM(2, 2), x, None, c)
    likeliest = pyro_moe.evaluation.gate(fit, x).argmax(-1)
    first, second = x[likeliest == 0], x[likeliest == 1]
    for number, components in ((19, [0]), (20, [0, 1])):
        rows = torch.cat([first[-100:], second[-number:]])
        found = check(fit, rows, num_replicates=10).table["component"].dropna().unique()
        assert sorted(found) == components


def test_a_component_that_replicates_lack_does_no_harm():
    """Two clusters in the data, of which the fit has seen one row of a thousand."""
    x, _, c = simulated(normal_noise)
    story = fitted(models.GMM(2, 2), x, None, c).story
    with torch.no_grad():
        story.mixture.logits.copy_(torch.tensor([0.0, -30.0]))
    fit = pyro_moe.fit(
        story.model, story.guide, x[:N_FITTED], epochs=0, initialize="keep", progress=False
    )
    found = check(
        fit, torch.cat([x[c == 0][:50], x[c == 1][:150] + 30.0]), statistics={"x": {"top": top}}
    )
    of_second = found.table[found.table["component"] == 1]
    assert of_second["replicated"].isna().all()
    assert (of_second["p_value"] == 1.0).all()
    assert found.p_value <= 0.05


def top(sample):
    return sample.x.amax(0)


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_rows_are_an_error(fits, number):
    for name in ("gmm", "me"):
        fit = fits(name)
        rows = tuple(column[:number] for column in fit.data)
        message = "^expected"
        with pytest.raises(DataError, match=message):
            check(fit, rows if len(rows) > 1 else rows[0])


def test_a_row_is_too_few():
    x = torch.randn(10, 1)
    story = models.ME(1, 1, 1)
    fit = pyro_moe.fit(
        story.model,
        story.guide,
        (x, x),
        epochs=1,
        missing_targets=True,
        prior="none",
        progress=False,
    )
    y = torch.full_like(x, math.nan)
    y[3] = 1.0
    message = "^expected at least 2 rows, with targets if the story has any; got 1$"
    with pytest.raises(DataError, match=message):
        check(fit, (x, y))


def test_a_story_without_x_and_y_is_told_so(as_it_is):
    def model(rows):
        with pyro.plate("data", len(rows)):
            pyro.sample("rows", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=rows)

    fit = as_it_is(model, lambda rows: None, torch.randn(5, 2))
    message = r"^expected an observed site 'x' or 'y' in the model; got \['rows'\]$"
    with pytest.raises(SiteError, match=message):
        check(fit)


def test_every_story_can_be_checked(fits, story):
    fit = fits(story)
    found = check(fit, num_replicates=20)
    sites = {"x"} if len(fit.data) == 1 else {"y"}
    if story in ("gmmmoe", "vademoe", "dvmoe"):
        sites = {"x", "y"}
    assert set(found.table["site"]) == sites
    assert found.table["p_value"].between(1 / 21, 1).all()
    assert (found.table["adjusted_p_value"] >= found.table["p_value"]).all()
    assert (found.pit is None) == (story.endswith("classes") or sites == {"x"})


def test_all_names_are_those_of_the_package():
    for name in criticism.__all__:
        assert hasattr(criticism, name)
