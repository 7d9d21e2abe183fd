import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_moe.inference.context import reproducible, running, stream


def empty():
    return {"params": {}, "constraints": {}}


def test_the_same_seeds_draw_the_same_numbers_and_others_draw_others():
    def draw(*seeds):
        with reproducible(*seeds):
            return torch.rand(3)

    assert torch.equal(draw(0, 1), draw(0, 1))
    for other in [(1, 0), (0,), (0, 2), (0, 1, 0)]:
        assert not torch.equal(draw(0, 1), draw(*other))


@pytest.mark.parametrize("problem", [None, ValueError])
def test_the_callers_generator_is_left_as_it_was(problem):
    before = torch.get_rng_state()
    try:
        with reproducible(0):
            torch.rand(3)
            if problem:
                raise problem
    except ValueError:
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_stream_is_one_number_that_every_library_takes():
    seeds = [stream(a, b) for a in range(10) for b in range(10)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**32 for seed in seeds)
    np.random.RandomState(max(seeds))
    assert stream(0, 1) == stream(0, 1)


def test_running_keeps_the_parameter_store_apart():
    pyro.param("mine", torch.tensor(1.0))
    store = empty()
    with running(store):
        assert "mine" not in pyro.get_param_store()
        pyro.param("theirs", torch.tensor(2.0))
    assert set(pyro.get_param_store()) == {"mine"}
    assert set(store["params"]) == {"theirs"}


def test_running_goes_on_with_the_store_it_is_given():
    store = empty()
    with running(store):
        pyro.param("theirs", torch.tensor(2.0))
    with running(store):
        assert pyro.param("theirs", torch.tensor(7.0)) == 2.0


def test_running_puts_everything_back_after_an_error():
    pyro.param("mine", torch.tensor(1.0))
    try:
        with running(empty()):
            pyro.param("theirs", torch.tensor(2.0))
            raise ValueError
    except ValueError:
        pass
    assert set(pyro.get_param_store()) == {"mine"}
    assert dist.is_validation_enabled()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("set_validation", [pyro.enable_validation, dist.enable_validation])
def test_running_restores_the_validation_flag(set_validation, enabled):
    try:
        set_validation(enabled)
        with running(empty()):
            dist.Normal(0.0, -1.0)
        assert dist.is_validation_enabled() is enabled
        assert torch.distributions.Distribution._validate_args is enabled
    finally:
        pyro.enable_validation(True)


def test_running_restores_the_validation_flag_of_torch_when_it_differs_from_pyros():
    try:
        torch.distributions.Distribution.set_default_validate_args(False)
        with running(empty()):
            pass
        assert torch.distributions.Distribution._validate_args is False
    finally:
        pyro.enable_validation(True)


def test_a_module_of_a_run_is_not_in_the_global_store():
    layer = nn.Linear(1, 1)
    with running(empty()):
        pyro.module("layer", layer)
    assert not list(pyro.get_param_store())
