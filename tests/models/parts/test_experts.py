import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from torch import nn
from torch.testing import assert_close

from pyro_moe.distributions import rounding_error
from pyro_moe.models import (
    ME,
    MLP,
    AffineMaps,
    BernoulliExperts,
    CategoricalExperts,
    NormalConditional,
    NormalExperts,
    StackedExperts,
    Standardize,
    StudentTExperts,
)
from pyro_moe.models.parts.experts import MIN_SCALE, Experts, adapt_experts, experts_of
from pyro_moe.models.parts.targets import log_likelihoods

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-9, "atol": 1e-9}
N, D, K, M = 30, 2, 3, 2
COVARIANCES = ["scalar", "diagonal", "full"]
each_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


@pytest.fixture
def x():
    return torch.randn(N, D) * torch.tensor([1.0, 30.0]) + 5.0


@pytest.fixture
def y(x):
    """Targets far from standard units, correlated given x."""
    noise = torch.randn(N, M) @ torch.tensor([[1.0, 0.8], [0.0, 0.5]])
    return (x @ torch.tensor([[1.0, -1.0], [0.1, 0.2]]) + noise) * torch.tensor([1e-2, 1e3]) + 7.0


@pytest.fixture
def r():
    return torch.rand(N, K)


@pytest.fixture
def make(scatter, x):
    """A function that makes experts of a family in the units of x and y, scattered."""

    def experts(family, y):
        units = Standardize(D)
        units.adapt(x)
        made = experts_of(family, D, K, M, units=units)
        adapt_experts(made, x, y)
        return scatter(made)

    return experts


def numbers(tensor):
    return tensor.detach().numpy()


def outputs(experts, x):
    """f_k(x) from the raw weights in numpy, shape (N, K, M)."""
    maps = experts.network
    u = (numbers(x) - numbers(maps.units.loc)) / numbers(maps.units.scale)
    return np.einsum("nd,kpd->nkp", u / np.sqrt(D), numbers(maps.weight)) + numbers(maps.bias)


# Densities, in the units of the data


def test_normal_experts_are_normal_around_affine_maps(make, x, y):
    experts = make("normal", y)
    m, s = y.numpy().mean(0), y.numpy().std(0)
    scale = s * (MIN_SCALE + np.exp(numbers(experts.log_scale)))
    expected = stats.norm(m + s * outputs(experts, x), scale).logpdf(y.numpy()[:, None]).sum(-1)
    np.testing.assert_allclose(numbers(experts(x).log_prob(y.unsqueeze(1))), expected, **EXACT)
    np.testing.assert_allclose(numbers(experts(x).mean), m + s * outputs(experts, x), **EXACT)


def test_student_t_experts_are_students_t_around_affine_maps(make, x, y):
    experts = make("student-t", y)
    low, m, high = np.quantile(y.numpy(), [0.25, 0.5, 0.75], axis=0)
    s = (high - low) / 1.349
    scale = s * (MIN_SCALE + np.exp(numbers(experts.log_scale)))
    df = 0.5 + np.exp(numbers(experts.log_excess_df))
    t = stats.t(df, m + s * outputs(experts, x), scale)
    expected = t.logpdf(y.numpy()[:, None]).sum(-1)
    np.testing.assert_allclose(numbers(experts(x).log_prob(y.unsqueeze(1))), expected, **EXACT)
    np.testing.assert_allclose(numbers(experts(x).variance), t.var(), **EXACT)


@each_covariance
def test_a_covariance_is_in_the_units_of_the_targets(scatter, x, y, covariance):
    maps = AffineMaps(D, K, M, units=Standardize(D))
    experts = scatter(NormalExperts(maps, K, M, covariance=covariance))
    adapt_experts(experts, x, y)
    s = y.numpy().std(0)
    factor = np.stack(
        [
            np.eye(M) * MIN_SCALE + np.diag(np.exp(np.broadcast_to(row, M)))
            for row in numbers(experts.log_scale)
        ]
    )
    if covariance == "full":
        factor = factor @ (np.eye(M) + np.tril(numbers(experts.correlation), -1))
    gamma, u = factor @ factor.transpose(0, 2, 1), (y.numpy() - y.numpy().mean(0)) / s
    f = outputs(experts, x)
    standard = [
        [stats.multivariate_normal(f[n, k], gamma[k]).logpdf(u[n]) for k in range(K)]
        for n in range(N)
    ]
    expected = np.array(standard) - np.log(s).sum()
    np.testing.assert_allclose(numbers(experts(x).log_prob(y.unsqueeze(1))), expected, **EXACT)


def test_categorical_experts_are_softmax_regressions(make, x):
    y = torch.arange(N) % M
    experts = make("categorical", y)
    expected = log_softmax(outputs(experts, x), axis=-1)[np.arange(N), :, y.numpy()]
    np.testing.assert_allclose(numbers(experts(x).log_prob(y.unsqueeze(1))), expected, **EXACT)


def test_bernoulli_experts_are_logistic_regressions(make, x):
    y = torch.bernoulli(torch.full((N, M), 0.5))
    experts = make("bernoulli", y)
    expected = stats.bernoulli(expit(outputs(experts, x))).logpmf(y.numpy()[:, None]).sum(-1)
    np.testing.assert_allclose(numbers(experts(x).log_prob(y.unsqueeze(1))), expected, **EXACT)


def test_poisson_experts_are_log_linear_around_the_mean_count(make, x):
    y = torch.poisson(torch.full((N, M), 50.0))
    experts = make("poisson", y)
    rate = y.numpy().mean(0) * np.exp(outputs(experts, x))
    expected = stats.poisson(rate).logpmf(y.numpy()[:, None]).sum(-1)
    np.testing.assert_allclose(numbers(experts(x).log_prob(y.unsqueeze(1))), expected, **EXACT)


@pytest.mark.parametrize("family", ["normal", "student-t", "bernoulli", "poisson", "categorical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_the_data_densities_and_gradients_are_finite(make, x, family, dtype):
    y = torch.arange(N * M).reshape(N, M) % 2.0
    experts = make(family, y[:, 0] if family == "categorical" else y).to(dtype)
    target = torch.ones(N, 1, *experts(x.to(dtype)).event_shape, dtype=dtype)
    log_prob = experts(1e5 * x.to(dtype)).log_prob(target)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert all(p.grad.isfinite().all() for p in experts.parameters())


@pytest.mark.parametrize("log_df", [-1e3, 1e3])
def test_degrees_of_freedom_at_their_ends_are_finite(x, y, make, log_df):
    experts = make("student-t", y)
    with torch.no_grad():
        experts.log_excess_df.fill_(log_df)
    log_prob = experts(x).log_prob(y.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(log_prob, list(experts.parameters()))
    assert log_prob.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


# The M-step


def weighted_residuals(x, y, weights):
    """Numpy's weighted least squares: coefficients with the intercept last, and residuals."""
    design, root = np.c_[x.numpy(), np.ones(N)], np.sqrt(weights.numpy())[:, None]
    solution = np.linalg.lstsq(design * root, y.numpy() * root, rcond=None)[0]
    return solution, y.numpy() - design @ solution


@each_covariance
def test_maximize_is_weighted_least_squares_and_the_residuals_covariance(x, y, r, covariance):
    units = Standardize(D)
    units.adapt(x)
    experts = NormalExperts(AffineMaps(D, K, M, units=units), K, M, covariance=covariance)
    adapt_experts(experts, x, y)
    experts.maximize(x, y, r)
    p, s = experts(x), y.numpy().std(0)
    for k in range(K):
        solution, residuals = weighted_residuals(x, y, r[:, k])
        fitted = np.c_[x.numpy(), np.ones(N)] @ solution
        np.testing.assert_allclose((numbers(p.mean)[:, k] - fitted) / s, 0.0, atol=1e-5)
        gamma = np.cov((residuals / s).T, aweights=r[:, k].numpy(), ddof=0)
        # least squares with an intercept leave a weighted mean of zero, as np.cov takes off
        got = (
            numbers(p.covariance_matrix)[0, k] / np.outer(s, s)
            if covariance == "full"
            else np.diag(numbers(p.variance)[0, k] / s**2)
        )
        expected = {
            "full": gamma,
            "diagonal": np.diag(np.diag(gamma)),
            "scalar": np.eye(M) * np.diag(gamma).mean(),
        }[covariance]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=3e-6)  # but for the floor


@pytest.mark.parametrize("family", ["normal", "student-t", "categorical", "bernoulli", "poisson"])
def test_maximize_ends_where_the_gradient_is_zero(make, x, y, r, family):
    counts = torch.poisson(torch.full((N, M), 3.0))
    target = {
        "categorical": torch.arange(N) % M,
        "bernoulli": (counts > 3).double(),
        "poisson": counts,
    }.get(family, y + 1e-2 * y.std(0) * torch.randn(N, M))
    experts = make(family, target)
    event = () if family == "categorical" else (M,)
    for _ in range(80):
        experts.maximize(x, target, r)
    score = (r * experts(x).log_prob(target.reshape(N, 1, *event))).sum() / N
    if family not in ("normal", "student-t"):  # which have no ridge
        score = score - 0.5 * experts.ridge * experts.network.weight.square().sum() / N
    score.backward()
    for name, p in experts.named_parameters():
        assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=2e-4, msg=name)


def test_one_bernoulli_expert_is_logistic_regression():
    x = torch.randn(200, D)
    y = torch.bernoulli((x @ torch.tensor([1.0, -2.0]) + 0.5).sigmoid())
    expert = BernoulliExperts(AffineMaps(D, 1, 1))
    expert.maximize(x, y, torch.ones(200, 1))
    strength = 1.0 / (expert.ridge * D)  # of weights of x, those of the maps over the root of D
    regression = LogisticRegression(C=strength, tol=1e-10, solver="newton-cg")
    expected = regression.fit(x.numpy(), y.numpy())
    weight = numbers(expert.network.weight)[0, 0] / math.sqrt(D)
    np.testing.assert_allclose(weight, expected.coef_[0], atol=1e-3)
    np.testing.assert_allclose(numbers(expert.network.bias)[0], expected.intercept_, atol=1e-3)


def test_one_categorical_expert_is_softmax_regression():
    x = torch.randn(300, D)
    logits = x @ torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])
    y = torch.distributions.Categorical(logits=logits).sample()
    expert = CategoricalExperts(AffineMaps(D, 1, 3))
    expert.ridge = 0.0
    expert.maximize(x, y.double(), torch.ones(300, 1))
    expected = LogisticRegression(C=1e12, tol=1e-10, solver="newton-cg").fit(x.numpy(), y.numpy())
    got = numbers(expert(x).probs)[:, 0]
    np.testing.assert_allclose(got, expected.predict_proba(x.numpy()), atol=1e-3)


def test_one_poisson_expert_is_poisson_regression(x):
    z = (x - x.mean(0)) / x.std(0)
    y = torch.poisson((z @ torch.tensor([[0.5], [-0.3]]) + 3.0).exp())
    expert = experts_of("poisson", D, 1, 1)
    adapt_experts(expert, z, y)
    expert.maximize(z, y, torch.ones(N, 1))
    expected = PoissonRegressor(alpha=0.0, tol=1e-10).fit(z.numpy(), y[:, 0].numpy())
    got = numbers(expert(z).mean)[:, 0, 0]
    np.testing.assert_allclose(got, expected.predict(z.numpy()), rtol=1e-3)


def test_student_t_experts_mind_outliers_less_than_normal_ones():
    x = torch.linspace(-1.0, 1.0, 100).unsqueeze(-1)
    y = 2.0 * x + 0.1 * torch.randn(100, 1)
    y[:10] += 20.0
    slopes = {}
    for family in ("normal", "student-t"):
        expert = experts_of(family, 1, 1, 1)
        expert.maximize(x, y, torch.ones(100, 1))
        slopes[family] = expert.network.weight.item()
    assert abs(slopes["student-t"] - 2.0) < 0.1
    assert abs(slopes["normal"] - 2.0) > 1.0


@each_covariance
def test_targets_that_fit_exactly_leave_a_scale_at_the_floor(x, covariance):
    experts = NormalExperts(AffineMaps(D, K, M), K, M, covariance=covariance, min_scale=0.01)
    y = x / 30.0
    experts.maximize(x, y, torch.ones(N, K))
    scale = experts(x).variance.sqrt()
    assert_close(scale, torch.full_like(scale, 0.01), rtol=0.01, atol=0)


@each_covariance
def test_no_parameters_take_a_scale_below_the_floor(covariance):
    experts = NormalExperts(AffineMaps(D, K, M), K, M, covariance=covariance, min_scale=0.01)
    nn.init.constant_(experts.log_scale, -1e3)
    assert (experts(torch.zeros(1, D)).variance >= 0.01**2).all()


@each_covariance
def test_no_expert_has_a_smaller_scale_than_the_error_of_rounding(x, covariance):
    step, y = torch.tensor([0.5, 20.0]), torch.randn(N, M)
    y = step * (torch.tensor([4.0, 8.0]) * y).round()
    experts = NormalExperts(AffineMaps(D, 2, M), 2, M, covariance=covariance)
    adapt_experts(experts, x, y)
    floor = step / 12**0.5
    if covariance == "scalar":
        floor = experts.units.scale * (floor / experts.units.scale).max()
    one = torch.zeros(N, 2)
    one[0] = 1.0  # an expert of one row would fit it exactly
    experts.maximize(x, y, one)
    scale = experts(x).variance.sqrt()
    assert_close(scale, floor.expand_as(scale), rtol=2e-3, atol=0)
    nn.init.constant_(experts.log_scale, -1e3)
    assert_close(experts(x).variance.sqrt(), floor.expand_as(scale))


def test_the_floor_is_the_least_scale_for_targets_that_are_not_rounded(x, y):
    experts = NormalExperts(AffineMaps(D, K, M), K, M, min_scale=0.02)
    adapt_experts(experts, x, y)
    assert_close(experts.floor, torch.full((M,), 0.02))
    fine = 1e3 * torch.arange(N).double().unsqueeze(-1).expand(N, M).clone()
    fine[1:3] = 1.0  # ties, and the step of the grid
    assert_close(rounding_error(fine), torch.full((M,), 12**-0.5))
    adapt_experts(experts, x, fine)
    assert_close(experts.floor, torch.full((M,), 0.02))


def test_an_expert_without_rows_stays_finite(x, y):
    experts = NormalExperts(AffineMaps(D, 2, M), 2, M, covariance="full")
    experts.maximize(x, y, torch.tensor([1.0, 0.0]).expand(N, 2))
    assert experts(x).log_prob(y.unsqueeze(1)).isfinite().all()


@each_covariance
def test_maximize_leaves_out_rows_without_a_target(x, y, r, covariance):
    y[::3, 0] = torch.nan
    known = ~y.isnan().any(-1)
    first, second = (
        NormalExperts(AffineMaps(D, K, M), K, M, covariance=covariance) for _ in range(2)
    )
    first.maximize(x, y, r)
    second.maximize(x[known], y[known], r[known])
    assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_units_of_targets_are_those_of_the_known_rows(x, y):
    y[0, 0] = torch.nan
    experts = experts_of("normal", D, K, M)
    adapt_experts(experts, x, y)
    assert_close(experts.units.loc, y[1:].mean(0))
    assert_close(experts.units.scale, y[1:].std(0, correction=0))


def test_neural_experts_rise_in_likelihood(x, y, r):
    class Network(nn.Sequential):
        def forward(self, context):
            return super().forward(context).unflatten(-1, (K, M))

    units = Standardize(D)
    units.adapt(x)
    experts = NormalExperts(Network(units, MLP(D, (8,), K * M)), K, M)
    adapt_experts(experts, x, y)

    def score():
        return (r * experts(x).log_prob(y.unsqueeze(1))).sum().item()

    affine = NormalExperts(AffineMaps(D, K, M, units=units), K, M)
    adapt_experts(affine, x, y)
    affine.maximize(x, y, r)
    before = score()
    for _ in range(4):
        experts.maximize(x, y, r)
    assert experts(x).batch_shape == (N, K)
    assert score() > before
    assert score() > (r * affine(x).log_prob(y.unsqueeze(1))).sum().item()


# Experts of any kinds


class Constant(nn.Module):
    """An expert of another kind: heavy tails around a constant."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(M))

    def forward(self, context):
        return dist.StudentT(5.0, self.loc, 1.0).expand((len(context), M)).to_event(1)


@pytest.fixture
def kinds(scatter):
    linear = NormalConditional(nn.Linear(D, 2 * M))
    return scatter(nn.ModuleList([linear, Constant(), ME(D, M, 4)]))


def test_stacked_experts_are_each_by_itself(kinds, y):
    x, experts = torch.randn(N, D), experts_of(kinds)
    assert isinstance(experts, StackedExperts)
    assert (experts(x).batch_shape, experts(x).event_shape) == ((N, 3), (M,))
    each = experts(x).log_prob(y.unsqueeze(1))
    for k, expert in enumerate(kinds):
        assert_close(each[:, k], expert(x).log_prob(y), rtol=0, atol=0)


def test_stacked_experts_are_each_maximized_on_the_rows_of_its_own(x, y):
    z, y = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    experts = StackedExperts([Constant(), NormalConditional(nn.Linear(D, 2 * M))])
    labels = torch.arange(N) % 2
    y[labels == 0] = 3.0 + 0.5 * torch.randn(N // 2, M)
    for _ in range(4):
        experts.maximize(z, y, torch.eye(2)[labels])
    assert ((experts.experts[0].loc - 3.0).abs() < 4.5 * 0.5 / (N // 2) ** 0.5).all()
    for k, expert in enumerate(experts.experts):
        score = expert(z[labels == k]).log_prob(y[labels == k]).sum()
        weights = [p for name, p in expert.named_parameters() if name.endswith("weight")]
        score = score - 0.5 * experts.ridge * sum(p.square().sum() for p in weights)
        (score / (N // 2)).backward()
        for p in expert.parameters():
            assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-3)


def test_stacked_experts_take_the_units_of_the_data(x, y):
    experts = StackedExperts([ME(D, M, 2), Constant()])
    adapt_experts(experts, x, y)
    assert_close(experts.experts[0].units.loc, x.mean(0))
    assert_close(experts.experts[0].experts.units.loc, y.mean(0))


def test_a_module_of_experts_is_taken_as_it_is():
    experts = StudentTExperts(AffineMaps(D, K, M), K, M)
    assert experts_of(experts) is experts


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: experts_of("gamma", D, K, M), r"expected experts in .*'poisson'.*; got 'gamma'"),
        (
            lambda: NormalExperts(AffineMaps(D, K, M), K, M, covariance="round"),
            r"expected covariance in .*'scalar'.*; got 'round'",
        ),
    ],
)
def test_a_choice_that_is_none_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_experts_and_components_are_as_many():
    each = [NormalConditional(nn.Linear(D, 2 * M)) for _ in range(2)]
    with pytest.raises(ValueError, match="expected an expert for each of 3 components; got 2"):
        ME(D, M, 3, experts=each)
    with pytest.raises(ValueError, match="expected num_components of at least 1; got 0"):
        ME(D, M, 0)


def test_classes_that_can_be_separated_leave_probabilities_within_one():
    x = torch.linspace(-1.0, 1.0, 40).unsqueeze(-1)
    expert = BernoulliExperts(AffineMaps(1, 1, 1))
    expert.maximize(x, (x > 0).double(), torch.ones(40, 1))
    assert 5.0 < expert.network.weight.item() < 30.0
    assert (expert(x).mean < 1.0).all()


# Raising the likelihood by gradients


def score(experts, x, y, r):
    return (r * log_likelihoods(experts(x), y)).sum() / len(y)


def test_the_step_by_gradients_finds_what_least_squares_finds(scatter):
    x, y, r = torch.randn(40, D), torch.randn(40, M), torch.rand(40, K)
    found = scatter(NormalExperts(AffineMaps(D, K, M), K, M))
    found.ridge = 0.0
    Experts.maximize(found, x, y, r, iterations=200)
    best = NormalExperts(AffineMaps(D, K, M), K, M)
    best.maximize(x, y, r)
    assert_close(found.state_dict(), best.state_dict(), rtol=1e-3, atol=1e-3)
    assert score(found, x, y, r).item() == pytest.approx(score(best, x, y, r).item(), abs=1e-6)


def test_the_step_by_gradients_ends_where_the_gradient_is_zero_and_leaves_none():
    experts = BernoulliExperts(nn.Sequential(AffineMaps(D, K, M)))
    x, y = torch.randn(60, D), torch.bernoulli(torch.full((60, M), 0.5))
    r = torch.rand(60, K)
    before = score(experts, x, y, r).item()
    experts.ridge = 0.0
    Experts.maximize(experts, x, y, r, iterations=200)
    assert all(p.grad is None for p in experts.parameters())
    after = score(experts, x, y, r)
    after.backward()
    assert after.item() > before
    for p in experts.parameters():
        assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-5)


def test_the_step_by_gradients_undoes_a_step_to_a_parameter_that_is_not_finite():
    class Cliff(Experts):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(3.0))

        def forward(self, context):
            loc = (self.loc - self.loc.detach()) * torch.inf + self.loc
            return dist.Normal(loc.expand(len(context), 1), 1.0, validate_args=False)

    experts = Cliff()
    Experts.maximize(experts, torch.zeros(4, 1), torch.zeros(4), torch.ones(4, 1))
    assert experts.loc == 3.0


def test_the_step_by_gradients_leaves_out_rows_without_a_target(scatter):
    x, y, r = torch.randn(20, D), torch.randn(20, M), torch.rand(20, K)
    y[::4, 1] = torch.nan
    known = ~y.isnan().any(-1)
    first, second = (
        scatter(NormalExperts(nn.Sequential(AffineMaps(D, K, M)), K, M), seed=0) for _ in range(2)
    )
    second.load_state_dict(first.state_dict())
    Experts.maximize(first, x, y, r, iterations=5)
    Experts.maximize(second, x[known], y[known], r[known], iterations=5)
    assert_close(first.state_dict(), second.state_dict())
