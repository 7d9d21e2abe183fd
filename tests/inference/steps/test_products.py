"""Products of matrices in recorded steps."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyro_moe.inference.context import without_warnings
from pyro_moe.inference.steps import Recording, onednn, products
from pyro_moe.inference.steps.onednn import affine_by_onednn, with_onednn
from pyro_moe.inference.steps.products import with_linear
from pyro_moe.inference.steps.recording import scripted
from pyro_moe.inference.steps.simplify import traced

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN"
)


def test_affine_maps_are_one_operation():
    def function(x, w, b, c):
        return torch.addmm(b, x, w.t()), torch.addmm(c, x, w.t()), torch.addmm(b, x, w.t(), alpha=2)

    arguments = torch.randn(3, 2), torch.randn(4, 2), torch.randn(4), torch.randn(3, 4)
    graph = make_fx(function)(*arguments)
    changed = with_linear(graph)
    assert_close(changed(*arguments), graph(*arguments), rtol=0, atol=0)
    names = [str(node.target) for node in changed.graph.nodes]
    assert names.count("aten.linear.default") == 1
    assert names.count("aten.addmm.default") == 2  # a matrix is added, or there is a factor


@needs_onednn
def test_large_products_are_computed_by_onednn(monkeypatch):
    """Of a perceptron and its gradients, with and without a bias; a small product stays."""
    monkeypatch.setattr(onednn, "LARGE", 16 * 8 * 9)

    def function(x, v, b, w, c, d):
        hidden = torch.relu(x @ v.t() + b.exp()) + torch.addmm(b, x, v.t()).relu()
        out = torch.addmm(c, hidden, w.t()) + torch.addmm(d, hidden, w.t())
        return [out, *torch.autograd.grad(out.square().sum(), [v, b, w, c])]

    shapes = [(16, 8), (32, 8), (32,), (9, 32), (9,), (16, 9)]
    arguments = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    graph = make_fx(function)(*arguments)
    changed = with_onednn(graph)
    assert_close(changed(*arguments), graph(*arguments), rtol=1e-4, atol=1e-4)
    with without_warnings(torch.jit.TracerWarning):
        in_torchscript = scripted(changed, arguments)
    assert_close(list(in_torchscript(*arguments)), changed(*arguments))
    kinds = [node.args[3] for node in changed.graph.nodes if node.target is affine_by_onednn]
    assert kinds.count("relu") == 1  # the other rectifies a sum
    left = [node for node in changed.graph.nodes if node.target in products.PRODUCTS]
    assert len(left) == 1  # to which a matrix is added


@needs_onednn
@pytest.mark.parametrize("compiled", [False, True])
def test_products_of_several_matrices_are_computed_by_onednn(compiled, monkeypatch):
    """Of three perceptrons at once: a layer with bias and rectifier, one without, and gradients."""
    monkeypatch.setattr(onednn, "LARGE", 16 * 8 * 9)

    def function(x, v, b, w):
        out = torch.relu(torch.addmm(b, x, v.t())) @ w.t()
        return [out, *torch.autograd.grad(out.square().sum(), [v, b, w])]

    shapes = [(3, 16, 8), (3, 32, 8), (3, 32), (3, 9, 32)]
    arguments = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    one = traced(function, *(value[0].detach().requires_grad_() for value in arguments))
    arguments = [value.detach() for value in arguments]
    graph = traced(torch.func.vmap(lambda *values: tuple(one(*values))), *arguments)
    changed = with_onednn(graph, compiled=compiled)
    assert_close(changed(*arguments), graph(*arguments), rtol=1e-4, atol=1e-4)
    affine = torch.ops.pyro_moe.affine.default if compiled else affine_by_onednn
    kinds = [node.args[3] for node in changed.graph.nodes if node.target is affine]
    assert sorted(kinds) == ["none"] * 4 + ["relu"]
    assert not changed.graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default)
    if not compiled:
        with without_warnings(torch.jit.TracerWarning):
            in_torchscript = scripted(changed, arguments)
        assert_close(list(in_torchscript(*arguments)), changed(*arguments))


@needs_onednn
def test_onednn_gets_matrices_without_gaps(monkeypatch):
    """Of half of the columns, of rows that repeat and of transposes; others would take seconds."""
    monkeypatch.setattr(onednn, "LARGE", 1)

    def function(x, z):
        half = z.chunk(2, -1)[1]
        repeated = z[:1].expand(len(z), -1)
        return [x.t() @ half, half @ x.t()[:4], x @ repeated.t(), x.t() @ x]

    arguments = torch.randn(6, 8), torch.randn(6, 8)
    graph = make_fx(function)(*arguments)
    changed = with_onednn(graph)
    given: list[torch.Tensor] = []

    def checked(rows, weight, bias, activation):
        given.extend([rows, weight])
        return affine_by_onednn(rows, weight, bias, activation)

    for node in changed.graph.find_nodes(op="call_function", target=affine_by_onednn):
        node.target = checked
    changed.recompile()
    assert_close(changed(*arguments), graph(*arguments))
    assert len(given) == 8
    assert all(each.is_contiguous() or each.mT.is_contiguous() for each in given)


@needs_onednn
def test_products_stay_as_they_are_in_double_and_where_onednn_is_off(monkeypatch):
    monkeypatch.setattr(onednn, "LARGE", 1)
    for dtype, enabled in [(torch.float64, True), (torch.float32, False)]:
        factors = torch.randn(8, 8, dtype=dtype), torch.randn(8, 8, dtype=dtype)
        graph = make_fx(torch.mm)(*factors)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", enabled)
        assert with_onednn(graph) is graph


@needs_onednn
def test_a_graph_for_the_compiler_has_an_operation_of_its_own(monkeypatch):
    monkeypatch.setattr(onednn, "LARGE", 1)
    arguments = torch.randn(3), torch.randn(8, 2), torch.randn(2, 3)
    graph = make_fx(lambda *values: [torch.relu(torch.addmm(*values))])(*arguments)
    changed = with_onednn(graph, compiled=True)
    (node,) = changed.graph.find_nodes(op="call_function", target=torch.ops.pyro_moe.affine.default)
    assert node.args[-1] == "relu"
    assert_close(changed(*arguments), graph(*arguments))
    for copies in ((), (4,)):
        rows, weight = (torch.ones(*copies, number, 2, device="meta") for number in (8, 3))
        assert node.target(rows, weight, None, "none").shape == (*copies, 8, 3)


@needs_onednn
def test_where_onednn_fails_the_graph_stays_as_it_is(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(onednn, "LARGE", 1)
    factors = torch.randn(8, 2), torch.randn(2, 5)
    for replacement, exact in [(affine_by_onednn, False), (fails, True)]:
        monkeypatch.setattr(onednn, "affine_by_onednn", replacement)
        with without_warnings(Warning):
            graph = make_fx(lambda a, b: [a @ b])(*factors)
            recording = Recording(graph, factors)
        assert recording.exact is exact
        assert_close(recording(*factors)[0], factors[0] @ factors[1])


def test_the_largest_product_or_convolution_is_counted_in_multiplications():
    def function(x, w, image, kernel):
        return [x @ w, torch.conv2d(image, kernel, padding=1)]

    image, kernel = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    graph = make_fx(function)(torch.ones(50, 20), torch.ones(20, 7), image, kernel)
    assert products.largest(graph) == 2 * 4 * 8 * 8 * 3 * 3 * 3
    graph = make_fx(function)(torch.ones(500, 20), torch.ones(20, 7), image, kernel)
    assert products.largest(graph) == 500 * 20 * 7
