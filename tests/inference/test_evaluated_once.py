import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from torch import nn
from torch.testing import assert_close

import pyro_moe
from pyro_moe.inference import MarginalELBO
from pyro_moe.inference.context import training_mode
from pyro_moe.inference.handlers.evaluated_once import evaluated_once
from pyro_moe.models import AffineMaps, CategoricalConditional, MixtureOfExperts, NormalExperts

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 12, 2, 3


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def story(*layers):
    torch.manual_seed(0)
    network = nn.Sequential(Counted(D, K), *layers)
    return MixtureOfExperts(
        CategoricalConditional(network), NormalExperts(AffineMaps(D, K, 1), K, y_dim=1)
    )


@pytest.fixture
def rows():
    return torch.randn(N, D), torch.randn(N, 1)


def loss_and_gradients(moe, rows):
    loss = MarginalELBO().differentiable_loss(moe.model, moe.guide, *rows)
    return loss, torch.autograd.grad(loss, list(moe.parameters()))


def test_loss_and_gradients_are_the_same_of_half_the_evaluations(rows):
    moe = story()
    twice = loss_and_gradients(moe, rows)
    calls = moe.gate.network[0].calls
    with evaluated_once(moe.model, moe.guide):
        once = loss_and_gradients(moe, rows)
    assert (calls, moe.gate.network[0].calls - calls) == (2, 1)
    assert_close(once, twice, rtol=1e-12, atol=1e-12)


def test_with_dropout_the_guide_is_the_posterior_under_the_models_own_gate(rows):
    """The marginal ELBO is then the log-likelihood, which noise of each side's own is not."""
    moe = story(nn.Dropout(0.5))
    x, y = rows
    with training_mode(moe.model, moe.guide), evaluated_once(moe.model, moe.guide):
        loss, _ = loss_and_gradients(moe, rows)
        same = -moe(x).log_prob(y).sum()  # the gate as it was last asked
        with torch.no_grad():
            other = -moe(x).log_prob(y).sum()
    assert_close(loss, same)
    assert abs(loss - other) > 1e-3


@pytest.mark.parametrize(
    ("elbo", "a_step"), [("marginal", 1), ("relaxed", 1), (TraceGraph_ELBO(num_particles=2), 4)]
)
@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_a_step_of_fit_evaluates_a_gate_once_if_gradients_are_taken_at_once(rows, elbo, a_step):
    moe = story()
    choices = {"initialize": "keep", "prior": "none", "progress": False, "loss": elbo}
    counts = []
    for epochs in (1, 3):
        fitted = pyro_moe.fit(moe.model, moe.guide, rows, epochs=epochs, **choices)
        counts.append(fitted.story.gate.network[0].calls)
    assert counts[1] - counts[0] == 2 * a_step


def test_what_changes_the_answer_is_a_call_of_its_own():
    gate, x = CategoricalConditional(Counted(D, K)), torch.randn(N, D)
    network = gate.network
    other = {"network.weight": torch.zeros(K, D)}
    with evaluated_once(gate):
        first = gate(x)
        assert gate(x) is first
        with torch.no_grad():
            assert gate(x) is not first
        assert_close(gate(x).logits, first.logits)
        changed = torch.func.functional_call(gate, other, (x,))
        assert_close(changed.probs, network.bias.softmax(-1).expand(N, K))
        assert_close(gate(x.clone()).logits, first.logits)
        before = gate(x).logits
        x += 1.0
        assert not torch.equal(gate(x).logits, before)


def test_modules_that_sample_do_so_each_time():
    class Noisy(nn.Module):
        def forward(self, x):
            return pyro.sample("noise", dist.Normal(x, 1.0).to_event(2))

    gate, x = CategoricalConditional(Noisy()), torch.randn(N, K)
    with evaluated_once(gate):
        assert not torch.equal(gate(x).logits, gate(x).logits)


def test_modules_are_afterwards_as_they_were():
    gate, own = CategoricalConditional(nn.Linear(D, K)), CategoricalConditional(nn.Linear(D, K))
    own.forward = forward = lambda x: dist.Normal(x, 1.0)
    with pytest.raises(KeyboardInterrupt), evaluated_once(gate, own):
        raise KeyboardInterrupt
    assert "forward" not in vars(gate)
    assert own.forward is forward


def test_a_tensor_of_inference_mode_is_evaluated_at_every_call(rows):
    moe = story()
    with torch.inference_mode(), evaluated_once(moe.model, moe.guide):
        x = rows[0].clone()
        first = moe.gate(x).logits
        x.zero_()
        assert not torch.equal(moe.gate(x).logits, first)
