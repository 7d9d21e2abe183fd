import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.testing import assert_close

import pyro_moe
from pyro_moe.inference import AssignedELBO, MarginalELBO, NonFiniteWarning
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.handlers import Annotations
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.svi import (
    SVI,
    MinibatchScale,
    NonFiniteError,
    at,
    marginal_elbo,
    one_cycle,
    steps_in_epoch,
)
from pyro_moe.models import DMVAE, GMM

pytestmark = pytest.mark.usefixtures("double")
N, D, K = 24, 2, 3
SAME = {"rtol": 0, "atol": 0}


@pytest.fixture
def x():
    return torch.randn(N, D)


def make():
    torch.manual_seed(5)
    return DMVAE(D, 1, K, hidden=(4,), weights="learned")


def svi(story, x, loss="marginal", **choices):
    elbo, treatment = objective(loss)
    settings = {
        "epochs": 4,
        "batch_size": 10,
        "learning_rate": 1e-2,
        "temperature": 0.5,
        "seed": 0,
    } | choices
    return SVI(story.model, story.guide, (x,), elbo, treatment, **settings)


def numbers(run):
    return {name: p.detach().clone() for name, p in run.parameters().items()}


def elbos(run):
    return [record["elbo"] for record in run.history]


# Minibatches


@pytest.mark.parametrize("elbo", [MarginalELBO(), Trace_ELBO(), TraceMeanField_ELBO()])
def test_minibatches_of_a_model_with_a_global_latent_average_to_the_whole(elbo, x):
    loc = nn.Parameter(torch.randn(D))

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    def guide(x):
        q = dist.Normal(pyro.param("loc", loc), 0.3).to_event(1)
        pyro.sample("w", q)

    def objective_and_gradient(rows):
        torch.manual_seed(0)  # the same w for every batch
        loc.grad = None
        with MinibatchScale(len(rows) / N):
            loss = elbo.loss_and_grads(model, guide, rows)
        return torch.cat([torch.tensor([loss]), loc.grad]) / len(rows)

    batches = x.split([3, 10, 11])
    averaged = sum(len(rows) / N * objective_and_gradient(rows) for rows in batches)
    assert_close(averaged, objective_and_gradient(x), rtol=1e-10, atol=1e-12)


def test_minibatch_scale_leaves_rows_alone(x):
    story = GMM(D, K)
    with MinibatchScale(0.25):
        scaled = MarginalELBO().loss(story.model, story.guide, x)
    assert scaled == MarginalELBO().loss(story.model, story.guide, x)


def test_steps_are_those_of_adam_on_the_mean_over_rows(x):
    story, by_hand = make(), make()
    run = svi(story, x, batch_size=10, epochs=3)
    list(run)
    adam = torch.optim.Adam(by_hand.parameters(), lr=1.0)
    for epoch in range(3):
        with reproducible(0, epoch), running({"params": {}, "constraints": {}}):
            batches = torch.randperm(N).split(8)  # three nearly equal ones of at most ten
            for step, rows in enumerate(batches):
                adam.zero_grad()
                elbo = MarginalELBO()
                loss = elbo.differentiable_loss(by_hand.model, by_hand.guide, x[rows])
                (loss / len(rows)).backward()
                done = (epoch + step / 3) / 3
                adam.param_groups[0]["lr"] = 1e-2 * one_cycle(done)
                adam.step()
    assert_close(numbers(run), dict(by_hand.named_parameters()), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("batch_size", [7, N])
def test_the_recorded_elbo_is_in_nats_per_row(x, batch_size, scatter):
    story = scatter(GMM(D, K))
    (record,) = svi(story, x, learning_rate=0.0, epochs=1, batch_size=batch_size)
    expected = story.mixture.log_joint(x).logsumexp(-1).mean().item()
    assert record["elbo"] == pytest.approx(expected, rel=1e-10)


def test_every_row_is_seen_once_an_epoch(x):
    seen = []

    def model(rows):
        seen.append(rows)
        with pyro.plate("data", len(rows)):
            loc = pyro.param("loc", torch.zeros(D))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=rows)

    elbo, treatment = objective("marginal")
    list(SVI(model, lambda rows: None, (x,), elbo, treatment, 2, 10, 1e-2, 1.0, 0))
    assert [len(rows) for rows in seen] == [8, 8, 8] * 2
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert_close(epoch[epoch[:, 0].argsort()], x[x[:, 0].argsort()], **SAME)


# Schedules


def test_a_schedule_is_a_number_or_a_function():
    assert at(0.3, 0.7) == 0.3
    assert at(lambda done: 2 * done, 0.7) == 1.4


def test_schedules_are_functions_of_the_share_done(x):
    seen = []

    def schedule(done):
        seen.append(done)
        return 1e-3

    run = svi(make(), x, learning_rate=schedule, epochs=2)
    list(run)
    expected = [(epoch + step / 3) / 2 for epoch in range(2) for step in range(3)]
    assert sorted(set(seen)) == pytest.approx(expected)


def test_the_learning_rate_is_one_cycle_of_half_cosines_to_zero(x):
    run = svi(make(), x, learning_rate=2.0)
    rates = [run.rate(done) for done in (0.0, 0.15, 0.3, 0.65, 1.0)]
    assert rates == pytest.approx([0.08, 1.04, 2.0, 1.0, 0.0])


@pytest.mark.parametrize("loss", ["relaxed", "categorical-kl"])
def test_the_temperature_reaches_c(x, loss):
    first, same, other = (
        svi(make(), x, loss, temperature=lambda done, t=t: t + done) for t in (1.0, 1.0, 2.0)
    )
    for run in (first, same, other):
        list(run)
    assert elbos(first) == elbos(same)
    assert elbos(first) != elbos(other)
    assert first.history[-1]["temperature"] == pytest.approx(1.0 + (3 + 2 / 3) / 4)


# Same numbers


@pytest.mark.parametrize("loss", ["marginal", "relaxed", "categorical-kl"])
def test_the_same_seed_gives_the_same_numbers(x, loss):
    first, second, other = svi(make(), x, loss), svi(make(), x, loss), svi(make(), x, loss, seed=1)
    list(first)
    torch.rand(7)  # whatever the caller draws between
    list(second)
    list(other)
    assert elbos(first) == elbos(second)
    assert elbos(first) != elbos(other)
    assert_close(numbers(first), numbers(second), **SAME)


def test_a_copy_goes_on_as_if_there_had_been_no_stop(x):
    stopped, straight = svi(make(), x), svi(make(), x)
    epochs = iter(stopped)
    next(epochs)
    next(epochs)
    before = numbers(stopped)
    resumed = stopped.copy(epochs=4)
    list(resumed)
    list(straight)
    assert elbos(resumed) == elbos(straight)
    assert_close(numbers(resumed), numbers(straight), **SAME)
    assert_close(numbers(stopped), before, **SAME)
    assert len(stopped.history) == 2


def with_parameters(x):
    """A story of plain functions, whose parameters are in Pyro's store."""
    loc = pyro.param("loc", torch.zeros(K, D))
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(torch.ones(K)))
        pyro.sample("x", dist.Normal(c @ loc, scale).to_event(1), obs=x)


def nothing(x):
    pass


def stop_after(epochs):
    def callback(fitted):
        if len(fitted.history) == epochs:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize(
    ("program", "loss"), [("story", "marginal"), ("story", "relaxed"), ("functions", "marginal")]
)
def test_a_resumed_fit_has_the_numbers_of_one_without_a_stop(x, program, loss):
    story = make()
    pair = (story.model, story.guide) if program == "story" else (with_parameters, nothing)
    choices = {"epochs": 5, "batch_size": 10, "loss": loss, "prior": "none", "progress": False}
    choices["initialize"] = "random"
    straight = pyro_moe.fit(*pair, x, **choices)
    stopped = pyro_moe.fit(*pair, x, callback=stop_after(2), **choices)
    before = stopped.parameters()
    resumed = stopped.resume(progress=False)
    assert stopped.interrupted
    assert resumed.stopped is None
    assert [r["elbo"] for r in resumed.history] == [r["elbo"] for r in straight.history]
    assert_close(resumed.parameters(), straight.parameters(), **SAME)
    assert_close(stopped.parameters(), before, **SAME)
    assert len(stopped.history) == 2


def test_a_fit_stopped_in_its_first_phase_does_not_resume(x):
    story = make()
    choices = {
        "epochs": 2,
        "initial_epochs": 2,
        "initialize": "autoencoder",
        "prior": "none",
        "progress": False,
    }
    stopped = pyro_moe.fit(story.model, story.guide, x, callback=stop_after(1), **choices)
    with pytest.raises(ValueError, match="in phase 'training'; got one stopped in phase 'autoenc"):
        stopped.resume(progress=False)


def test_parameters_of_plain_functions_are_learned(x):
    fitted = pyro_moe.fit(with_parameters, nothing, x, epochs=3, prior="none", progress=False)
    parameters = fitted.parameters()
    assert set(parameters) == {"loc", "scale"}
    assert parameters["scale"] != 0.0


@pytest.mark.parametrize("loss", ["marginal", "relaxed"])
def test_modules_that_are_not_registered_with_pyro_are_learned_by_every_loss(x, loss):
    net = nn.Linear(D, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(z), D]).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    fitted = pyro_moe.fit(model, guide, x, epochs=2, loss=loss, initialize="keep", progress=False)
    assert not torch.equal(fitted.parameters()["weight"], net.weight)


# Held-out rows


def kept_states(run):
    """The parameters at the end of each epoch."""
    return [numbers(run) for _ in run]


def bounds(run):
    return [record["held_out_elbo"] for record in run.history]


def test_the_bound_on_held_out_rows_is_recorded_in_each_epoch(x):
    run = svi(make(), x[:16], held_out=(x[16:],))
    for record in run:
        expected = marginal_elbo(run.model, run.guide, run.store, (x[16:],), seed=0)
        assert record["held_out_elbo"] == expected
    assert run.held_out_elbo == max(bounds(run))


def test_the_bound_of_a_gaussian_mixture_is_the_likelihood_of_the_held_out_rows(x, scatter):
    story = scatter(GMM(D, K))
    (record,) = svi(story, x[:16], held_out=(x[16:],), learning_rate=0.0, epochs=1)
    expected = story.mixture.log_joint(x[16:]).logsumexp(-1).mean().item()
    assert record["held_out_elbo"] == pytest.approx(expected, rel=1e-10)


def test_the_bound_is_computed_a_hundred_times_and_at_the_end(x):
    run = svi(GMM(D, K), x[:16], held_out=(x[16:],), epochs=405, batch_size=N)
    run.history = [{"epoch": epoch} for epoch in range(1, 397)]
    known = [record["epoch"] for record in run if "held_out_elbo" in record]
    assert known == [400, 404, 405]


def test_training_stops_when_no_bound_is_better_and_goes_back_to_the_best_state(x):
    run = svi(make(), x[:16], held_out=(100.0 + x[16:],), epochs=50, patience=3)
    run.learning_rate = lambda done: 0.05 if done < 0.1 else -0.05  # away from the best state
    states = kept_states(run)
    best = bounds(run).index(max(bounds(run)))
    assert run.stalled
    assert len(run.history) == best + 1 + 3 < 50
    assert_close(numbers(run), states[best], **SAME)
    assert not all(torch.equal(value, states[-1][name]) for name, value in numbers(run).items())
    assert max(bounds(run)) == pytest.approx(
        marginal_elbo(run.model, run.guide, run.store, (100.0 + x[16:],), seed=0)
    )


def test_without_patience_training_goes_to_its_end_and_back_to_the_best_state(x):
    run = svi(make(), x[:16], held_out=(x[16:],), learning_rate=0.3, epochs=12)
    states = kept_states(run)
    assert len(states) == 12
    assert not run.stalled
    assert_close(numbers(run), states[bounds(run).index(max(bounds(run)))], **SAME)


def test_without_held_out_rows_no_bound_is_recorded_and_the_last_state_stays(x):
    run = svi(make(), x, patience=1)
    states = kept_states(run)
    assert len(states) == 4
    assert not any("held_out_elbo" in record for record in run.history)
    assert run.held_out_elbo is None
    assert_close(numbers(run), states[-1], **SAME)


def test_held_out_rows_do_not_change_the_training(x):
    alone, with_held = svi(make(), x[:16]), svi(make(), x[:16], held_out=(x[16:],))
    assert_close(kept_states(alone), kept_states(with_held), **SAME)


# Values that are not finite


def rate_that_explodes(done):
    """Normal in the first epoch of three, and then not."""
    return 1e-2 if done < 0.3 else 1e200


def test_after_a_value_that_is_not_finite_the_parameters_are_those_of_the_last_good_epoch(x):
    run = svi(GMM(D, K), x, learning_rate=rate_that_explodes, epochs=3)
    epochs = iter(run)
    next(epochs)
    before = numbers(run)
    with pytest.raises(NonFiniteError, match=r"non-finite value at site '[cx]' at epoch 2, step 2"):
        next(epochs)
    assert_close(numbers(run), before, **SAME)
    assert len(run.history) == 1


def test_a_fit_warns_of_a_value_that_is_not_finite_and_keeps_the_last_good_epoch(x):
    story, seen = GMM(D, K), []
    with pytest.warns(
        NonFiniteWarning, match=r"non-finite value at site '[cx]' at epoch 2, step 2: training stop"
    ):
        fitted = pyro_moe.fit(
            story.model,
            story.guide,
            x,
            epochs=3,
            batch_size=10,
            learning_rate=rate_that_explodes,
            prior="none",
            progress=False,
            callback=lambda each: seen.append(each.parameters()),
        )
    assert len(seen) == 1
    assert_close(fitted.parameters(), seen[0], **SAME)
    assert "at epoch 2, step 2" in fitted.stopped


def test_a_site_that_is_not_finite_is_named(x):
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale * math.nan).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))

    elbo, treatment = objective("marginal")
    run = SVI(model, guide, (x,), elbo, treatment, 1, 10, 1e-2, 1.0, 0)
    with pytest.raises(NonFiniteError, match="site 'x' at epoch 1, step 1"):
        list(run)


def test_a_value_that_is_not_finite_is_found_while_assignments_are_held(x):
    r = torch.rand(N, K).softmax(-1)
    run = svi(GMM(D, K), x, learning_rate=rate_that_explodes, epochs=3)
    run.elbo, run.annotations = AssignedELBO(), Annotations(labels=r)
    with pytest.raises(NonFiniteError, match=r"non-finite value at site '[cx]' at epoch 2, step 2"):
        list(run)


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is(x):
    def model(x):
        loc = pyro.param("loc", torch.zeros(D)).abs().sqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    elbo, treatment = objective("marginal")
    run = SVI(model, nothing, (x,), elbo, treatment, 1, 10, 1e-2, 1.0, 0)
    with pytest.raises(NonFiniteError, match="non-finite gradient at epoch 1, step 1"):
        list(run)
    assert_close(run.store["params"]["loc"].detach(), torch.zeros(D), **SAME)


# Training and evaluation


@pytest.mark.parametrize(("rows", "expected"), [(21, [7, 7, 7]), (11, [6, 5]), (10, [10])])
def test_minibatches_are_nearly_equal(x, rows, expected):
    story, sizes = make(), []
    story.encoder.register_forward_pre_hook(lambda encoder, given: sizes.append(len(given[0])))
    list(svi(story, x[:rows], epochs=1))
    assert sizes == expected
    assert len(sizes) == steps_in_epoch(rows, 10)


def test_modules_learn_in_training_mode_and_are_otherwise_in_evaluation_mode(x):
    story, modes = make(), []
    dropout = nn.Dropout(0.5)
    story.encoder.register_module("dropout", dropout)
    dropout.register_forward_hook(lambda module, *_: modes.append(module.training))
    story.encoder.register_forward_pre_hook(lambda encoder, given: (encoder.dropout(given[0]),))
    run = svi(story, x)
    for _ in run:
        assert not any(part.training for part in story.modules())
    assert modes == [True] * len(modes)
    assert len(modes) == 4 * 3  # epochs and batches


def test_after_an_error_modules_are_in_evaluation_mode(x):
    story = make()

    def fails(module, given):
        raise RuntimeError("as asked")

    story.encoder.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="as asked"):
        list(svi(story, x))
    assert not any(part.training for part in story.modules())
