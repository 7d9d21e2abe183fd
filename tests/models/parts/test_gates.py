import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from pyro_moe.models import SoftmaxGate, Standardize

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 60, 4, 3


@pytest.fixture
def x():
    return torch.randn(N, D) * torch.tensor([1.0, 1e-2, 1e3, 5.0]) + 3.0


@pytest.fixture
def gate(x):
    units = Standardize(D)
    units.adapt(x)
    return SoftmaxGate(D, K, units=units)


@pytest.fixture
def labels(x):
    """Labels that are not the same for all rows on one side of any border."""
    u = (x - x.mean(0)) / x.std(0)
    return torch.distributions.Categorical(logits=2.0 * u[:, :K]).sample()


def penalized(gate, x, r):
    """The objective of the docstring: w are the weights on standardized columns."""
    w = gate.maps.weight / math.sqrt(D)
    return (r * gate(x).logits).sum() - 0.5 * gate.ridge * w.square().sum()


def maximized(gate, x, r, ridge=SoftmaxGate.ridge):
    """The gate after so many M-steps, of a few Newton steps each, that it has converged."""
    gate.ridge = ridge
    for _ in range(6):
        gate.maximize(x, r)
    return gate


def test_it_is_the_softmax_of_affine_maps_and_rows_sum_to_one(gate, x):
    w, b = gate.maps.weight[0] / math.sqrt(D), gate.maps.bias[0]
    u = (x - x.mean(0)) / x.std(0, correction=0)
    assert_close(gate(x).probs, (u @ w.T + b).softmax(-1))
    assert_close(gate(1e6 * x).probs.sum(-1), torch.ones(N))
    assert_close(gate(x.reshape(2, N // 2, D)).probs.flatten(0, 1), gate(x).probs)


@pytest.mark.parametrize("ridge", [1e-4, 6.0])
def test_maximize_ends_where_the_penalized_likelihood_is_stationary(gate, x, ridge):
    r = torch.rand(N, K).softmax(-1)
    gate.ridge = ridge
    before = penalized(gate, x, r).item()
    after = penalized(maximized(gate, x, r, ridge), x, r)
    after.backward()
    assert after.item() > before
    for p in gate.parameters():
        assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-6)


def test_maximize_does_not_depend_on_where_it_starts(gate, x, scatter):
    r = torch.rand(N, K).softmax(-1)
    first = maximized(gate, x, r)(x).probs.detach()
    maximized(scatter(gate, scale=5.0), x, r)
    assert_close(gate(x).probs.detach(), first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ridge", [6e-3, 0.6])
def test_with_labels_it_is_the_multinomial_regression_of_scikit_learn(gate, x, labels, ridge):
    maximized(gate, x, torch.eye(K)[labels], ridge)
    u = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / ridge, solver="newton-cg", tol=1e-10, max_iter=1000)
    reference.fit(u, labels.numpy())
    weight = gate.maps.weight[0].detach().numpy() / math.sqrt(D)
    np.testing.assert_allclose(weight, reference.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        gate(x).probs.detach().numpy(), reference.predict_proba(u), atol=1e-5
    )


def test_rows_without_weight_do_not_count(gate, x):
    r = torch.rand(N, K).softmax(-1)
    some = torch.arange(N) % 3 > 0
    first = maximized(gate, x, r * some.unsqueeze(-1), 0.6)(x).probs.detach()
    maximized(gate, x[some], r[some], 0.6)
    assert_close(gate(x).probs.detach(), first, rtol=0, atol=1e-5)


def test_separable_components_leave_finite_weights(gate, x):
    labels = (x[:, 0] > 3.0).long()
    probs = maximized(gate, x, torch.eye(K)[labels])(x).probs.detach()
    assert all(p.isfinite().all() for p in gate.parameters())
    assert_close(probs.argmax(-1), labels)
    assert probs[:, 2].max() < 0.01


def test_it_takes_more_columns_than_rows():
    x, labels = torch.rand(30, 784), torch.arange(30) % K
    gate = SoftmaxGate(784, K)
    gate.maximize(x, torch.eye(K)[labels])
    assert_close(gate(x).probs.argmax(-1), labels)


def test_maximize_in_single_precision_is_computed_in_double(gate, x):
    r = torch.rand(N, K).softmax(-1)
    gate.maximize(x, r)
    expected = gate(x).probs.detach()
    single = gate.float()
    single.maximize(x.float(), r.float())
    assert_close(single(x.float()).probs.detach().double(), expected, rtol=0, atol=1e-4)
