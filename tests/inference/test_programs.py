import copy
import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.testing import assert_close

import pyro_moe
from pyro_moe.inference.programs import isolated, learned, modules, owner
from pyro_moe.models import DMVAE, GMM

NET = nn.Linear(1, 1)
OTHER = nn.Linear(1, 1)
X = torch.linspace(-1.0, 1.0, 20)[:, None]


def by_global(x):
    return NET(x)


def by_helper(x):
    return by_global(x)


def even(x, depth=2):
    return odd(x, depth - 1) if depth else NET(x)


def odd(x, depth):
    return even(x, depth - 1) if depth else OTHER(x)


def by_comprehension(x):
    return torch.stack([NET(row) for row in x])


def by_inner_function(x):
    def inner(row):
        return NET(row)

    return inner(x)


def by_default(x, net=NET):
    return net(x)


def by_keyword_default(x, *, net=NET):
    return net(x)


def by_argument(net, x):
    return net(x)


def by_closure():
    net = NET
    return lambda x: net(x)


def by_closure_of_a_helper():
    net = NET

    def helper(x):
        return net(x)

    return lambda x: helper(x)


def by_list():
    nets = [NET]
    return lambda x: nets[0](x)


def by_dict():
    nets = {"net": NET}
    return lambda x: nets["net"](x)


class Story(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = NET

    def model(self, x):
        return self.net(x)


class PlainStory:
    def __init__(self):
        self.net = NET

    def model(self, x):
        return self.net(x)


WAYS = {
    "global": lambda: by_global,
    "helper": lambda: by_helper,
    "mutual recursion": lambda: even,
    "comprehension": lambda: by_comprehension,
    "inner function": lambda: by_inner_function,
    "default": lambda: by_default,
    "keyword default": lambda: by_keyword_default,
    "partial argument": lambda: functools.partial(by_argument, NET),
    "partial of a global": lambda: functools.partial(by_global),
    "closure": by_closure,
    "closure of a helper": by_closure_of_a_helper,
    "list": by_list,
    "dict": by_dict,
    "method of a module": lambda: Story().model,
    "method of a plain object": lambda: PlainStory().model,
    "module": lambda: NET,
    "bound forward": lambda: NET.forward,
}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
def test_a_copy_computes_the_same_and_shares_no_parameter(way):
    program = WAYS[way]()
    (copied,) = isolated(program)
    assert torch.equal(copied(X), program(X))
    NET.zero_grad()
    copied(X).sum().backward()
    assert NET.weight.grad is None


@each_way
def test_the_modules_of_a_copy_are_found(way):
    (copied,) = isolated(WAYS[way]())
    copied(X).sum().backward()
    found = [p for part in modules(copied) for p in part.parameters()]
    assert any(p.grad is not None for p in found)


def test_helpers_that_call_each_other_are_copied_once():
    (copied,) = isolated(even)
    assert copied.__globals__["odd"].__globals__["even"] is copied
    assert copied.__globals__["NET"] is not NET
    assert copied.__globals__["odd"].__globals__["OTHER"] is not OTHER
    assert even.__globals__["NET"] is NET


@pytest.mark.parametrize("ways", [("global", "closure"), ("helper", "partial argument")])
def test_copies_share_among_each_other_what_the_originals_did(ways):
    first, second = isolated(*(WAYS[way]() for way in ways))
    assert modules(first)[0] is modules(second)[0]


def test_methods_of_one_story_are_copied_with_one_owner():
    story = DMVAE(2, 2, 3, hidden=(4,))
    model, guide = isolated(story.model, story.guide)
    assert owner(model) is owner(guide)
    assert owner(model) is not story
    assert torch.equal(owner(model).prior.loc, story.prior.loc)


def test_copies_of_copies_are_apart_too():
    (first,) = isolated(by_helper)
    (second,) = isolated(first)
    assert modules(first)[0] is not modules(second)[0]


def test_a_function_without_modules_is_kept():
    def program(x):
        return x

    assert isolated(program) == (program,)


def test_name_signature_and_defaults_of_a_function_are_kept():
    def program(x, a=1, *, b=2):
        """Doc."""
        return NET(x) + a + b

    (copied,) = isolated(program)
    assert (copied.__name__, copied.__doc__) == ("program", "Doc.")
    assert torch.equal(copied(X), program(X))
    assert torch.equal(copied(X, b=5), program(X, b=5))


@pytest.mark.parametrize("program", [by_global, nn.Linear(1, 1), functools.partial(by_global)])
def test_only_methods_and_modules_have_an_owner(program):
    expected = program if isinstance(program, nn.Module) else None
    assert owner(program) is expected


def test_modules_are_the_outermost_each_once():
    story = DMVAE(2, 2, 3, hidden=(4,))

    def program(x):
        story.model(x)
        return encoder(x)

    encoder = story.encoder
    assert modules(program, story.guide, story.decoder) == [story]


def test_learned_parameters_of_different_modules_do_not_hide_each_other():
    def program(x):
        return NET(OTHER(x))

    found = {id(p) for p in learned({"params": {}}, program).values()}
    assert found == {id(p) for part in (NET, OTHER) for p in part.parameters()}


def test_learned_leaves_out_what_is_frozen_and_what_is_named_twice():
    story = DMVAE(2, 2, 3, hidden=(4,))
    story.prior.loc.requires_grad_(False)
    store = {
        "params": {
            "dmvae$$$prior.log_scale": story.prior.log_scale,
            "extra": torch.zeros(1, requires_grad=True),
        }
    }
    names = set(learned(store, story.model, story.guide))
    expected = {name for name, p in story.named_parameters() if p.requires_grad}
    assert names == expected | {"extra"}
    assert "prior.loc" not in names


# What a fit leaves alone


def story_model(x):
    pyro.module("net", NET)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(NET(torch.ones(len(x), 1)), 1.0).to_event(1), obs=x)


def story_guide(x):
    pass


def quick(model, guide, **choices):
    return pyro_moe.fit(
        model, guide, X, epochs=2, batch_size=10, prior="none", progress=False, **choices
    )


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@pytest.mark.parametrize(
    ("story", "choices"),
    [
        (GMM(1, 2), {}),
        (GMM(1, 2), {"initialize": "keep"}),
        (GMM(1, 2), {"loss": "em"}),
        (DMVAE(1, 1, 2, hidden=(4,)), {}),
        (DMVAE(1, 1, 2, hidden=(4,)), {"loss": "relaxed"}),
        (DMVAE(1, 1, 2, hidden=(4,)), {"initialize": "autoencoder"}),
    ],
)
def test_a_fit_leaves_the_story_as_it_was(story, choices):
    before = copy.deepcopy(story.state_dict())
    fitted = quick(story.model, story.guide, **choices)
    assert all(torch.equal(before[name], value) for name, value in story.state_dict().items())
    assert all(p.grad is None for p in story.parameters())
    assert any(not torch.equal(before[name], value) for name, value in fitted.parameters().items())


def test_a_fit_of_plain_functions_leaves_their_modules_as_they_were():
    before = copy.deepcopy(NET.state_dict())
    fitted = quick(story_model, story_guide, initialize="keep")
    assert all(torch.equal(before[name], value) for name, value in NET.state_dict().items())
    assert not torch.equal(fitted.parameters()["bias"], before["bias"])


@pytest.mark.parametrize("initialize", ["random", "autoencoder"])
def test_a_fit_leaves_the_callers_randomness_and_parameter_store(initialize):
    pyro.param("mine", torch.tensor(1.0))
    story = DMVAE(1, 1, 2, hidden=(4,))
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    quick(story.model, story.guide, initialize=initialize)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002
    assert set(pyro.get_param_store()) == {"mine"}


def test_two_fits_share_nothing():
    story = GMM(1, 2)
    first = quick(story.model, story.guide)
    numbers = first.parameters()
    quick(story.model, story.guide, seed=1)
    second = quick(story.model, story.guide)
    assert all(torch.equal(numbers[name], value) for name, value in first.parameters().items())
    assert all(torch.equal(numbers[name], value) for name, value in second.parameters().items())
    assert first.story is not second.story


def test_a_name_in_the_callers_parameter_store_does_not_reach_a_fit():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([1]).to_event(1), obs=x)

    apart = quick(model, story_guide).parameters()["loc"]
    pyro.param("loc", torch.tensor(100.0))
    assert torch.equal(quick(model, story_guide).parameters()["loc"], apart)
    assert pyro.param("loc") == 100.0


def normal(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_an_automatic_guide_is_copied_with_its_model():
    """Also one that was never called, whose parameters do not exist yet."""
    guide = AutoNormal(normal)
    x = torch.ones(3, 2)
    _, copied = isolated(normal, guide)
    copied(x)
    assert len(list(copied.parameters())) == 2
    assert list(guide.parameters()) == []
    assert guide.model is not None
    guide(x)
    assert len(list(guide.parameters())) == 2


def test_functions_among_the_arguments_of_a_partial_are_copied():
    layer = torch.nn.Linear(2, 2)

    def inner(x):
        return layer(x)

    def apply(function, x):
        return function(x)

    (copied,) = isolated(functools.partial(apply, inner))
    (own,) = modules(copied)
    assert own is not layer
    assert_close(copied(torch.ones(1, 2)), layer(torch.ones(1, 2)))
