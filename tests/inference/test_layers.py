"""Stories with several layers of assignments: sums by hand, Pyro's own sums, and limits."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close

from pyro_moe.distributions import RelaxedOneHotCategorical
from pyro_moe.inference.handlers import Annotate, Annotations, Enumerate, is_assignment
from pyro_moe.inference.objectives import AssignedELBO, MarginalELBO, objective
from pyro_moe.inference.prior import Prior, log_prior_terms
from pyro_moe.inference.traces import (
    component_bounds,
    enumerated_traces,
    joint_posterior,
    layers,
    log_assignment,
    marginal,
    row_bounds,
    row_log_weights,
)

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 1e-9, "atol": 1e-10}
N, D, F, G, K = 6, 2, 2, 3, 4
SIZES = {"c0": F, "c1": G, "c": K}
GUIDES = [(), ("c",), ("c1",), ("c", "c1"), ("c", "c1", "c0"), ("c0", "c1", "c")]


class Chain(nn.Module):
    """A story c0 -> c1 -> c -> z -> x, in which z depends on c1, too.

    Args:
        in_guide: The assignments of the guide, each of which depends on the one before.
        top: Whether there is c0.
    """

    def __init__(self, in_guide, top=True):
        super().__init__()
        self.names = ["c0", "c1", "c"] if top else ["c1", "c"]
        self.in_guide = [name for name in in_guide if name in self.names]
        draw = torch.Generator().manual_seed(3)

        def parameter(*shape):
            return nn.Parameter(torch.randn(shape, generator=draw))

        self.first = parameter(SIZES[self.names[0]])
        self.below = nn.ParameterDict(
            {
                name: parameter(SIZES[above], SIZES[name])
                for above, name in itertools.pairwise(self.names)
            }
        )
        self.loc, self.shift = parameter(K, D), parameter(G, D)
        self.gate, self.encoder = nn.Linear(D, 6), nn.Linear(D, D)
        self.after = nn.ParameterDict(
            {
                f"{one} {other}": parameter(SIZES[one], SIZES[other])
                for one, other in itertools.permutations(SIZES, 2)
            }
        )

    def model(self, x):
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            logits, values = self.first, {}
            for name, below in itertools.zip_longest(self.names, self.names[1:]):
                site = RelaxedOneHotCategorical(torch.tensor(0.3), logits=logits)
                values[name] = pyro.sample(name, site)
                logits = values[name] @ self.below[below] if below else None
            mean = values["c"] @ self.loc + values["c1"] @ self.shift
            z = pyro.sample("z", dist.Normal(mean, 0.7).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            values = {}
            for above, name in zip([None, *self.in_guide], self.in_guide, strict=False):
                logits = self.gate(x)[..., : SIZES[name]]
                if above:
                    logits = logits + values[above] @ self.after[f"{above} {name}"]
                site = RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits)
                values[name] = pyro.sample(name, site)
            pyro.sample("z", dist.Normal(self.encoder(x), 0.4).to_event(1))

    def by_hand(self, x, z):
        """Log p(x, z, values) - log q(z) and log q(values), (N,), by the values of all sites."""
        log_p, log_q = {}, {}
        rest = Normal(z, 0.5).log_prob(x).sum(-1) - Normal(self.encoder(x), 0.4).log_prob(z).sum(-1)
        for values in itertools.product(*(range(SIZES[name]) for name in self.names)):
            of = dict(zip(self.names, values, strict=True))
            prior = self.first.log_softmax(-1)[values[0]]
            for above, name in itertools.pairwise(self.names):
                prior = prior + self.below[name][of[above]].log_softmax(-1)[of[name]]
            mean = self.loc[of["c"]] + self.shift[of["c1"]]
            log_p[values] = rest + prior + Normal(mean, 0.7).log_prob(z).sum(-1)
            q = torch.zeros(len(x))
            for above, name in zip([None, *self.in_guide], self.in_guide, strict=False):
                logits = self.gate(x)[:, : SIZES[name]]
                logits = logits + (self.after[f"{above} {name}"][of[above]] if above else 0.0)
                q = q + logits.log_softmax(-1)[:, of[name]]
            log_q[values] = q
        return log_p, log_q

    def groups_of(self, log_p):
        """The values by those of the sites in the guide."""
        places = [self.names.index(name) for name in self.in_guide]
        found = {}
        for values in log_p:
            found.setdefault(tuple(values[p] for p in places), []).append(values)
        return found

    def bound_by_hand(self, x, z):
        log_p, log_q = self.by_hand(x, z)
        total = 0.0
        for values in self.groups_of(log_p).values():
            log_sum = torch.stack([log_p[v] for v in values]).logsumexp(0)
            q = log_q[values[0]]
            total = total + q.exp() * (log_sum - q)
        return total


@pytest.fixture
def x():
    return torch.randn(N, D)


def drawn(story, x, seed=0):
    torch.manual_seed(seed)
    return Normal(story.encoder(x), 0.4).rsample()


each_guide = pytest.mark.parametrize("in_guide", GUIDES, ids=str)
each_height = pytest.mark.parametrize("top", [False, True], ids=["two", "three"])


@each_height
@each_guide
def test_the_marginal_elbo_and_its_gradients_equal_sums_by_hand(
    x, loss_and_gradients, in_guide, top
):
    story = Chain(in_guide, top)
    got = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    expected = -story.bound_by_hand(x, drawn(story, x)).sum()
    story.zero_grad()
    expected.backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in story.named_parameters()
    }
    assert_close(got, (expected.item(), gradients), **EXACT)


@each_height
@each_guide
def test_the_marginal_elbo_and_its_gradients_equal_trace_enum(x, loss_and_gradients, in_guide, top):
    story = Chain(in_guide, top)
    elbo, treat = objective(TraceEnum_ELBO(max_plate_nesting=1))
    model, guide = treat(story.model, story.guide, 1.0)
    got = loss_and_gradients(MarginalELBO(), story.model, story.guide, story, x)
    assert_close(got, loss_and_gradients(elbo, model, guide, story, x), **EXACT)


@each_guide
def test_log_weights_of_components_have_the_other_layers_summed_out(x, in_guide):
    story = Chain(in_guide)
    torch.manual_seed(0)
    traces = enumerated_traces(story.model, story.guide, x)
    log_p, _ = story.by_hand(x, traces[1].nodes["z"]["value"])
    for k in range(K):
        mine = torch.stack([value for values, value in log_p.items() if values[-1] == k])
        assert_close(row_log_weights(*traces)[k], mine.logsumexp(0), **EXACT)


@each_guide
def test_the_posterior_of_a_layer_equals_that_by_hand(x, in_guide):
    story = Chain(in_guide)
    torch.manual_seed(0)
    traces = enumerated_traces(story.model, story.guide, x)
    log_p, log_q = story.by_hand(x, traces[1].nodes["z"]["value"])
    posterior = {}
    for values in story.groups_of(log_p).values():
        log_sum = torch.stack([log_p[v] for v in values]).logsumexp(0)
        posterior |= {v: (log_q[v] + log_p[v] - log_sum).exp() for v in values}
    joint, dims = joint_posterior(*traces), layers(*traces)
    for place, name in enumerate(story.names):
        got = marginal(joint, dims[name]).exp()
        assert got.shape == (SIZES[name], N)
        for value in range(SIZES[name]):
            expected = sum(p for values, p in posterior.items() if values[place] == value)
            assert_close(got[value], expected, **EXACT)


@pytest.mark.parametrize("in_guide", [each for each in GUIDES if each != ("c1",)], ids=str)
def test_the_bound_is_that_of_its_components(x, in_guide):
    story = Chain(in_guide)
    traces = enumerated_traces(story.model, story.guide, x)
    bounds, log_q = component_bounds(*traces), log_assignment(traces[1])
    if log_q is None:
        log_q = bounds.log_softmax(0)
    assert_close((log_q.exp() * (bounds - log_q)).sum(0), row_bounds(*traces), **EXACT)


def test_the_component_of_a_row_that_is_known_is_not_summed_over(x):
    story = Chain(("c", "c1", "c0"))
    labels = torch.full((N, K), math.nan)
    labels[:2] = torch.eye(K)[[1, 3]]
    with Annotate(Annotations(labels=labels)):
        traces = enumerated_traces(story.model, story.guide, x)
    got, bounds = row_bounds(*traces), component_bounds(*traces)
    assert_close(got[:2], torch.stack([bounds[1, 0], bounds[3, 1]]), **EXACT)
    free = enumerated_traces(story.model, lambda x: None, x)
    assert "labels" not in free[0].nodes["c1"]["infer"]


@pytest.mark.parametrize("weight", [2.0, 0.5])
@each_guide
def test_a_row_counts_by_its_weight(x, in_guide, weight):
    story = Chain(in_guide)
    found = []
    for weights in (torch.ones(N), weight * torch.ones(N)):
        torch.manual_seed(0)
        with Annotate(Annotations(weights=weights)):
            traces = enumerated_traces(story.model, story.guide, x)
        found.append((row_bounds(*traces), row_log_weights(*traces), component_bounds(*traces)))
    for one, other in zip(*found, strict=True):
        assert_close(weight * one, other, **EXACT)


def test_the_assigned_elbo_is_that_of_a_guide_with_these_assignments(x):
    """With q(c|x) = r both are Σ_k r_k B_k, up to the entropy of r."""
    story, r = Chain(("c", "c1", "c0")), torch.eye(K)[torch.arange(N) % K]
    torch.manual_seed(0)
    traces = enumerated_traces(story.model, story.guide, x)
    taught = component_bounds(*traces) + log_assignment(traces[1])
    torch.manual_seed(0)
    with Annotate(Annotations(labels=r)):
        loss = AssignedELBO().loss(story.model, story.guide, x)
    assert loss == pytest.approx(-(r.T * taught).sum().item(), rel=1e-9)


@pytest.mark.parametrize("loss", ["relaxed", "categorical-kl"])
def test_the_relaxed_objective_tends_to_a_sum_over_one_hot_values(x, loss):
    """As τ → 0 the samples become one-hot, and L̃ the marginal ELBO in the mean."""
    story = Chain(("c1", "c"), top=False)
    elbo, treat = objective(loss)
    model, guide = treat(story.model, story.guide, 1e-3)
    trace = pyro.poutine.trace(guide).get_trace(x)
    for name in ("c1", "c"):
        value = trace.nodes[name]["value"]
        assert (value.amax(-1) > 0.9).double().mean() > 0.95
    with torch.no_grad():
        values = [elbo.differentiable_loss(model, guide, x).item() for _ in range(4)]
    assert all(map(math.isfinite, values))


def test_the_categorical_kl_objective_tends_to_the_marginal_one(x):
    story = Chain(("c1", "c"), top=False)
    elbo, treat = objective("categorical-kl")
    model, guide = treat(story.model, story.guide, 1e-2)
    many = x.repeat(4000, 1)
    with torch.no_grad():
        torch.manual_seed(0)
        relaxed = elbo.differentiable_loss(model, guide, many).item() / len(many)
        marginal_loss = MarginalELBO().loss(story.model, story.guide, many) / len(many)
    assert relaxed == pytest.approx(marginal_loss, abs=0.05)


def test_plain_pyro_trains_the_relaxed_story(x):
    story = Chain(("c", "c1", "c0"))
    before = {name: p.clone() for name, p in story.named_parameters()}
    svi = SVI(story.model, story.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(x)) for _ in range(3))
    for name in ("first", "loc", "shift", "below.c1", "below.c", "gate.weight"):
        assert not torch.equal(dict(story.named_parameters())[name], before[name])


def test_a_chain_with_one_group_is_the_story_of_one_layer(x):
    story = Chain(("c", "c1"), top=False)
    one = story.below["c"][:1]

    def model(x, groups=True):
        with pyro.plate("data", len(x)):
            logits, shift = one[0], story.shift[0]
            if groups:
                c1 = pyro.sample("c1", dist.OneHotCategorical(logits=torch.zeros(1)))
                logits, shift = c1 @ one, c1 @ story.shift[:1]
            c = pyro.sample("c", dist.OneHotCategorical(logits=logits))
            z = pyro.sample("z", dist.Normal(c @ story.loc + shift, 0.7).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x, groups=True):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.OneHotCategorical(logits=story.gate(x)[:, :K]))
            if groups:
                pyro.sample("c1", dist.OneHotCategorical(logits=torch.zeros(1)))
            pyro.sample("z", dist.Normal(story.encoder(x), 0.4).to_event(1))

    found = []
    for groups in (True, False):
        torch.manual_seed(0)
        traces = enumerated_traces(model, guide, x, groups)
        found.append((row_bounds(*traces), row_log_weights(*traces), log_assignment(traces[1])))
    for one_layer, two_layers in zip(*found, strict=True):
        assert_close(one_layer, two_layers, **EXACT)


def test_the_order_of_groups_does_not_matter(x):
    one, other, order = Chain(("c1", "c")), Chain(("c1", "c")), torch.tensor([2, 0, 1])
    with torch.no_grad():
        other.below["c1"].copy_(one.below["c1"][:, order])
        other.below["c"].copy_(one.below["c"][order])
        other.shift.copy_(one.shift[order])
        other.after["c1 c"].copy_(one.after["c1 c"][order])
        for part, columns in (
            (other.gate.weight, one.gate.weight),
            (other.gate.bias, one.gate.bias),
        ):
            part.copy_(columns)

    def permuted(x):  # the gate's logits are those of c1 and of c
        with pyro.plate("data", len(x)):
            c1 = pyro.sample("c1", dist.OneHotCategorical(logits=one.gate(x)[:, :G][:, order]))
            logits = one.gate(x)[:, :K] + c1 @ other.after["c1 c"]
            pyro.sample("c", dist.OneHotCategorical(logits=logits))
            pyro.sample("z", dist.Normal(one.encoder(x), 0.4).to_event(1))

    other.encoder.load_state_dict(one.encoder.state_dict())
    one.gate.load_state_dict(other.gate.state_dict())
    found = []
    for story, guide in ((one, one.guide), (other, permuted)):
        torch.manual_seed(0)
        traces = enumerated_traces(story.model, guide, x)
        found.append((row_bounds(*traces), row_log_weights(*traces), log_assignment(traces[1])))
    for first, second in zip(*found, strict=True):
        assert_close(first, second, **EXACT)


def test_what_is_an_assignment():
    def program():
        with pyro.plate("data", N):
            one_hot = dist.OneHotCategorical(torch.ones(N, 3))
            pyro.sample("c", one_hot)
            pyro.sample("any name", one_hot.mask(torch.ones(N, dtype=torch.bool)))
            pyro.sample("y", one_hot)
            pyro.sample("seen", one_hot, obs=torch.eye(3)[[0] * N])
            pyro.sample("several", dist.OneHotCategorical(torch.ones(N, 2, 3)).to_event(1))
            pyro.sample("number", dist.Categorical(torch.ones(N, 3)))
        pyro.sample("shared", dist.OneHotCategorical(torch.ones(3)))

    nodes = pyro.poutine.trace(program).get_trace().nodes
    assert [name for name, node in nodes.items() if is_assignment(node)] == ["c", "any name"]


def test_components_have_the_dimension_before_the_rows_whatever_the_order():
    def program():
        with pyro.plate("data", N):
            for name in ("c0", "c1", "c"):
                pyro.sample(name, dist.OneHotCategorical(torch.ones(SIZES[name])))

    with Enumerate():
        trace = pyro.poutine.trace(program).get_trace()
    shapes = {name: tuple(trace.nodes[name]["value"].shape) for name in SIZES}
    assert shapes == {"c": (K, 1, K), "c0": (F, 1, 1, F), "c1": (G, 1, 1, 1, G)}
    assert layers(trace) == {"c": -2, "c0": -3, "c1": -4}


def test_a_prior_of_rows_gives_each_component_its_rows_in_equal_shares_of_the_groups(x):
    story = Chain((), top=False)
    trace = enumerated_traces(story.model, story.guide, x)[0]
    got = log_prior_terms(Prior(rows=2.0), N, trace)
    of_c1 = K * story.first.log_softmax(-1).mean()
    of_c = story.below["c"].log_softmax(-1).mean(0).sum()
    assert_close(got, 2.0 * (of_c1 + of_c), **EXACT)
