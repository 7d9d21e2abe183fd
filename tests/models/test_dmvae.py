import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

from pyro_moe.models import DMVAE, MLP

pytestmark = pytest.mark.usefixtures("double")
D, L, K = 3, 2, 4


def test_weights_are_uniform_unless_asked_for():
    assert "prior.logits" not in dict(DMVAE(D, L, K).named_parameters())
    assert "prior.logits" in dict(DMVAE(D, L, K, weights="learned").named_parameters())


def test_covariance_is_full_unless_asked_for():
    assert DMVAE(D, L, K).prior.covariance == "full"
    assert DMVAE(D, L, K, covariance="tied").prior.covariance == "tied"


def test_gate_and_encoder_share_no_parameter():
    story = DMVAE(D, L, K)
    gate = {id(p) for p in story.gate.parameters()}
    assert gate.isdisjoint(id(p) for p in story.encoder.parameters())


def test_guide_draws_c_from_the_gate_and_z_from_the_encoder(scatter):
    story, x = scatter(DMVAE(D, L, K)), torch.randn(5, D)
    nodes = poutine.trace(story.guide).get_trace(x).nodes
    assert_close(nodes["c"]["fn"].probs, story.gate(x).probs)
    assert_close(nodes["z"]["fn"].mean, story.encoder(x).mean)


def test_model_simulates_what_its_equations_say(scatter):
    story = scatter(DMVAE(D, L, K, decoder=MLP(L, (), D), weights="learned", covariance="full"))
    num = 20_000
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(story.model)).get_trace(torch.zeros(num, D))
    c, z, x = (trace.nodes[name]["value"] for name in "czx")
    probs = story.prior.logits.softmax(-1).detach()
    assert ((c.mean(0) - probs).abs() < 4.5 * (probs * (1 - probs) / num).sqrt()).all()
    for k in range(K):
        mine = z[c[:, k] == 1]
        error = mine.std(0) / len(mine) ** 0.5
        assert ((mine.mean(0) - story.prior.loc[k]).abs() < 4.5 * error).all()
        factor = story.prior.scale_tril[k].detach()
        white = torch.linalg.solve_triangular(factor, (mine - mine.mean(0)).T, upper=False).T
        assert ((white.T.cov() - torch.eye(L)).abs() < 4.5 * (2 / len(mine)) ** 0.5).all()
    residual = (x - story.decoder.network(z).detach()) / story.decoder.log_scale.detach().exp()
    assert (residual.mean(0).abs() < 4.5 / num**0.5).all()
    assert ((residual.var(0) - 1).abs() < 4.5 * (2 / num) ** 0.5).all()


@pytest.mark.parametrize("choice", ["covariance", "weights"])
def test_a_choice_that_is_none_is_an_error(choice):
    with pytest.raises(ValueError, match=rf"expected {choice} in .*; got 'other'"):
        DMVAE(D, L, K, **{choice: "other"})
