"""Products of numbers in bfloat16, in recorded steps."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import pyro_moe
from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.steps import Recording, bfloat16, gradients
from pyro_moe.inference.steps.bfloat16 import with_bfloat16
from pyro_moe.inference.svi import SVI
from pyro_moe.models import DVMoE

N, D, K = 22, 2, 3
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture
def all_products(monkeypatch):
    """Small products count as large ones."""
    monkeypatch.setattr(gradients, "WORTHWHILE", 1)
    monkeypatch.setattr(bfloat16, "LARGE", 1)


def perceptron(x, v, b, w):
    out = torch.relu(torch.addmm(b, x, v.t())) @ w.t()
    return [out, *torch.autograd.grad(out.square().sum(), [v, b, w])]


def run_of(data, *, epochs=8, **choices):
    torch.manual_seed(0)
    story = DVMoE(D, 1, 1, K, hidden=(8,))
    elbo, treatment = objective("marginal")
    options = {"batch_size": 11, "learning_rate": 1e-2, "temperature": 0.5, "seed": 0} | choices
    run = SVI(story.model, story.guide, data, elbo, treatment, epochs=epochs, **options)
    lines = []
    run.gradients.say = lines.append
    return run, lines


@pytest.fixture
def data():
    return torch.randn(N, D), torch.randn(N, 1)


def test_factors_are_rounded_and_the_result_is_in_single_precision(all_products):
    arguments = torch.randn(3), torch.randn(8, 5), torch.randn(5, 3)
    graph = make_fx(lambda *values: [torch.relu(torch.addmm(*values))])(*arguments)
    (found,) = with_bfloat16(graph)(*arguments)
    expected = torch.addmm(*(value.bfloat16() for value in arguments)).relu().float()
    assert_close(found, expected, **EXACT)


def test_products_of_numbers_that_bfloat16_has_are_the_same(all_products):
    """Small integers, their products and sums have at most eight binary digits."""
    arguments = [
        torch.randint(-2, 3, shape).float().requires_grad_()
        for shape in [(6, 3), (4, 3), (4,), (2, 4)]
    ]
    graph = make_fx(perceptron)(*arguments)
    changed = with_bfloat16(graph)
    assert changed is not graph
    assert_close(changed(*arguments)[0], graph(*arguments)[0], **EXACT)


def test_each_matrix_is_rounded_once(all_products):
    """Three inputs, a bias, and the gradients of both layers; a hidden layer already is."""
    arguments = [torch.randn(*s, requires_grad=True) for s in [(6, 3), (4, 3), (4,), (2, 4)]]
    changed = with_bfloat16(make_fx(perceptron)(*arguments))
    casts = changed.graph.find_nodes(op="call_function", target=torch.ops.aten._to_copy.default)
    down = [node for node in casts if node.kwargs["dtype"] == torch.bfloat16]
    assert len(down) == 6
    with without_warnings(torch.jit.TracerWarning):
        recording = Recording(make_fx(perceptron)(*arguments), arguments, bfloat16=True)
    assert recording.rough
    assert not recording.exact
    value, found = recording(*arguments)
    assert_close([value, *found], changed(*arguments), **EXACT)


def test_small_products_and_those_in_double_stay_as_they_are(monkeypatch):
    for dtype, least in [(torch.float64, 1), (torch.float32, 8**3 + 1)]:
        monkeypatch.setattr(bfloat16, "LARGE", least)
        factors = torch.randn(8, 8, dtype=dtype), torch.randn(8, 8, dtype=dtype)
        graph = make_fx(lambda a, b: [a @ b])(*factors)
        assert with_bfloat16(graph) is graph


def test_gradients_differ_by_rounding_of_the_factors(all_products, data):
    """A factor has a relative error of at most 1/256; the rest is in single precision."""
    (run, lines), (other, _) = (run_of(data, bfloat16=each, epochs=1) for each in (True, False))
    for each in (run, other):
        list(each)
    assert not lines
    one, two = run.history[0]["elbo"], other.history[0]["elbo"]
    assert one != two
    assert one == pytest.approx(two, rel=5 / 256)
    assert all(value.dtype == torch.float32 for value in run.parameters().values())


def test_where_gradients_differ_products_stay_in_single_precision(all_products, data, monkeypatch):
    monkeypatch.setattr(gradients, "ROUGH", 0.0)
    (run, lines), (other, _) = (run_of(data, bfloat16=each) for each in (True, False))
    for each in (run, other):
        list(each)
    assert lines == ["gradients differ: steps go on without bfloat16 and CUDA graphs"]
    assert not run.gradients.bfloat16
    assert_close(run.parameters(), other.parameters())
    assert run.gradients.replayed > 8
    assert not run.copy(epochs=9).gradients.bfloat16


@pytest.mark.parametrize("rough", [0.05, 0.0])
def test_a_fit_goes_on_from_a_checkpoint(all_products, data, monkeypatch, tmp_path, rough):
    monkeypatch.setattr(gradients, "ROUGH", rough)
    torch.manual_seed(0)
    story = DVMoE(D, 1, 1, K, hidden=(8,))

    def fit(**choices):
        options = {"epochs": 6, "bfloat16": True, "progress": False, "validation": 0.0}
        options |= {"batch_size": 11, "initialize": "random"}
        return pyro_moe.fit(story.model, story.guide, data, **options, **choices)

    whole = fit()
    part = fit(checkpoint=tmp_path, callback=lambda fitted: len(fitted.history) == 3)
    assert part.run.gradients.bfloat16 is (rough > 0.0)
    resumed = fit(resume=tmp_path)
    assert resumed.run.gradients.bfloat16 is (rough > 0.0)
    assert whole.settings["bfloat16"]
    assert_close(resumed.programs.parameters(), whole.programs.parameters())


def test_bfloat16_is_true_or_false(data):
    story = DVMoE(D, 1, 1, K)
    with pytest.raises(ValueError, match="expected bfloat16 to be True or False; got 'yes'"):
        pyro_moe.fit(story.model, story.guide, data, bfloat16="yes", progress=False)
