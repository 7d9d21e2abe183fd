import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import pyro_moe
from pyro_moe import DataError, Rows, SiteError, datasets, evaluation, models
from pyro_moe.distributions.mixture import Mixture
from pyro_moe.evaluation.imputation import importance
from pyro_moe.evaluation.imputation.gibbs import Chains

pytestmark = pytest.mark.usefixtures("double")
N, D, K, L = 200, 4, 3, 2
NAN = float("nan")
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def as_it_is(model, guide, *columns):
    data = columns[0] if len(columns) == 1 else columns
    return pyro_moe.fit(model, guide, data, epochs=0, initialize="keep", progress=False)


@pytest.fixture
def x():
    return torch.randn(N, D)


@pytest.fixture
def missing():
    """Half of the entries, and the first row's all, and none of the second's."""
    chosen = torch.rand(N, D) < 0.5
    chosen[0], chosen[1] = True, False
    return chosen


@pytest.fixture
def mixture(scatter, x):
    story = scatter(models.GMM(D, K))
    return as_it_is(story.model, story.guide, x)


def moments(log_weights, locs, covariances, row, known):
    """The mean and variance of a row given some of its columns under a mixture of normals."""
    log_p, means, variances = [], [], []
    for log_weight, loc, covariance in zip(log_weights, locs, covariances, strict=True):
        gain = covariance[:, known] @ covariance[known][:, known].inverse()
        means.append(loc + gain @ (row - loc)[known])
        variances.append((covariance - gain @ covariance[known]).diagonal())
        p = dist.MultivariateNormal(loc[known], covariance[known][:, known])
        log_p.append(log_weight + (p.log_prob(row[known]) if known.any() else 0.0))
    weights = torch.stack(log_p).softmax(0)
    means, variances = torch.stack(means), torch.stack(variances)
    mean = weights @ means
    return mean, weights @ (variances + (means - mean).square())


def exact_moments(log_weights, locs, covariances, x, missing):
    rows = [
        moments(log_weights, locs, covariances, row, ~hidden)
        for row, hidden in zip(x, missing, strict=True)
    ]
    means, variances = map(torch.stack, zip(*rows, strict=True))
    return torch.where(missing, means, x), torch.where(missing, variances, 0.0)


def parts(story):
    prior = getattr(story, "mixture", None) or story.prior
    factors = prior.scale_tril.expand(K, -1, -1)
    with torch.no_grad():
        return prior.logits.log_softmax(-1), prior.loc, factors @ factors.mT


# Exact where nothing but c is latent


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
def test_a_mixture_of_normals_is_conditioned_exactly(scatter, x, missing, covariance):
    story = scatter(models.GMM(D, K, covariance=covariance))
    fit = as_it_is(story.model, story.guide, x)
    filled = evaluation.impute(fit, x.masked_fill(missing, NAN), num_samples=2)
    mean, variance = exact_moments(*parts(story), x, missing)
    assert_close(filled.mean, mean, **CLOSE)
    assert_close(filled.variance, variance, **CLOSE)


def test_targets_have_no_part_in_it(scatter, x, missing):
    story = scatter(models.GMMMoE(D, 1, K))
    fit = as_it_is(story.model, story.guide, x, torch.randn(N))
    gaps = x.masked_fill(missing, NAN)
    filled = evaluation.impute(fit, gaps, num_samples=2)
    assert_close(filled.mean, exact_moments(*parts(story), x, missing)[0], **CLOSE)
    assert_close(filled.effective_samples, torch.full((N,), 2.0))  # exact: one round is enough
    assert_close(evaluation.impute(fit, (gaps, torch.ones(N)), num_samples=2).mean, filled.mean)


def test_every_draw_is_one_of_the_conditional_distribution(mixture):
    """Of rows that are all the same, the first draws alone have its moments and its shape."""
    row = torch.tensor([[0.5, NAN, -0.2, NAN]])
    num_rows = 4000
    filled = evaluation.impute(mixture, row.expand(num_rows, D), num_samples=3)
    for draw in filled.draws:
        error = draw[:, [1, 3]].mean(0) - filled.mean[0, [1, 3]]
        assert (error.abs() < 4.5 * (filled.variance[0, [1, 3]] / num_rows).sqrt()).all()
        squares = (draw - filled.mean).square()[:, [1, 3]]
        error = squares.mean(0) - filled.variance[0, [1, 3]]
        assert (error.abs() < 4.5 * squares.std(0) / num_rows**0.5).all()
    first, second = filled.draws[0, :, 1], filled.draws[1, :, 1]
    # Draws of one row are spread over its components: a little negatively correlated at most.
    assert -0.5 < torch.corrcoef(torch.stack((first, second)))[0, 1] < 0.05


def test_columns_that_depend_on_each_other_are_drawn_together(scatter, x):
    story = scatter(models.GMM(D, 1), scale=1.0)
    fit = as_it_is(story.model, story.guide, x)
    row = torch.tensor([[0.5, NAN, NAN, NAN]]).expand(4000, D)
    draws = evaluation.impute(fit, row, num_samples=1).draws[0, :, 1:]
    covariance = parts(story)[2][0]
    expected = covariance - torch.outer(covariance[0], covariance[0]) / covariance[0, 0]
    products = (draws - draws.mean(0)).unsqueeze(-1) * (draws - draws.mean(0)).unsqueeze(-2)
    assert ((products.mean(0) - expected[1:, 1:]).abs() < 4.5 * products.std(0) / 4000**0.5).all()


# By importance sampling where z is latent


class LinearGaussian:
    """x ~ N(W z + b, s²), z from K normals of unit covariance, and a guide that is the posterior.

    It is, with one component: with several it has the posterior of the first.
    """

    def __init__(self, num_components=1, shift=0.0, scale=1.0):
        self.weight, self.bias, self.noise = torch.randn(L, D), torch.randn(D), 0.4
        self.locs = 2.0 * torch.randn(num_components, L)
        self.covariance = (torch.eye(L) + self.weight @ self.weight.T / self.noise**2).inverse()
        self.shift, self.scale = shift, scale

    def model(self, x):
        pyro.param("unused", torch.zeros(()))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.ones(len(self.locs))))
            z = pyro.sample("z", dist.Normal(c @ self.locs, 1.0).to_event(1))
            p = dist.Normal(z @ self.weight + self.bias, self.noise)
            pyro.sample("x", p.to_event(1), obs=x)

    def guide(self, x):
        signal = self.locs[0] + (x - self.bias) @ self.weight.T / self.noise**2
        with pyro.plate("data", len(x)):
            loc = signal @ self.covariance + self.shift
            pyro.sample("z", dist.MultivariateNormal(loc, self.scale**2 * self.covariance))

    def of_x(self):
        """The mixture of normals that x is."""
        covariance = self.weight.T @ self.weight + self.noise**2 * torch.eye(D)
        locs = self.locs @ self.weight + self.bias
        log_weights = torch.zeros(len(locs)).log_softmax(-1)
        return log_weights, locs, covariance.expand(len(locs), D, D)

    def rows(self, num_rows):
        _, locs, covariances = self.of_x()
        k = torch.randint(len(locs), (num_rows,))
        return dist.MultivariateNormal(locs[k], covariances[k]).sample()


def errors(story, missing, **choices):
    """Errors of means, in standard deviations, over standard errors; ratios of variances."""
    x = story.rows(N)
    fit = as_it_is(story.model, story.guide, x)
    filled = evaluation.impute(fit, x.masked_fill(missing, NAN), **choices)
    mean, variance = exact_moments(*story.of_x(), x, missing)
    standard_error = (variance / filled.effective_samples.unsqueeze(-1)).sqrt()
    means = ((filled.mean - mean) / standard_error)[missing]
    draws = ((filled.draws.mean(0) - mean) / variance.sqrt())[missing]
    return means, (filled.variance / variance)[missing], draws


STORIES = {
    "at the posterior": lambda: LinearGaussian(),
    "off the posterior": lambda: LinearGaussian(shift=0.1, scale=1.3),
    "of several components": lambda: LinearGaussian(num_components=3, scale=1.3),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_linear_gaussian_story_is_conditioned_up_to_monte_carlo_error(missing, name):
    means, ratios, draws = errors(STORIES[name](), missing)
    # Entries of a row share an error, so that there are about N independent ones.
    assert means.square().mean().sqrt() < 1.5
    assert means.mean().abs() < 4.5 / N**0.5
    assert abs(ratios.mean() - 1.0) < 0.08
    assert draws.square().mean().sqrt() < 2.0 / 64**0.5


def test_more_samples_bring_the_means_closer():
    story = LinearGaussian(num_components=3, scale=1.3)
    x = story.rows(20)
    missing = torch.rand(20, D) < 0.5
    fit = as_it_is(story.model, story.guide, x)
    mean, variance = exact_moments(*story.of_x(), x, missing)

    def error(num_samples):
        filled = evaluation.impute(
            fit, x.repeat(10, 1).masked_fill(missing.repeat(10, 1), NAN), num_samples=num_samples
        )
        each = (filled.mean.reshape(10, 20, D) - mean) / variance.sqrt()
        return each[:, missing].square().mean().sqrt()

    assert error(128) < 0.6 * error(16)  # 0.35 if the error falls as one over the square root


def test_the_encoder_alone_is_too_narrow(missing, monkeypatch):
    """What the mixture of proposals is for: without it the same check sees a wrong variance."""
    monkeypatch.setattr(importance, "_mix", lambda trace, num_proposals: None)
    _, ratios, _ = errors(LinearGaussian(), missing, num_moves=0)
    assert ratios.mean() < 0.85


def exact_draws(log_weights, locs, covariances, row, known, number):
    """Rows (number, D) with the columns that are not known drawn from a mixture of normals."""
    rows = row.repeat(number, 1)
    if known.all():
        return rows
    log_p, draws = [], []
    for log_weight, loc, covariance in zip(log_weights, locs, covariances, strict=True):
        gain = covariance[~known][:, known] @ covariance[known][:, known].inverse()
        rest = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
        p = dist.MultivariateNormal(loc[~known] + gain @ (row - loc)[known], rest)
        draws.append(p.sample((number,)))
        p = dist.MultivariateNormal(loc[known], covariance[known][:, known])
        log_p.append(log_weight + (p.log_prob(row[known]) if known.any() else 0.0))
    k = torch.multinomial(torch.stack(log_p).softmax(0), number, replacement=True)
    rows[:, ~known] = torch.stack(draws)[k, torch.arange(number)]
    return rows


@pytest.mark.parametrize("name", STORIES)
def test_moves_leave_the_conditional_distribution_as_it_is(missing, name):
    story, missing, number = STORIES[name](), missing[:20], 500
    x, parts = story.rows(20), story.of_x()
    start = [exact_draws(*parts, *each, number) for each in zip(x, ~missing, strict=True)]
    chains = Chains(as_it_is(story.model, story.guide, x), ~missing, [], torch.stack(start, 1))
    chains.move(40)
    mean, variance = exact_moments(*parts, x, missing)
    means = ((chains.draws.mean(0) - mean) / (variance / number).sqrt())[missing]
    assert means.square().mean().sqrt() < 1.4
    squares = (chains.draws - mean).square() / variance
    ratios = (squares.mean(0) - 1.0) / (squares.std(0) / number**0.5)
    assert ratios[missing].square().mean().sqrt() < 1.4
    assert (chains.mean - mean)[missing].square().mean() < (variance[missing] / 100).mean()
    assert torch.equal(chains.draws[:, ~missing], x[~missing].expand(number, -1))
    assert (chains.num_moved > 300).all()


def test_a_story_without_codes_has_no_chains():
    story = models.GMM(D, K)
    x = torch.randn(5, D)
    chains = Chains(as_it_is(story.model, story.guide, x), x > 0, [], x.expand(3, 5, D))
    assert not chains.can_move


def test_the_shape_of_latent_variables_is_free(missing):
    """Two sites instead of one, of which the second depends on the first."""
    story = LinearGaussian()

    def model(x):
        pyro.param("unused", torch.zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            p = dist.Normal(torch.cat((z, w), -1) @ story.weight + story.bias, story.noise)
            pyro.sample("x", p.to_event(1), obs=x)

    def guide(x):
        signal = (x - story.bias) @ story.weight.T / story.noise**2
        loc, covariance = signal @ story.covariance, story.covariance
        slope = covariance[1, 0] / covariance[0, 0]
        rest = covariance[1, 1] - slope * covariance[1, 0]
        with pyro.plate("data", len(x)):
            q = dist.Normal(loc[:, :1], covariance[0, 0].sqrt())
            z = pyro.sample("z", q.to_event(1))
            q = dist.Normal(loc[:, 1:] + slope * (z - loc[:, :1]), rest.sqrt())
            pyro.sample("w", q.to_event(1))

    story.locs = torch.zeros(1, L)
    x = story.rows(N)
    fit = as_it_is(model, guide, x)
    filled = evaluation.impute(fit, x.masked_fill(missing, NAN))
    mean, variance = exact_moments(*story.of_x(), x, missing)
    column = (x.mean(0) - mean)[missing].square().mean()
    assert (filled.mean - mean)[missing].square().mean() < 0.2 * column
    assert (filled.variance / variance)[missing].mean() > 0.6  # narrow, as said of one proposal


def test_latent_variables_that_rows_share_are_averaged_over():
    """x_1, x_2 ~ N(t, 1) with t ~ N(0, 1): E[x_2 | x_1] = x_1 / 2 and Var = 3 / 2."""

    def model(x):
        pyro.param("unused", torch.zeros(()))
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(t, 1.0).expand([2]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("t", dist.Normal(0.0, 1.0))

    fit = as_it_is(model, guide, torch.randn(5, 2))
    rounds = 600
    filled = evaluation.impute(fit, [[1.0, NAN]], num_samples=1, num_rounds=rounds)
    assert abs(filled.mean[0, 1] - 0.5) < 4.5 * (0.5 / filled.effective_samples[0]) ** 0.5
    assert abs(filled.variance[0, 1] - 1.5) < 0.2
    assert 0.5 * rounds < filled.effective_samples[0] < rounds


# What stays as it is


@pytest.mark.parametrize("name", ["gmm", "vade", "dmvae", "vae"])
def test_what_was_observed_is_not_touched(scatter, x, missing, name):
    story = {
        "gmm": lambda: models.GMM(D, K),
        "vae": lambda: models.VAE(D, L, hidden=(5,)),
        "vade": lambda: models.VaDE(D, L, K, hidden=(5,)),
        "dmvae": lambda: models.DMVAE(D, L, K, hidden=(5,)),
    }[name]()
    fit = as_it_is(scatter(story).model, story.guide, x)
    filled = evaluation.impute(fit, x.masked_fill(missing, NAN), num_samples=8, num_rounds=2)
    assert len(filled) == N
    assert filled.draws.shape == (8, N, D)
    for values in (filled.mean, *filled.draws):
        assert torch.equal(values[~missing], x[~missing])
        assert values.isfinite().all()
    assert (filled.variance[~missing] == 0).all()
    assert (filled.variance[missing] > 0).all()
    assert filled.effective_samples[1] == 8  # a row without gaps
    assert (filled.effective_samples[missing.any(-1)] < 24 + 1e-9).all()


def test_rows_without_gaps_are_returned(mixture, x):
    filled = evaluation.impute(mixture, x, num_samples=2)
    assert torch.equal(filled.mean, x)
    assert torch.equal(filled.draws, x.expand(2, N, D))
    assert not filled.variance.any()


@pytest.mark.parametrize("distance", [1e3, 1e8, 1e200])
def test_far_rows_are_filled_in(scatter, x, distance):
    story = scatter(models.DMVAE(D, L, K, hidden=(5,)))
    fit = as_it_is(story.model, story.guide, x)
    filled = evaluation.impute(fit, [[distance, NAN, -distance, NAN]], num_samples=8)
    assert filled.mean.isfinite().all()
    assert filled.draws.isfinite().all()
    assert filled.effective_samples.isfinite().all()


def test_the_seed_decides_the_draws(scatter, x, missing):
    story = scatter(models.VAE(D, L, hidden=(5,)))
    fit, gaps = as_it_is(story.model, story.guide, x), x.masked_fill(missing, NAN)
    first, same, other = (
        evaluation.impute(fit, gaps, num_samples=4, num_rounds=1, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.draws, same.draws)
    assert not torch.equal(first.mean, other.mean)


# Real data


def test_pixels_are_filled_in_better_than_by_their_means():
    torch.set_default_dtype(torch.float32)
    train, test = datasets.digits()
    story = models.VAE(64, 5, common_scale=True)
    fit = pyro_moe.fit(
        story.model, story.guide, train.x, epochs=20, seed=0, prior="none", progress=False
    )
    x = test.x[:100]
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    filled = evaluation.impute(fit, x.masked_fill(missing, NAN), num_samples=32)
    error = (filled.mean - x)[missing].square().mean().sqrt()
    assert error < 0.75 * (train.x.mean(0) - x)[missing].square().mean().sqrt()


# What is given and what is refused


def test_gaps_are_given_as_users_hold_them(x, mixture):
    story = mixture.story
    columns = ("a", "b", "c", "d")
    fit = as_it_is(story.model, story.guide, pd.DataFrame(x.numpy(), columns=columns))
    gaps = torch.tensor([[0.5, NAN, -0.2, 1.0]])
    frame = pd.DataFrame([[0.5, None, -0.2, 1]], columns=columns, dtype=object)
    expected = evaluation.impute(fit, gaps).mean
    for given in (gaps.numpy(), gaps.tolist(), Rows(gaps), (gaps, torch.ones(1)), frame):
        assert_close(evaluation.impute(fit, given).mean, expected)
    turned = frame[["b", "a", "d", "c"]]
    assert_close(evaluation.impute(fit, turned).mean, expected)  # columns as fitted


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[NAN, 1.0]], "x with 4 columns, as fitted; got 2"),
        ([NAN, 1.0], "x of shape"),
        ([[NAN, 1.0, float("inf"), 0.0]], "finite values in x; got inf"),
    ],
)
def test_bad_rows_are_refused(mixture, rows, message):
    with pytest.raises(DataError, match=message):
        evaluation.impute(mixture, rows)


@pytest.mark.parametrize(("name", "value"), [("num_samples", 0), ("num_rounds", -1)])
def test_there_are_samples(mixture, name, value):
    with pytest.raises(ValueError, match=f"expected {name} of at least .; got {value}"):
        evaluation.impute(mixture, [[NAN] * D], **{name: value})


def test_a_gate_without_a_story_of_x_fills_nothing_in(x):
    story = models.ME(D, 1, K)
    fit = as_it_is(story.model, story.guide, x, torch.randn(N))
    with pytest.raises(SiteError, match=r"site 'x' in the model; got sites \['c', 'y'\]"):
        evaluation.impute(fit, [[NAN] * D])


def test_columns_that_depend_on_each_other_otherwise_are_refused(x):
    def model(x):
        loc = pyro.param("loc", torch.zeros(2, D))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Mixture(torch.zeros(2), dist.Normal(loc, 1.0).to_event(1)), obs=x)

    fit = as_it_is(model, lambda x: None, x)
    with pytest.raises(ValueError, match="independent given the latent variables, or normal"):
        evaluation.impute(fit, [[NAN] * D])


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_of_single_precision_draws_are_single_and_moments_double(covariance):
    story = models.GMM(2, 2, covariance=covariance).float()
    x = torch.randn(40, 2, dtype=torch.float32)
    fit = pyro_moe.fit(story.model, story.guide, x, loss="marginal", epochs=2, progress=False)
    holes = x.where(x > 0, torch.nan)
    filled = evaluation.impute(fit, holes, num_samples=4)
    assert filled.draws.dtype == torch.float32
    assert filled.mean.dtype == filled.variance.dtype == torch.float64
    known = ~holes.isnan()
    assert torch.equal(filled.mean[known].float(), x[known])


def test_predictions_of_incomplete_rows_are_averages_over_imputations():
    """A story of plain functions, beside the same story that has the exact answer."""
    torch.manual_seed(0)
    story = models.GMMMoE(2, 1, 2)
    x = torch.randn(300, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]) + torch.tensor([0.0, 1.0])
    y = 3.0 * x[:, :1].abs() + 0.1 * torch.randn(300, 1)
    exact = pyro_moe.fit(story.model, story.guide, (x, y), epochs=40, progress=False)

    def model(x, y=None):
        return exact.programs.model(x, y)

    def guide(x, y=None):
        return exact.programs.guide(x, y)

    fit = as_it_is(model, guide, x, y)
    rows = torch.tensor([[NAN, 1.0], [0.3, NAN], [0.5, 0.5], [NAN, NAN]])
    found, expected = evaluation.predict(fit, rows), evaluation.predict(exact, rows)
    assert len(found.log_weights) == 32
    error = (found.mean - expected.mean).abs()
    assert (error < 4.5 * (expected.variance / 32).sqrt() + 1e-9).all()
    assert_close(found.mean[2], expected.mean[2], **CLOSE)
    ratios = found.variance[[0, 1, 3]] / expected.variance[[0, 1, 3]]
    assert ((ratios > 0.4) & (ratios < 2.0)).all()
    for data in ((rows, None), TensorDataset(rows), Rows(rows), pd.DataFrame(rows.numpy())):
        assert_close(evaluation.predict(fit, data).mean, found.mean, **CLOSE)
    with pytest.raises(DataError, match="expected finite values in x; got inf in row 0"):
        evaluation.predict(fit, torch.tensor([[NAN, torch.inf]]))


def test_incomplete_rows_without_a_density_of_x_are_refused():
    story = models.ME(2, 1, 2)
    fit = as_it_is(story.model, story.guide, torch.randn(9, 2), torch.randn(9, 1))
    with pytest.raises(DataError, match="expected finite values in x; got nan"):
        evaluation.predict(fit, [[NAN, 1.0]])
