"""Correlation within a kind: the check sees it, and no more once covariances are full."""

import pytest
import torch
from scipy import stats
from sklearn.datasets import load_breast_cancer
from torch.testing import assert_close

from pyro_moe import criticism, evaluation
from pyro_moe.inference.programs import modules


@pytest.fixture(scope="module")
def example(load):
    return load("full_covariance")


@pytest.fixture(scope="module")
def rows(example):
    return example.tumors()


@pytest.fixture(scope="module")
def fits(example, rows):
    return example.fitted(rows[0], epochs=25)


@pytest.fixture(scope="module")
def checks(example, fits, rows):
    own = {"x": {"correlation": example.correlation}}
    return {
        name: criticism.check(fit, rows[1], statistics=own, num_replicates=300)
        for name, fit in fits.items()
    }


def test_columns_are_correlated_within_a_kind(checks):
    surprises = checks["diagonal"].surprises()
    assert "correlation" in surprises["statistic"].tolist()
    assert (surprises["statistic"] == "correlation").mean() > 0.5
    assert surprises["component"].notna().any()


def test_full_covariances_have_that(checks):
    assert checks["full"].surprises().empty


def test_new_rows_are_likelier_with_full_covariances(fits, rows):
    table = criticism.compare(fits, rows[1])
    assert table.index.tolist() == ["full", "diagonal"]
    assert table["difference"].iloc[1] < -3 * table["difference_standard_error"].iloc[1]


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_the_density_is_a_mixture_of_scipys(fits, rows, name):
    fit, x = fits[name], rows[1].x
    (story,) = modules(fit.programs.model)
    mixture, scale = story.mixture, story.units.scale.detach()
    locs = story.units.loc + scale * mixture.loc.detach()
    density = 0.0
    for k, weight in enumerate(mixture.logits.detach().softmax(-1)):
        tril = scale[:, None] * mixture.scale_tril[k].detach()
        covariance = tril @ tril.T
        if name == "diagonal":
            covariance = covariance.diagonal().diag()
        normal = stats.multivariate_normal(locs[k], covariance)
        density = density + weight * torch.as_tensor(normal.pdf(x.double()))
    assert_close(evaluation.elbo(fit, rows[1]), density.log(), rtol=1e-4, atol=1e-4)


def test_em_never_lowers_the_likelihood_of_either(fits):
    for fit in fits.values():
        likelihoods = torch.tensor([record["elbo"] for record in fit.history])
        assert (likelihoods.diff() > -1e-5).all()


def test_the_statistic_is_the_correlation(example, rows):
    sample = criticism.Sample(rows[0].x, None, None, torch.zeros(len(rows[0])))
    by_pair = stats.pearsonr(rows[0].x[:, 0], rows[0].x[:, 2]).statistic
    assert example.correlation(sample)[1].item() == pytest.approx(by_pair, abs=1e-5)


def test_no_row_is_in_both_parts(rows):
    train, test = rows
    both = torch.cat([train.x, test.x])
    frame = load_breast_cancer(as_frame=True).data[list(train.columns)]
    everything = torch.tensor(frame.to_numpy(), dtype=torch.float32).log()
    assert_close(both.sort(0).values, everything.sort(0).values, rtol=0, atol=0)
    assert len(test) == 189
