"""Rows whose x lacks entries: the likelihood of what is observed, summed over the rest."""

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy.stats import multivariate_normal
from torch.testing import assert_close

import pyro_moe
from pyro_moe import evaluation, models
from pyro_moe.fitting.posterior import hmc
from pyro_moe.inference.errors import DataError, DataWarning

N, D, K = 200, 3, 2
QUIET = {"progress": False, "prior": "none", "missing_features": True}


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    c = torch.randint(0, K, (N,), generator=generator)
    x = torch.randn(N, D, generator=generator).double()
    x[:, 1] += x[:, 0]
    x = x + 4.0 * c.unsqueeze(-1)
    y = torch.where(c == 1, 2 * x[:, 0] - x[:, 2], 1 - x[:, 1]).unsqueeze(-1)
    y = y + 0.3 * torch.randn(N, 1, generator=generator).double()
    gaps = torch.rand(N, D, generator=generator) < 0.2
    gaps[0] = True  # nothing of x is observed
    return x, y, x.masked_fill(gaps, torch.nan)


def fitted(story, data, **options):
    return pyro_moe.fit(story.model, story.guide, data, **(QUIET | options))


def normal(mean, covariance, value):
    """The log-density of the entries of a row that are no NaN, by SciPy."""
    known = ~np.isnan(value)
    if not known.any():
        return 0.0
    return multivariate_normal(mean[known], covariance[np.ix_(known, known)]).logpdf(value[known])


def arrays(mixture):
    normals = mixture.normals
    parts = (mixture.logits.log_softmax(-1), normals.mean, normals.covariance_matrix)
    return (part.detach().double().numpy() for part in parts)


def joint_by_hand(story, x, y):
    """Log p(x_o, y, c=k) of the joint normals of x and y, shape (N, K)."""
    log_weights, means, covariances = arrays(story.mixture)
    maps = story.experts.linear_predictor(D).detach().numpy()
    noise = story.experts.covariances().detach().numpy()
    found = np.empty((len(x), K))
    for k in range(K):
        w, b = maps[k][:, :-1], maps[k][:, -1]
        mean = np.concatenate([means[k], w @ means[k] + b])
        across = w @ covariances[k]
        bottom = np.block([[across, across @ w.T + noise[k]]])
        whole = np.block([[covariances[k], across.T], [bottom]])
        both = np.concatenate([x.numpy(), y.numpy()], -1)
        found[:, k] = log_weights[k] + [normal(mean, whole, row) for row in both]
    return found


def test_the_density_of_a_gaussian_mixture_is_that_of_the_observed_entries(rows):
    _, _, x = rows
    fit = fitted(models.GMM(D, K), x)
    log_weights, means, covariances = arrays(fit.story.mixture)
    each = np.array(
        [
            [log_weights[k] + normal(means[k], covariances[k], row) for k in range(K)]
            for row in x.numpy()
        ]
    )
    expected = np.logaddexp.reduce(each, -1)
    assert_close(evaluation.elbo(fit, x).double().numpy(), expected)
    assert fit.run.e_step()[1].item() == pytest.approx(expected.sum())
    gate = np.exp(each - expected[:, None])
    assert_close(evaluation.gate(fit, x).double().numpy(), gate)


def test_the_density_of_a_mixture_of_experts_is_that_of_the_observed_entries(rows):
    _, y, x = rows
    fit = fitted(models.GMMMoE(D, 1, K), (x, y))
    expected = np.logaddexp.reduce(joint_by_hand(fit.story, x, y), -1)
    assert_close(evaluation.elbo(fit, (x, y)).double().numpy(), expected, rtol=1e-6, atol=1e-6)
    nothing = torch.full_like(y, torch.nan)
    of_x = np.logaddexp.reduce(joint_by_hand(fit.story, x, nothing), -1)
    log_prob = fit.predict(x).log_prob(y)  # averaged over what is missing
    assert_close(log_prob.numpy(), expected - of_x, rtol=1e-6, atol=1e-6)


def test_a_prediction_without_any_entry_is_that_of_y_alone(rows):
    _, y, x = rows
    fit = fitted(models.GMMMoE(D, 1, K), (x, y))
    drawn = fit.story.mixture.normals.mean.detach()
    prediction = fit.predict(x[:1])
    weights = fit.story.mixture.logits.softmax(-1)
    means = fit.story.experts(drawn).mean[torch.arange(K), torch.arange(K)]
    assert_close(prediction.mean[0], (weights.unsqueeze(-1) * means).sum(0).detach())


@pytest.mark.parametrize("options", [{}, {"prior": "weak"}, {"weights": torch.arange(N) % 3}])
@pytest.mark.parametrize("with_targets", [False, True])
def test_the_objective_does_not_decrease(with_targets, options, rows):
    _, y, x = rows
    story = models.GMMMoE(D, 1, K, shrinkage=0.0) if with_targets else models.GMM(D, K)
    fit = fitted(story, (x, y) if with_targets else (x,), **options)
    values = np.array([record["objective"] for record in fit.history])
    assert len(values) > 3
    assert np.diff(values).min() > -1e-5  # up to the ridge of the covariances


def test_missing_targets_too(rows):
    _, y, x = rows
    y = y.clone()
    y[::4] = torch.nan
    fit = fitted(models.GMMMoE(D, 1, K), (x, y), missing_targets=True)
    expected = np.logaddexp.reduce(joint_by_hand(fit.story, x, y), -1)
    assert fit.run.e_step()[1].item() == pytest.approx(expected.sum(), rel=1e-6)


def test_rows_that_lack_one_of_several_targets_are_named(rows):
    x, y, _ = rows
    both = torch.cat([y, y], 1)
    both[::4, 1] = torch.nan
    with pytest.warns(DataWarning, match=f"got some in {len(x[::4])} rows, whose targets are left"):
        fit = fitted(models.GMMMoE(D, 2, K), (x, both), missing_targets=True)
    both[::4] = torch.nan
    again = fitted(models.GMMMoE(D, 2, K), (x, both), missing_targets=True)
    torch.testing.assert_close(again.story.experts.log_scale, fit.story.experts.log_scale)


@pytest.mark.parametrize("with_targets", [False, True])
def test_a_table_without_gaps_is_fitted_as_before(with_targets, rows):
    x, y, _ = rows
    story = models.GMMMoE(D, 1, K) if with_targets else models.GMM(D, K)
    data = (x, y) if with_targets else (x,)
    one, two = (fitted(story, data, missing_features=flag) for flag in (True, False))
    for name, value in one.parameters().items():
        assert torch.equal(two.parameters()[name], value)


def test_entries_missing_at_random_leave_the_estimates_within_their_errors():
    generator = torch.Generator().manual_seed(1)
    number = 4000
    c = torch.rand(number, generator=generator) < 0.4
    x = torch.randn(number, 2, generator=generator).double()
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    x = torch.where(c.unsqueeze(-1), x + 5.0, x)
    gaps = torch.zeros(number, 2, dtype=torch.bool)
    gaps[:, 1] = torch.rand(number, generator=generator) < (x[:, 0] > 0).double() * 0.6
    fit = fitted(models.GMM(2, 2), x.masked_fill(gaps, torch.nan))
    normals = fit.story.mixture.normals
    order = normals.mean[:, 0].argsort()
    means, covariances = normals.mean[order], normals.covariance_matrix[order]
    for k, loc in enumerate((0.0, 5.0)):
        error = (number * (0.4, 0.6)[1 - k] * 0.4) ** -0.5
        assert_close(means[k], torch.full((2,), loc).double(), rtol=0.0, atol=4 * error)
        expected = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
        assert_close(covariances[k], expected, rtol=0.0, atol=6 * error)


@pytest.mark.parametrize("name", ["VAE", "VaDE", "DMVAE"])
def test_the_bound_of_a_vae_leaves_missing_entries_out(name, rows):
    _, _, x = rows
    story = {
        "VAE": lambda: models.VAE(D, 2, hidden=(8,)),
        "VaDE": lambda: models.VaDE(D, 2, K, hidden=(8,)),
        "DMVAE": lambda: models.DMVAE(D, 2, K, hidden=(8,)),
    }[name]()
    fit = fitted(story, x, epochs=5, batch_size=50)
    assert all(np.isfinite(record["elbo"]) for record in fit.history)
    assert evaluation.elbo(fit, x, num_samples=64)[0] <= 0.05  # of log 1
    data = fit.as_tensors(x)
    with torch.no_grad():
        guide = poutine.trace(fit.guide).get_trace(*data)
        model = poutine.trace(poutine.replay(fit.model, trace=guide)).get_trace(*data)
        p = fit.story.decoder(guide.nodes["z"]["value"]).base_dist
        each = p.log_prob(data[0].nan_to_num(0.0)).double()
    model.compute_log_prob()
    expected = torch.where(x.isnan(), 0.0, each).sum(-1)
    assert_close(model.nodes["x"]["log_prob"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.ME(D, 1, K),
        lambda: models.DeepMoE(D, 1, K),
        lambda: models.VaDEMoE(D, 1, K, 2),
        lambda: models.GMMMoE(D, 1, K, experts="student-t"),
    ],
)
def test_stories_without_a_density_of_what_is_missing_name_the_choices(make, rows):
    _, y, x = rows
    with pytest.raises(ValueError, match=r"GMMMoE with normal experts, .*; got .*impute them"):
        fitted(make(), (x, y))
    with pytest.raises(DataError, match=r"expected finite values in x; got nan .*missing_features"):
        fitted(make(), (x, y), missing_features=False)


def test_experts_of_codes_take_rows_with_gaps(rows):
    _, y, x = rows
    story = models.VaDEMoE(D, 1, K, 2, context="z", hidden=(8,))
    fit = fitted(story, (x, y), epochs=3, batch_size=100)
    assert fit.predict(x).mean.isfinite().all()
    assert evaluation.elbo(fit, (x, y)).isfinite().all()


def test_predictions_of_other_stories_do_not_take_gaps(rows):
    x, y, gaps = rows
    story = models.ME(D, 1, K)
    fit = pyro_moe.fit(story.model, story.guide, (x, y), epochs=2, progress=False)
    with pytest.raises(DataError, match=r"in x; got nan .*: leave these rows out"):
        fit.predict(gaps)


def test_a_column_without_a_value_is_refused(rows):
    x = rows[2].clone()
    x[:, 1] = torch.nan
    with pytest.raises(DataError, match="expected an observed value in each column of x; got none"):
        fitted(models.GMM(D, K), x)


def test_reports_and_pictures_take_rows_with_gaps(rows, tmp_path):
    _, y, gaps = rows
    fit = fitted(models.GMMMoE(2, 1, K), (gaps[:, :2], y))
    page = fit.report(tmp_path / "report.html", num_replicates=19).read_text()
    assert "one linear model" not in page  # which cannot read them
    assert "Most probable component" in page or "data:image" in page


def test_a_restored_fit_takes_its_rows_with_gaps(rows, tmp_path):
    _, y, gaps = rows
    fit = fitted(models.GMMMoE(D, 1, K), (gaps, y))
    arguments = {"x_dim": D, "y_dim": 1, "num_components": K}
    pyro_moe.runs.save(fit, tmp_path, story_name="gmmmoe", story_arguments=arguments)
    restored = pyro_moe.runs.fit_of(tmp_path, (gaps, y))
    assert restored.restored is None
    assert_close(evaluation.elbo(restored, (gaps, y)), evaluation.elbo(fit, (gaps, y)))


def test_posterior_draws_need_rows_without_gaps(rows):
    _, y, gaps = rows
    fit = fitted(models.GMMMoE(D, 1, 1), (gaps, y))
    with pytest.raises(DataError, match="expected rows without missing entries of x; got some"):
        hmc(fit)
