import copy
from contextlib import closing

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pyro_moe.inference.steps import Updates
from pyro_moe.inference.steps.flat import FEW, is_small

SAME = {"rtol": 0, "atol": 0}


def trained(number, *, steps=FEW, unused=False, **options):
    """The parameters and the state of Adam after steps of `Updates`, and after Adam's own."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ways = [(network, Updates(number)), (copy.deepcopy(network), None)]
    found = []
    for net, updates in ways:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, fused=True, **options)
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
        with closing(updates or Updates(0)):
            for _ in range(steps):
                net(x)[:, : 1 if unused else 2].square().sum().backward()
                if unused:
                    net[1].bias.grad = None
                if updates is None:
                    optimizer.step()
                    optimizer.zero_grad()
                else:
                    assert updates.step(optimizer)
        found.append((dict(net.named_parameters()), optimizer.state_dict()["state"]))
    return found, ways[0][1]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"amsgrad": True}])
@pytest.mark.parametrize("unused", [False, True])
def test_steps_are_those_of_adam(options, unused):
    (one, other), _ = trained(FEW, unused=unused, **options)
    assert_close(one[0], other[0], rtol=1e-6, atol=1e-7)
    assert_close(one[1], other[1], rtol=1e-6, atol=1e-7)


def test_parameters_have_tensors_of_their_own_afterwards():
    (one, _), updates = trained(FEW)
    assert updates.flat is None
    assert len({value.untyped_storage().data_ptr() for value in one[0].values()}) == len(one[0])


def test_a_gradient_that_is_not_finite_changes_nothing():
    network = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    with closing(Updates(FEW)) as updates:
        for _ in range(2):
            network(torch.ones(1, 2)).sum().backward()
            assert updates.step(optimizer)
        assert updates.flat is not None
        before = [value.detach().clone() for value in network.parameters()]
        network(torch.full((1, 2), torch.inf)).sum().backward()
        assert not updates.step(optimizer)
    assert_close(list(map(torch.Tensor.detach, network.parameters())), before, **SAME)


def test_a_model_of_many_values_is_not_small():
    large = torch.optim.Adam(nn.Linear(1000, 1000).parameters(), fused=True)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert not is_small(large)
    assert not is_small(other)
