"""K is chosen by densities of rows that no fit has seen, compared row by row."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Normal

import pyro_moe
from pyro_moe import DataError, Rows, evaluation, models, selection
from pyro_moe.inference.prior import Prior
from pyro_moe.selection import compare_log_densities, select

EM = {"loss": "em", "epochs": 30, "prior": "none", "progress": False}


def gmm(num_components):
    return models.GMM(2, num_components)


def me(num_components):
    return models.ME(1, 1, num_components)


def clusters(num_clusters, num_rows=300, seed=0):
    """Rows of as many clusters, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_clusters
    centers = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    return centers[labels] + torch.randn(num_rows, 2, generator=generator), labels


def lines(num_lines, num_rows=300, seed=0):
    """Rows of x in (-2, 2), and y that has as many slopes."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(num_rows, 1, generator=generator) - 2
    regime = ((x + 2) / 4 * num_lines).long()
    slope, offset = torch.tensor([3.0, -2.0, 4.0]), torch.tensor([2.0, 0.0, -5.0])
    y = slope[regime] * x + offset[regime] + 0.3 * torch.randn(num_rows, 1, generator=generator)
    return x, y


def log_sum_exp(each):
    return np.logaddexp.reduce(each.numpy(force=True), axis=1)


# What is recommended


def test_more_components_that_add_nothing_are_not_recommended():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 1, generator=generator)
    y = torch.poisson((0.5 + x).exp(), generator=generator)
    options = {"folds": 5, "loss": "em", "progress": False, "num_components": [1, 2, 3]}
    found = select(lambda k: models.ME(1, 1, k, experts="poisson"), (x, y), **options)
    assert found.num_components == 1
    assert found.table["difference"].abs().mul(80)[1] < 1


@pytest.mark.filterwarnings("ignore::pyro_moe.ConvergenceWarning")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_components_that_coincide_are_not_recommended_for_another_shrinkage(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(120, 1)), (rng.random((120, 1)) < 0.4).astype(float)
    options = {"folds": 5, "loss": "em", "progress": False, "num_components": [1, 2]}
    found = select(lambda k: models.ME(1, 1, k, experts="bernoulli"), (x, y), **options)
    lag, error = found.table.loc[1, ["difference", "difference_standard_error"]]
    gain = found.table["log_likelihood"].diff()[2]
    assert found.num_components == (1 if -lag <= error or gain <= 1.0 else 2)


# What is scored


def test_scores_are_log_densities_under_a_fit_to_the_other_rows(double):
    x, _ = clusters(3, 60)
    chosen = pyro_moe.select(gmm, x, num_components=[2, 3], **EM)
    held = chosen.log_densities.index.to_numpy(copy=True)
    kept = np.setdiff1d(np.arange(60), held)
    assert len(held) == 12
    for k in (2, 3):
        mixture = pyro_moe.fit(*programs(gmm(k)), x[kept], seed=0, **EM).story.mixture
        each = mixture.normals.log_prob(x[held].unsqueeze(1)) + mixture.logits.log_softmax(-1)
        np.testing.assert_allclose(chosen.log_densities[k], log_sum_exp(each), rtol=1e-9)


def test_scores_of_a_story_without_x_are_log_densities_of_y_given_x(double):
    x, y = lines(2, 40)
    chosen = pyro_moe.select(me, (x, y), num_components=[2], **EM)
    held = chosen.log_densities.index.to_numpy(copy=True)
    kept = np.setdiff1d(np.arange(40), held)
    story = pyro_moe.fit(*programs(me(2)), (x[kept], y[kept]), seed=0, **EM).story
    experts = story.experts(x[held])
    normal = Normal(experts.mean.squeeze(-1), experts.variance.sqrt().squeeze(-1))
    each = normal.log_prob(y[held]) + story.gate(x[held]).probs.log()
    np.testing.assert_allclose(chosen.log_densities[2], log_sum_exp(each), rtol=1e-9)


def test_each_fold_is_scored_by_a_fit_to_the_others(double):
    x, _ = clusters(1, 6)
    chosen = pyro_moe.select(gmm, x, num_components=[1], folds=6, **EM)
    assert list(chosen.log_densities.index) == list(range(6))
    for row in range(6):
        mixture = pyro_moe.fit(*programs(gmm(1)), x[torch.arange(6) != row], **EM).story.mixture
        by_hand = mixture.normals.log_prob(x[row]).item()
        assert chosen.log_densities[1][row] == pytest.approx(by_hand, rel=1e-9)


def test_a_latent_code_is_averaged_over_samples():
    x, _ = clusters(1, 20)

    def vae(num_components):
        return models.VAE(2, 1, hidden=(4,))

    options = {"epochs": 2, "prior": "none", "progress": False}
    chosen = pyro_moe.select(vae, x, num_components=[1], num_samples=3, **options)
    held = chosen.log_densities.index.to_numpy(copy=True)
    fit = pyro_moe.fit(*programs(vae(1)), x[np.setdiff1d(np.arange(20), held)], **options)
    expected = evaluation.importance_weighted_bound(fit, x[held], num_samples=3)
    np.testing.assert_allclose(chosen.log_densities[1], expected.numpy(), rtol=1e-5)


def programs(story):
    return story.model, story.guide


# How it is compared


def test_differences_have_the_standard_errors_of_pairs():
    """Rows differ by thousands, choices by a constant of two and noise of one."""
    rows = np.array([0.0, 1000.0, -3000.0, 7000.0])
    noise = np.array([1.0, -1.0, 1.0, -1.0])
    table = compare_log_densities(pd.DataFrame({"a": rows - 2.0 + noise, "b": rows}))
    assert list(table["log_density"]) == [1248.0, 1250.0]
    assert list(table["difference"]) == [-2.0, 0.0]
    np.testing.assert_allclose(table["difference_standard_error"], [(4 / 3) ** 0.5 / 2, 0.0])
    np.testing.assert_allclose(table["standard_error"]["b"], rows.std(ddof=1) / 2)


def test_what_has_no_density_is_never_best():
    nan, inf = np.nan, np.inf
    table = compare_log_densities(
        pd.DataFrame({1: [0.0, -inf], 2: [nan, 9.0], 3: [-1.0, -2.0], 4: [inf, 0.0]})
    )
    assert table["difference"][3] == 0.0
    assert table["log_density"][1] == -inf
    with pytest.raises(DataError, match=r"expected a finite log density .* got none"):
        compare_log_densities(pd.DataFrame({1: [0.0, -inf], 2: [nan, 9.0]}))


@pytest.mark.parametrize("truth", [1, 3])
@pytest.mark.parametrize(("make", "story"), [(clusters, gmm), (lines, me)])
def test_as_many_components_as_the_data_have(make, story, truth):
    made = make(truth)
    data = made if make is lines else made[0]
    chosen = pyro_moe.select(story, data, num_components=[4, 3, 2, 1], folds=3, restarts=6, **EM)
    assert list(chosen.table.index) == [1, 2, 3, 4]
    assert chosen.num_components == chosen.fit.story.num_components == truth


def test_the_smallest_within_one_standard_error_is_recommended():
    """Of twelve samples of one cluster some do better with more, by less than their error."""
    beyond = 0
    for seed in range(12):
        x, _ = clusters(1, 60, seed)
        chosen = pyro_moe.select(gmm, x, num_components=[1, 2], seed=seed, **EM)
        lag, error = chosen.table[["difference", "difference_standard_error"]].loc[1]
        assert chosen.num_components == (1 if -lag <= error else 2)
        beyond += chosen.best > chosen.num_components
    assert beyond > 0


def test_the_chosen_story_is_fitted_to_all_rows(double):
    x, _ = clusters(3, 90)
    frame = pd.DataFrame(x.numpy(), columns=["left", "right"])
    chosen = pyro_moe.select(gmm, frame, num_components=[3], seed=5, **EM)
    again = pyro_moe.fit(*programs(gmm(3)), frame, seed=5, **EM)
    assert torch.equal(chosen.fit.story.mixture.loc, again.story.mixture.loc)
    assert chosen.fit.columns == ("left", "right")


def test_labels_choose_nothing():
    x, labels = clusters(3, 90)
    with_labels, without = (
        pyro_moe.select(gmm, data, num_components=[2, 3], **EM)
        for data in (Rows(x, labels=labels), x)
    )
    pd.testing.assert_frame_equal(with_labels.log_densities, without.log_densities)


# What it tells


def test_the_picture_shows_means_and_marks_the_choice():
    table = compare_log_densities(pd.DataFrame({2: [-9.0, -5.0], 3: [-2.0, -2.2], 4: [-1.8, -2.3]}))
    table.loc[5] = [-np.inf, np.nan, -np.inf, np.nan]
    axes = selection.Selection(pd.DataFrame(), table, 4, 3, None).plot().axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[2, -7.0], [3, -2.1], [4, -2.05]])
    best, chosen = (marks.get_offsets()[0] for marks in axes.collections[-2:])
    assert list(best) == [4, -2.05]
    assert list(chosen) == [3, -2.1]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"best: 4", "smallest within one standard error: 3"} < set(labels)


X = torch.zeros(10, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((models.GMM(2, 2), X), {}, "expected a function from the number of components to a story"),
        ((gmm, X), {"num_components": []}, "whole numbers of at least 1 in num_components; got []"),
        (
            (gmm, X),
            {"num_components": [0, 1]},
            "whole numbers of at least 1 in num_components; got [0, 1]",
        ),
        (
            (gmm, X),
            {"num_components": [2.5]},
            "whole numbers of at least 1 in num_components; got [2.5]",
        ),
        ((gmm, X), {"held_out": 1.0}, "expected held_out between 0 and 1; got 1.0"),
        ((gmm, X), {"folds": 1}, "expected folds from 2 to 10, the number of rows; got 1"),
        ((gmm, X), {"folds": 11}, "expected folds from 2 to 10, the number of rows; got 11"),
        ((gmm, X[:2]), {}, "expected at least 2 held-out rows and 1 to fit; got 2 rows"),
        ((gmm, X), {"initialize": torch.ones(10, 2)}, "expected initialize by name"),
    ],
)
def test_bad_arguments_are_errors(arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pyro_moe.select(*arguments, **EM, **options)


def test_an_interruption_ends_the_comparison(monkeypatch):
    def interrupted(*arguments, **options):
        return replace(pyro_moe.fit(*arguments, **options), stopped="interrupted")

    monkeypatch.setattr(selection, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pyro_moe.select(gmm, clusters(1, 20)[0], num_components=[1], **EM)


# Several stories


def test_stories_and_criteria_are_in_one_table():
    x, y = lines(2, 120)
    stories = {"me": me, "gmmmoe": lambda k: models.GMMMoE(1, 1, k)}
    options = {"num_components": [1, 2], "prior": "weak", "progress": False}
    chosen = pyro_moe.select(stories, (x, y), **options)
    table = chosen.table
    assert list(table.index) == [(name, k) for name in stories for k in (1, 2)]
    assert table["log_density"]["me", 1] == pytest.approx(table["log_density"]["gmmmoe", 1])
    assert chosen.num_components == 2
    assert chosen.fit.story.num_components == 2
    assert table["aic"].isna().tolist() == [False, False, True, True]  # densities of x and y
    assert (table["seconds"] > 0).all()
    rows = table.loc["me"]
    assert rows["parameters"].tolist() == [3, 8]  # lines and scales; a gate of one line
    expected = 2 * rows["parameters"] - 2 * rows["log_likelihood"]
    np.testing.assert_allclose(rows["aic"], expected)
    assert rows["bic"][1] == pytest.approx(rows["icl"][1])
    residuals = (
        y
        - torch.cat([x, torch.ones_like(x)], -1)
        @ torch.linalg.lstsq(torch.cat([x, torch.ones_like(x)], -1), y).solution
    )
    scale = residuals.square().mean().sqrt()
    by_hand = Normal(0.0, scale).log_prob(residuals).sum().item()
    assert rows["log_likelihood"][1] == pytest.approx(by_hand, abs=0.05)
    axes = chosen.plot().axes[0]
    assert {"me", "gmmmoe"} <= {text.get_text() for text in axes.get_legend().get_texts()}


def test_the_prior_of_a_choice_is_chosen_once(monkeypatch):
    asked = []

    def chosen(model, guide, columns, number, *_):
        asked.append((number, len(columns[0])))
        return Prior(3.0)

    monkeypatch.setattr("pyro_moe.fitting.plan.chosen_prior", chosen)
    x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    options = {"num_components": [1, 2], "folds": 3, "restarts": 1, "progress": False}
    found = select(lambda k: models.GMM(1, k), x, **options)
    assert asked == [(1, 40), (2, 40)]
    assert found.fit.settings["prior"]["rows"] == 3.0
    assert found.fit.num_rows == 60


def test_rows_bring_their_weights_and_labels():
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    about = {"weights": torch.arange(40) % 3 + 1.0, "labels": torch.full((40,), -1.0)}
    options = {"num_components": [1], "restarts": 1, "prior": "weak", "progress": False}
    one = select(lambda k: models.GMM(1, k), Rows(x, annotations=about), **options)
    other = select(lambda k: models.GMM(1, k), x, **about, **options)
    pd.testing.assert_frame_equal(one.log_densities, other.log_densities)
    assert one.fit.annotations.names == ("weights", "labels")
