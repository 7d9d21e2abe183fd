"""Criticism draws from seeds of its own: the caller's generator stays as it was."""

import pytest
import torch

from pyro_moe import criticism

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto"),
]
ASKED = {
    "check": lambda fit: criticism.check(fit, num_replicates=5),
    "compare": lambda fit: criticism.compare(
        {"it": fit}, fit.data if len(fit.data) > 1 else fit.data[0], num_samples=8
    ),
    "health": criticism.health,
    "to_arviz": lambda fit: criticism.to_arviz(fit, num_draws=8),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED.keys())
@pytest.mark.parametrize("name", ["vade", "gmmmoe", "bayesian"])
def test_the_generator_of_the_caller_is_left_alone(fits, name, ask):
    fit = fits(name)
    before = torch.get_rng_state()
    ask(fit)
    assert torch.equal(torch.get_rng_state(), before)
