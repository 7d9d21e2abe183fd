import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import gammaln
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from pyro_moe.models.m_steps import blocks
from pyro_moe.models.m_steps.newton import ascend, glm_newton, softmax_newton

pytestmark = pytest.mark.usefixtures("double")
N, C, M = 80, 3, 3
STEPS = 30


@pytest.fixture
def u():
    """Inputs with a column of ones."""
    return torch.cat([torch.randn(N, C - 1), torch.ones(N, 1)], -1)


@pytest.fixture
def ridge():
    return torch.tensor([0.3, 0.3, 1e-6])


@pytest.fixture
def shares():
    """Weighted shares of the classes, with rows that do not sum to one."""
    return torch.rand(N, M) * torch.rand(N, 1)


@pytest.fixture
def counts(u):
    return torch.poisson((u @ torch.tensor([0.8, -0.5, 0.7])).exp())


@pytest.fixture
def weights():
    return torch.rand(N)


def softmax_score(a, u, shares, ridge):
    """The objective of `softmax_newton`."""
    return (shares * (u @ a.mT).log_softmax(-1)).sum() - 0.5 * (ridge * a.square()).sum()


def poisson(y):
    """The log-likelihood of counts given their log rate, and its derivatives."""
    return lambda eta: (y * eta - eta.exp(), y - eta.exp(), -eta.exp())


def poisson_score(a, u, y, weights, ridge):
    """The objective of `glm_newton`, but for a constant."""
    eta = u @ a
    return (weights * (y * eta - eta.exp())).sum() - 0.5 * (ridge * a.square()).sum()


def test_the_gradient_of_a_softmax_is_zero_at_its_end(u, shares, ridge):
    a = softmax_newton(u, shares, torch.zeros(M, C), ridge=ridge, steps=STEPS).requires_grad_()
    (gradient,) = torch.autograd.grad(softmax_score(a, u, shares, ridge), a)
    assert_close(gradient, torch.zeros_like(a), rtol=0, atol=1e-6)


def test_the_gradient_of_a_generalized_linear_model_is_zero_at_its_end(u, counts, weights, ridge):
    a = glm_newton(u, poisson(counts), weights, torch.zeros(C), ridge=ridge, steps=STEPS)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(poisson_score(a, u, counts, weights, ridge), a)
    assert_close(gradient, torch.zeros_like(a), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [1e-2, 10.0])
def test_with_labels_a_softmax_is_the_regression_of_scikit_learn(u, weights, strength):
    labels = torch.distributions.Categorical(logits=u @ torch.randn(C, M)).sample()
    ridge = torch.tensor([strength, strength, 1e-9])
    shares = weights.unsqueeze(-1) * torch.eye(M)[labels]
    a = softmax_newton(u, shares, torch.zeros(M, C), ridge=ridge, steps=STEPS)
    reference = LogisticRegression(C=1 / strength, solver="newton-cg", tol=1e-12, max_iter=1000)
    reference.fit(u[:, :-1].numpy(), labels.numpy(), sample_weight=weights.numpy())
    np.testing.assert_allclose(a[:, :-1].numpy(), reference.coef_, atol=1e-6)
    got = (u @ a.mT).softmax(-1).numpy()
    np.testing.assert_allclose(got, reference.predict_proba(u[:, :-1].numpy()), atol=1e-6)


def test_counts_give_the_poisson_regression_that_scipy_finds(u, counts, weights, ridge):
    numpy = [each.numpy() for each in (u, counts, weights, ridge)]

    def loss(a):
        inputs, y, r, penalty = numpy
        log_p = y * (inputs @ a) - np.exp(inputs @ a) - gammaln(y + 1)
        return 0.5 * (penalty * a**2).sum() - (r * log_p).sum()

    expected = minimize(loss, np.zeros(C), method="BFGS", options={"gtol": 1e-8}).x
    a = glm_newton(u, poisson(counts), weights, torch.zeros(C), ridge=ridge, steps=STEPS)
    np.testing.assert_allclose(a.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 50.0])
def test_a_softmax_never_falls(u, shares, ridge, scale):
    start = scale * torch.randn(M, C)
    ends = [softmax_newton(u, shares, start, ridge=ridge, steps=steps) for steps in range(15)]
    scores = torch.stack([softmax_score(a, u, shares, ridge) for a in ends])
    assert_close(ends[0], start, rtol=0, atol=0)
    assert (scores.diff() >= 0).all()
    assert scores[-1] > scores[0]


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_a_generalized_linear_model_never_falls(u, counts, weights, ridge, scale):
    start = scale * torch.randn(C)
    choices = {"ridge": ridge}
    ends = [
        glm_newton(u, poisson(counts), weights, start, steps=steps, **choices)
        for steps in range(15)
    ]
    scores = torch.stack([poisson_score(a, u, counts, weights, ridge) for a in ends])
    assert (scores.diff() >= 0).all()
    assert scores[-1] > scores[0]


@pytest.mark.parametrize("strength", [1e-9, 1e-3])
def test_classes_that_are_separable_leave_finite_weights(u, strength):
    labels = (u[:, 0] > 0).long()
    ridge, start = torch.full((C,), strength), torch.zeros(2, C)
    a = softmax_newton(u, torch.eye(2)[labels], start, ridge=ridge, steps=100)
    assert a.isfinite().all()
    assert_close((u @ a.mT).argmax(-1), labels)


def test_a_class_without_rows_and_rows_without_weight_leave_finite_weights(u, ridge):
    start = torch.randn(M, C)
    shares = torch.eye(M)[torch.arange(N) % 2]
    assert softmax_newton(u, shares, start, ridge=ridge, steps=STEPS).isfinite().all()
    nothing = softmax_newton(u, 0.0 * shares, start, ridge=torch.ones(C), steps=STEPS)
    assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=1e-5)


def test_rows_of_weight_zero_do_not_count(u, counts, ridge):
    some = (torch.arange(N) % 3 > 0).double()
    start = torch.zeros(C)
    a = glm_newton(u, poisson(counts), some, start, ridge=ridge, steps=STEPS)
    kept = some > 0
    expected = glm_newton(
        u[kept], poisson(counts[kept]), some[kept], start, ridge=ridge, steps=STEPS
    )
    assert_close(a, expected, rtol=1e-8, atol=1e-10)


def test_a_point_at_which_the_function_is_not_concave_is_kept():
    valley = lambda t: (t.square().sum(-1), 2 * t, torch.full((1, 1, 1), -2.0))  # noqa: E731
    start = torch.tensor([[1.0]])
    assert_close(ascend(valley, start, steps=9), start, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_several_problems_at_once_are_each_alone(u, counts, ridge, scale):
    r, starts = torch.rand(N, 4), scale * torch.randn(4, C)
    choices = {"ridge": ridge, "steps": STEPS}
    many = poisson(counts.unsqueeze(-1))
    found = glm_newton(u, many, r, starts, **choices)
    each = [glm_newton(u, poisson(counts), r[:, k], starts[k], **choices) for k in range(4)]
    assert_close(found, torch.stack(each), rtol=1e-8, atol=1e-10)
    shares, starts = torch.rand(N, 4, M), scale * torch.randn(4, M, C)
    found = softmax_newton(u, shares, starts, **choices)
    each = [softmax_newton(u, shares[:, k], starts[k], **choices) for k in range(4)]
    assert_close(found, torch.stack(each), rtol=1e-6, atol=1e-7)


def test_a_softmax_does_not_depend_on_the_blocks(u, shares, ridge, monkeypatch):
    start, choices = torch.zeros(M, C), {"ridge": ridge, "steps": STEPS}
    whole = softmax_newton(u, shares, start, **choices)
    monkeypatch.setattr(blocks, "ROWS", 7)
    assert_close(softmax_newton(u, shares, start, **choices), whole, rtol=1e-8, atol=1e-9)
