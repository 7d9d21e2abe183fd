import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import pyro_moe
from pyro_moe import DataError, DataWarning, NonFiniteWarning, Rows, SiteError, evaluation
from pyro_moe.fitting import entry, geometric
from pyro_moe.inference.em import EM
from pyro_moe.inference.objectives import PRIOR_SHARE
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.svi import SVI
from pyro_moe.models import (
    DMVAE,
    GMM,
    VAE,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DeepMoE,
    NormalConditional,
    VaDE,
)

N, D, L, K = 30, 2, 1, 3
EXACT = {"rtol": 0, "atol": 0}


def fit(story, data, **choices):
    start = {"initialize": "random"}
    choices = {"epochs": 2, "batch_size": 10, "prior": "none", "progress": False} | start | choices
    return pyro_moe.fit(story.model, story.guide, data, **choices)


def same(first, second):
    assert_close(first.parameters(), second.parameters(), **EXACT)
    assert elbos(first) == elbos(second)


def elbos(fitted):
    return [record["elbo"] for record in fitted.history]


def stay(done):
    """A learning rate of nothing."""
    return 0.0


def interrupt(*args):
    raise KeyboardInterrupt


STORIES = {
    "gmm": lambda: GMM(D, K),
    "vae": lambda: VAE(D, L, hidden=(4,)),
    "vade": lambda: VaDE(D, L, K, hidden=(4,)),
    "dmvae": lambda: DMVAE(D, L, K, hidden=(4,)),
}
each_story = pytest.mark.parametrize("name", STORIES)


@pytest.fixture
def labels():
    return torch.arange(N) % K


@pytest.fixture
def x(labels):
    """Three clusters, ten standard deviations apart."""
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    return centers[labels] + torch.randn(N, D)


# Same seed, same numbers, and nothing else


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@each_story
def test_the_seed_alone_decides_the_numbers(x, name):
    torch.manual_seed(1)
    first = STORIES[name]()
    torch.manual_seed(2)
    second = STORIES[name]()
    assert any(
        not torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )
    fitted = fit(first, x, seed=3)
    torch.rand(5)
    same(fitted, fit(second, x, seed=3))
    other = fit(second, x, seed=4)
    assert all(a != b for a, b in zip(elbos(fitted), elbos(other), strict=True))


@pytest.mark.parametrize("start", ["autoencoder", "responsibilities"])
def test_the_seed_decides_initial_phases_too(x, labels, start):
    if start == "responsibilities":
        start = torch.eye(K)[labels]
    first, second = (fit(STORIES["dmvae"](), x, initialize=start) for _ in range(2))
    same(first, second)


@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, start) for name in STORIES for start in ("random", "keep"))]
    + [(name, "autoencoder") for name in ("gmm", "vade", "dmvae")],
)
def test_the_callers_story_stays_as_it_was(x, name, start):
    story = STORIES[name]()
    before = {key: value.clone() for key, value in story.state_dict().items()}
    fitted = fit(story, x, initialize=start)
    assert_close(dict(story.state_dict()), before, **EXACT)
    assert all(p.grad is None for p in story.parameters())
    assert fitted.story is not story
    after = fitted.story.state_dict()
    assert any(not torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("choices", [{}, {"initialize": "autoencoder"}, {"restarts": 2}])
def test_global_state_stays_as_it_was(x, choices):
    story, mine = STORIES["dmvae"](), torch.tensor([1.0, 2.0])
    pyro.param("mine", mine)
    state = torch.get_rng_state()
    fit(story, x, **choices)
    assert_close(torch.get_rng_state(), state, **EXACT)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert_close(pyro.param("mine").detach(), mine, **EXACT)


def test_what_the_parameter_store_holds_is_no_start():
    """A parameter of the same name, of a program that somebody ran before."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(D))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    pyro.param("loc", torch.full((D,), 77.0))
    fitted = pyro_moe.fit(model, nothing, torch.zeros(N, D), epochs=1, prior="none", progress=False)
    assert_close(fitted.parameters()["loc"], torch.zeros(D), **EXACT)


def test_two_fits_of_one_story_do_not_meet(x):
    story = STORIES["dmvae"]()
    first = fit(story, x)
    before = first.parameters()
    second = fit(story, 5 * x, seed=1)
    assert_close(first.parameters(), before, **EXACT)
    shared = {id(p) for p in first.programs.parameters().values()}
    assert shared.isdisjoint(id(p) for p in second.programs.parameters().values())


# Data


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.double().numpy(),
        lambda x: pd.DataFrame(x.numpy(), columns=["a", "b"], index=range(N, 0, -1)),
        lambda x: x.tolist(),
        lambda x: Rows(x, labels=torch.zeros(N, dtype=torch.long)),
        lambda x: TensorDataset(x),
        lambda x: (x,),
    ],
    ids=["numpy", "pandas", "list", "rows", "dataset", "tuple"],
)
def test_data_of_every_kind_gives_the_same_fit(x, convert):
    story = STORIES["dmvae"]()
    same(fit(story, convert(x)), fit(story, x))


def test_targets_go_to_model_and_guide(x):
    y = x @ torch.tensor([1.0, -2.0]) + 0.5
    seen = []

    def model(x, y):
        weight = pyro.param("weight", torch.tensor([0.5, 0.0]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(D), 2.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(x @ weight, 1.5), obs=y)

    def guide(x, y):
        seen.append((x, y))

    fitted = pyro_moe.fit(
        model,
        guide,
        (x, y),
        epochs=1,
        batch_size=7,
        learning_rate=stay,
        prior="none",
        progress=False,
    )
    density = dist.Normal(0.0, 2.0).log_prob(x).sum(-1)
    density = density + dist.Normal(0.5 * x[:, 0], 1.5).log_prob(y)
    assert elbos(fitted) == pytest.approx([density.mean().item()], rel=1e-6)
    assert all(torch.equal(y, x @ torch.tensor([1.0, -2.0]) + 0.5) for x, y in seen)


@pytest.mark.parametrize("y", [torch.arange(N) % 2, torch.arange(N) % 2 == 1])
def test_classes_stay_whole_numbers(x, y):
    seen = []

    def model(x, y):
        seen.append(y)
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    pyro_moe.fit(model, nothing, (x, y), epochs=1, prior="none", progress=False)
    assert {each.dtype for each in seen} == {torch.int64}


def test_double_precision_goes_from_end_to_end(x):
    x = x.double()
    fitted = fit(STORIES["dmvae"]().double(), x, initialize="autoencoder")
    assert {p.dtype for p in fitted.parameters().values()} == {torch.float64}
    readings = [
        evaluation.gate(fitted, x),
        evaluation.encode(fitted, x),
        evaluation.reconstruct(fitted, x),
        evaluation.elbo(fitted, x),
        evaluation.importance_weighted_bound(fitted, x, num_samples=2),
        evaluation.sample(fitted, 3),
    ]
    assert {each.dtype for each in readings} == {torch.float64}


def test_data_takes_the_type_of_the_parameters(x):
    same(fit(STORIES["gmm"]().double(), x), fit(STORIES["gmm"]().double(), x.double()))
    assert fit(STORIES["gmm"](), x.double()).data[0].dtype == torch.float32


def test_a_device_may_be_named(x):
    fitted = fit(STORIES["dmvae"](), x, device="cpu")
    assert {p.device.type for p in fitted.parameters().values()} == {"cpu"}
    same(fitted, fit(STORIES["dmvae"](), x))


def infected(x):
    x = x.clone()
    x[17, 1] = math.nan
    x[20, 0] = math.inf
    return x


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:, :1], "expected x with x_dim=2 columns; got 1"),
        (lambda x: x[:, 0], r"expected x of shape \(N, D\); got shape \(30,\)"),
        (lambda x: x[: K - 1], "expected at least as many rows as components, 3; got 2"),
        (infected, "expected finite values in x; got nan in row 17 .2 of 30 rows"),
        (lambda x: x[:0], r"expected x of shape \(N, D\); got shape \(0, 2\)"),
    ],
)
def test_data_that_cannot_be_fitted_are_an_error(x, spoil, message):
    with pytest.raises(DataError, match=message):
        fit(STORIES["dmvae"](), spoil(x))


def test_gray_values_are_an_error_under_a_bernoulli_likelihood(x):
    binary = (x > 5).float()
    story = DMVAE(D, L, K, hidden=(4,), likelihood="bernoulli")
    assert len(fit(story, binary).history) == 2
    binary[12, 1] = 0.25
    message = r"site 'x' .*got 0.25 in row 12; .*likelihood='continuous-bernoulli'"
    with pytest.raises(DataError, match=message):
        fit(story, binary)
    assert len(fit(DMVAE(D, L, K, hidden=(4,), likelihood="continuous-bernoulli"), binary).history)


def test_restarts_leave_enough_rows_for_the_components():
    """One of four rows is held out: three are fewer than the four components."""
    story = GMM(D, 4)
    with pytest.raises(DataError, match="at least as many rows as components, 4; got 3"):
        fit(story, torch.randn(4, D), restarts=2)


# Arguments


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"loss": "elbow"}, r"expected loss in \('marginal', .*\) .*; got 'elbow'"),
        ({"initialize": "kmeans"}, r"expected initialize in \('random', .*; got 'kmeans'"),
        ({"restarts": 0}, "expected restarts of at least 1; got 0"),
        ({"epochs": 2.5}, "expected epochs to be an integer; got 2.5"),
        ({"epochs": -1}, "expected epochs of at least 0; got -1"),
        ({"batch_size": 0}, "expected batch_size of at least 1; got 0"),
        ({"seed": -1}, "expected seed of at least 0; got -1"),
        ({"seed": 1.5}, "expected seed to be an integer; got 1.5"),
        ({"learning_rate": -0.1}, "expected learning_rate of at least 0, or a function; got -0.1"),
        ({"learning_rate": "fast"}, "expected learning_rate of at least 0, .*; got 'fast'"),
        ({"temperature": 0.0}, "expected temperature above 0, or a function; got 0.0"),
        ({"validation": 0.0, "restarts": 2}, "expected validation above 0, .*; got 0"),
        ({"validation": 1.0}, "expected validation of at least 0 and below 1; got 1.0"),
        ({"validation": "some"}, "expected validation of at least 0 and below 1; got 'some'"),
        ({"patience": 0}, "expected patience of at least 1; got 0"),
        ({"prior": "strong"}, r"expected prior in \('auto', .*\) or a Prior; got 'strong'"),
    ],
)
def test_an_argument_that_is_none_of_its_choices_is_an_error(x, choices, message):
    with pytest.raises(ValueError, match=message):
        fit(STORIES["dmvae"](), x, **choices)


def test_no_epochs_leave_the_start(x):
    story = STORIES["dmvae"]()
    fitted = fit(story, x, epochs=0, initialize="keep")
    assert fitted.history == []
    assert_close(fitted.parameters(), dict(story.named_parameters()), **EXACT)


def test_a_model_without_parameters_is_an_error(x):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(D), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="model or guide with parameters to learn; got none"):
        pyro_moe.fit(model, nothing, x, prior="none", progress=False)


def test_settings_are_what_was_asked_with_defaults_filled_in():
    story = STORIES["dmvae"]()
    fitted = pyro_moe.fit(
        story.model,
        story.guide,
        torch.randn(1000, D),
        learning_rate=interrupt,
        prior="weak",
        progress=False,
    )
    assert fitted.settings == {
        "epochs": 714,  # 4,000 steps, at 225 of 900 rows, with 238 and 48 epochs before
        "batch_size": 225,
        "learning_rate": interrupt,
        "loss": "marginal",
        "temperature": None,
        "initialize": "autoencoder",
        "initial_epochs": 238,
        "restarts": 1,
        "validation": 0.1,
        "patience": 20,
        "tolerance": 1e-3,
        "prior": {"rows": 1e-3, "null_rows": 0.0, "ridge": 1e-4, "networks": 0.0},
        "missing_targets": False,
        "seed": 0,
        "compile": "auto",
        "bfloat16": False,
        "optimizer": "Adam",
        "weight_decay": 0.0,
    }


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"loss": Trace_ELBO()}, {"loss": "Trace_ELBO"}),
        ({"initialize": np.full((N, K), 1 / K)}, {"initialize": "responsibilities"}),
        ({"batch_size": 500}, {"batch_size": N}),
        ({"batch_size": 500, "restarts": 2}, {"batch_size": 22, "restarts": 2, "validation": 0.25}),
        ({"epochs": 7, "initial_epochs": 3}, {"epochs": 7, "initial_epochs": 3}),
        ({"epochs": 7}, {"initial_epochs": 7}),
        ({"epochs": 7}, {"validation": 0.0, "patience": None}),
        ({"epochs": 7, "patience": 3}, {"patience": 3}),
        ({"seed": 5, "temperature": 0.3}, {"seed": 5, "temperature": 0.3}),
        (
            {"prior": Prior(rows=2.0)},
            {"prior": {"rows": 2.0, "null_rows": 0.0, "ridge": 1e-4, "networks": 0.0}},
        ),
    ],
)
def test_settings_can_be_written_down(x, choices, expected):
    fitted = fit(STORIES["dmvae"](), x, **choices | {"learning_rate": interrupt})
    assert {key: fitted.settings[key] for key in expected} == expected


def test_geometric_schedules_have_equal_ratios():
    schedule = geometric(2.0, 0.02)
    values = [schedule(done / 4) for done in range(5)]
    assert values[0] == 2.0
    assert values[-1] == pytest.approx(0.02)
    ratios = [after / before for before, after in itertools.pairwise(values)]
    assert ratios == pytest.approx([0.01**0.25] * 4)


# Starts


@each_story
def test_a_kept_start_without_steps_stays_exactly(x, name, scatter):
    story = scatter(STORIES[name]())
    fitted = fit(story, x, initialize="keep", learning_rate=stay)
    assert_close(fitted.story.state_dict(), story.state_dict(), **EXACT)
    assert len(fitted.history) == 2


def test_a_random_start_is_drawn_anew_and_takes_the_units_of_the_data(x):
    story = STORIES["dmvae"]()
    fitted = fit(story, x, learning_rate=stay)
    assert not torch.equal(fitted.story.prior.loc, story.prior.loc)
    assert_close(fitted.story.units.loc, x.mean(0))
    assert_close(fitted.story.units.scale, x.std(0, correction=0))


@pytest.mark.parametrize(
    ("responsibilities", "message"),
    [
        (torch.full((N, K + 1), 0.25), r"of shape \(30, 3\); got \(30, 4\)"),
        (torch.full((N - 1, K), 1 / 3), r"of shape \(30, 3\); got \(29, 3\)"),
        (torch.arange(N - 1) % K, r"of shape \(30, 3\); got \(29,\)"),
        (torch.full((N, K), 0.5), "probabilities in each row; .* row sums from 1.5 to 1.5"),
        (torch.tensor([[1.5, -0.5, 0.0]]).expand(N, K), "probabilities .*got entries from -0.5"),
        (torch.full((N, K), math.nan).index_fill(1, torch.tensor([0]), 1.0), "row sums from nan"),
    ],
)
def test_responsibilities_that_are_none_are_an_error(x, responsibilities, message):
    with pytest.raises(DataError, match=f"expected responsibilities .*{message}"):
        fit(STORIES["dmvae"](), x, initialize=responsibilities)


@pytest.mark.parametrize("kind", ["name", "responsibilities"])
def test_a_story_without_clusters_cannot_start_from_them(x, kind):
    start = "autoencoder" if kind == "name" else torch.full((N, K), 1 / K)
    with pytest.raises(SiteError, match="expected a site 'c' in the model for initialize="):
        fit(STORIES["vae"](), x, initialize=start)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.double])
def test_responsibilities_may_be_of_any_kind(x, labels, convert):
    r = torch.eye(K)[labels]
    same(*(fit(STORIES["dmvae"](), x, initialize=start) for start in (r, convert(r))))


def test_responsibilities_belong_to_the_rows_that_are_kept(x, labels):
    """A GMM's first M-step sees responsibilities of the same rows as x, held-out ones left out."""
    r, trained = torch.eye(K)[labels], []
    fitted = fit(
        STORIES["gmm"](),
        x,
        initialize=r,
        validation=0.1,
        epochs=1,
        learning_rate=stay,
        callback=lambda each: trained.append(each.run.data[0]),
    )
    kept = trained[0]
    assert len(kept) == 27
    nearest = torch.stack([labels[(x == row).all(-1)][0] for row in kept])
    expected = torch.stack([kept[nearest == k].mean(0) for k in range(K)])
    found = fitted.story.mixture.normals.mean.detach()
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("permutation", [[0, 1, 2], [2, 0, 1]])
def test_a_dmvae_is_taught_responsibilities_before_it_trains_freely(x, labels, permutation):
    clusters = torch.tensor(permutation)[labels]
    gates = {}

    def callback(fitted):
        gates[fitted.history[-1]["phase"]] = evaluation.gate(fitted, x)

    fitted = fit(
        DMVAE(D, L, K, hidden=(16,)),
        x,
        initialize=torch.eye(K)[clusters],
        initial_epochs=40,
        learning_rate=6e-2,
        callback=callback,
    )
    phases = [record["phase"] for record in fitted.history]
    assert phases == ["autoencoder"] * 40 + ["assigned"] * 8 + ["training"] * 2
    assert (gates["autoencoder"].max(-1).values < 0.9).any()  # not taught yet
    assert (gates["assigned"].gather(1, clusters[:, None]) > 0.9).all()
    assert (gates["training"].argmax(-1) == clusters).all()


def test_an_autoencoder_starts_from_a_clustering_of_its_codes(x, labels):
    story = VaDE(D, D, K, hidden=(16,))
    choices = {"initialize": "autoencoder", "initial_epochs": 15, "learning_rate": 2e-2}
    fitted = fit(story, x, epochs=0, **choices)
    assert {record["phase"] for record in fitted.history} == {"autoencoder", "assigned"}
    scores = evaluation.clustering_scores(evaluation.gate(fitted, x), labels)
    assert scores["accuracy"] == 1.0


# Restarts


def captured(x, **choices):
    """A fit of a mixture with restarts, and what each start had learned after each epoch."""
    runs = {}

    def callback(fitted):
        record = fitted.history[-1]
        if record["phase"] == "training":
            runs.setdefault(id(fitted.run), []).append((fitted.run, record, fitted.parameters()))

    fitted = fit(GMM(D, 4).double(), x, callback=callback, **choices)
    return fitted, list(runs.values())


def test_of_restarts_the_best_state_on_held_out_rows_goes_on(monkeypatch):
    x = torch.randn(60, D, dtype=torch.float64) * 3
    x[:40] += 20 * torch.eye(2, dtype=torch.float64)[torch.arange(40) % 2]
    monkeypatch.setattr(entry, "finish", lambda fitted, *_: fitted)  # without the last phase
    fitted, starts = captured(x, restarts=4, epochs=5, validation=0.25)
    assert [len(start) for start in starts] == [5] * 4
    (held,) = fitted.run.held_out
    assert len(held) == 15
    epochs = [epoch for start in starts for epoch in start]
    scores = [record["held_out_elbo"] for _, record, _ in epochs]
    assert len({max(scores[i : i + 5]) for i in range(0, 20, 5)}) == 4  # starts differ
    assert fitted.held_out_elbo == max(scores)
    run, _, parameters = epochs[scores.index(max(scores))]
    assert fitted.run is run
    assert_close(fitted.parameters(), parameters, **EXACT)
    by_hand = fitted.story.mixture.log_joint(held).logsumexp(-1).mean().item()
    assert fitted.held_out_elbo == pytest.approx(by_hand, rel=1e-9)


def test_the_best_of_restarts_ends_with_all_rows(x):
    fitted = fit(GMM(D, 4), x, restarts=2, epochs=20)
    phases = [record["phase"] for record in fitted.history]
    assert phases == ["training"] * 20 + ["all rows"] * 2
    assert_close(fitted.data[0], x, **EXACT)
    assert_close(fitted.run.data[0], x, **EXACT)


def test_starts_do_not_depend_on_their_number(x):
    """The first start of three is the first of two."""
    two, three = (captured(x.double(), restarts=restarts)[1] for restarts in (2, 3))
    assert (len(two), len(three)) == (2, 3)
    for first, second in zip(two, three, strict=False):
        for (_, _, before), (_, _, after) in zip(first, second, strict=True):
            assert_close(before, after, **EXACT)


def test_one_start_holds_nothing_out(x):
    fitted = fit(STORIES["gmm"](), x)
    assert fitted.held_out_elbo is None
    assert_close(fitted.data[0], x, **EXACT)


class Fragile(nn.Module):
    """A mean whose square root is no number for every other seed."""

    def __init__(self):
        super().__init__()
        self.square = nn.Parameter(torch.ones(D))

    def reset_parameters(self):
        nn.init.constant_(self.square, 1.0 if torch.rand(()) < 0.5 else -1.0)

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.square.sqrt(), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass


@pytest.mark.filterwarnings("ignore::pyro_moe.NonFiniteWarning")
def test_a_start_that_is_not_finite_is_not_the_best(x):
    first = []
    for seed in range(4):
        fitted = fit(Fragile(), x, restarts=4, seed=seed, epochs=1)
        assert math.isfinite(fitted.held_out_elbo)
        assert fitted.stopped is None
        with_one = fit(Fragile(), x, seed=seed)
        first.append(with_one.stopped is None)
    assert 0 < sum(first) < 4  # some, not all, first starts are finite


# Interruptions


def test_an_interrupted_fit_keeps_what_was_learned(x):
    seen = []

    def callback(fitted):
        seen.append(fitted.parameters())
        if len(seen) == 3:
            raise KeyboardInterrupt

    fitted = fit(STORIES["dmvae"](), x, epochs=9, callback=callback)
    assert fitted.interrupted
    assert [record["epoch"] for record in fitted.history] == [1, 2, 3]
    assert_close(fitted.parameters(), seen[-1], **EXACT)
    assert not torch.equal(seen[-1]["prior.loc"], seen[-2]["prior.loc"])


def test_a_callback_that_returns_true_stops_the_training(x):
    def stops(fitted):
        return fitted.history[-1]["epoch"] == 3

    def raises(fitted):
        if stops(fitted):
            raise KeyboardInterrupt

    stopped, raised = (fit(STORIES["dmvae"](), x, epochs=5, callback=c) for c in (stops, raises))
    assert stopped.stopped == raised.stopped == "interrupted after 3 of 5 epochs"
    assert_close(stopped.parameters(), raised.parameters(), **EXACT)
    whole = fit(STORIES["dmvae"](), x, epochs=5)
    assert_close(stopped.resume(progress=False).parameters(), whole.parameters(), **EXACT)


@pytest.mark.parametrize("value", [None, 0, 1, "yes", [True]])
def test_other_values_of_a_callback_do_not_stop_it(x, value):
    fitted = fit(STORIES["gmm"](), x, epochs=2, callback=lambda fitted: value)
    assert fitted.stopped is None


def test_an_interruption_of_an_initial_phase_is_kept(x):
    fitted = fit(STORIES["dmvae"](), x, initialize="autoencoder", callback=interrupt)
    assert fitted.interrupted
    assert [record["phase"] for record in fitted.history] == ["autoencoder"]


def test_an_uninterrupted_fit_says_so(x):
    assert fit(STORIES["dmvae"](), x).stopped is None


@pytest.mark.parametrize("stop_in", [1, 2, 3])
def test_interrupted_restarts_return_the_best_so_far(x, stop_in):
    """The one that was interrupted included, which is still bad after its first epoch."""
    seen, x = [], x.double()

    def callback(fitted):
        seen.append(fitted)
        if len({id(each.run) for each in seen}) == stop_in:
            raise KeyboardInterrupt

    story = STORIES["gmm"]().double()
    fitted = fit(story, x, restarts=5, epochs=4, batch_size=3, callback=callback)
    runs = list({id(each.run): each.run for each in seen}.values())
    assert len(runs) == stop_in
    (held,) = fitted.run.held_out
    scores = [run.model.__self__.mixture.log_joint(held).logsumexp(-1).mean() for run in runs]
    assert fitted.held_out_elbo == pytest.approx(max(scores).item(), rel=1e-9)
    assert fitted.run is runs[scores.index(max(scores))]
    assert fitted.interrupted
    assert fitted.stopped.endswith("of another start") == (fitted.run is not runs[-1])


@pytest.mark.parametrize("program", ["story", "normalized", "functions"])
@pytest.mark.parametrize("epochs_done", [0, 2])
def test_an_interruption_amid_an_epoch_resumes_with_the_same_numbers(x, epochs_done, program):
    """Ctrl-C comes whenever it comes, not only between epochs."""
    once = [True]

    def learning_rate(done):
        if done > (epochs_done + 0.5) / 4 and once:
            once.clear()
            raise KeyboardInterrupt
        return 1e-2

    gate = nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, K)) if program == "normalized" else None
    story = DMVAE(D, L, K, hidden=(4,), gate=gate)
    pair = (mixture, nothing) if program == "functions" else (story.model, story.guide)
    choices = {
        "epochs": 4,
        "batch_size": 10,
        "learning_rate": learning_rate,
        "prior": "none",
        "progress": False,
    }
    choices["initialize"] = "random"
    stopped = pyro_moe.fit(*pair, x, **choices)
    assert stopped.interrupted
    assert len(stopped.history) == epochs_done
    resumed, through = stopped.resume(progress=False), pyro_moe.fit(*pair, x, **choices)
    same(resumed, through)
    if program != "functions":
        assert_close(resumed.story.state_dict(), through.story.state_dict(), **EXACT)


def test_data_are_checked_in_evaluation_mode():
    """The last batch may have one row, which batch normalization could not learn from."""
    gate = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    story = DMVAE(1, 1, 2, hidden=(4,), gate=gate)
    fitted = pyro_moe.fit(
        story.model,
        story.guide,
        torch.randn(4097, 1),
        epochs=1,
        batch_size=4097,
        prior="none",
        progress=False,
    )
    assert fitted.stopped is None


def test_other_errors_of_a_callback_are_the_callers(x):
    def callback(fitted):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fit(STORIES["dmvae"](), x, callback=callback)


# Going on


@pytest.mark.parametrize(("name", "loss"), [("dmvae", "marginal"), ("gmm", "em")])
def test_a_fit_resumes_to_more_epochs(x, name, loss):
    story = STORIES[name]()
    short = fit(story, x, epochs=2, loss=loss, learning_rate=1e-3)
    before = short.parameters()
    longer = short.resume(epochs=5, progress=False)
    assert [record["epoch"] for record in longer.history] == [1, 2, 3, 4, 5]
    assert longer.history[:2] == short.history
    assert longer.settings["epochs"] == 5
    assert short.settings["epochs"] == 2
    assert_close(short.parameters(), before, **EXACT)
    assert any(not torch.equal(p, before[key]) for key, p in longer.parameters().items())
    same(longer, short.resume(epochs=5, progress=False))


def test_with_a_constant_rate_going_on_is_as_if_asked_for_at_first(x):
    def constant(done):
        return 1e-2

    short = fit(STORIES["dmvae"](), x, epochs=2, learning_rate=constant)
    longer = fit(STORIES["dmvae"](), x, epochs=4, learning_rate=constant)
    same(short.resume(epochs=4, progress=False), longer)


def test_a_score_on_held_out_rows_does_not_outlive_its_parameters(x):
    def callback(fitted):
        if len(fitted.history) == 2:
            raise KeyboardInterrupt

    stopped = fit(STORIES["gmm"](), x, validation=0.2, epochs=30, callback=callback)
    resumed = stopped.resume(progress=False)
    records = resumed.history[:-3]
    scores = [record["held_out_elbo"] for record in records]
    assert stopped.held_out_elbo == max(scores[:2])
    assert resumed.held_out_elbo == max(scores) > stopped.held_out_elbo


# Objectives


ELBOS = {
    "marginal": "marginal",
    "categorical-kl": "categorical-kl",
    "relaxed": "relaxed",
    "Trace_ELBO": Trace_ELBO(),
    "TraceEnum_ELBO": TraceEnum_ELBO(max_plate_nesting=1),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "TraceGraph_ELBO": TraceGraph_ELBO(),
    "RenyiELBO": RenyiELBO(num_particles=2),
}


@pytest.mark.parametrize("loss", ELBOS)
def test_one_story_trains_under_every_objective(x, loss):
    story = DMVAE(D, 2, K, hidden=(4,))
    fitted = fit(story, x, loss=ELBOS[loss])
    assert all(map(math.isfinite, elbos(fitted)))
    start = fit(story, x, epochs=0).parameters()
    moved = [key for key, p in fitted.parameters().items() if not torch.equal(p, start[key])]
    assert set(moved) == set(start)  # every parameter has a gradient


@pytest.mark.parametrize("name", ["dmvae", "vade", "gmm"])
def test_enumeration_by_pyro_gives_the_numbers_of_the_marginal_objective(x, name):
    story, x = STORIES[name]().double(), x.double()
    mine, pyros = (fit(story, x, loss=ELBOS[loss]) for loss in ("marginal", "TraceEnum_ELBO"))
    assert elbos(pyros) == pytest.approx(elbos(mine), rel=1e-6)
    assert_close(pyros.parameters(), mine.parameters(), rtol=1e-6, atol=1e-6)


def test_a_relaxed_objective_by_name_is_pyros_own(x):
    story = STORIES["dmvae"]()
    ours, pyros = fit(story, x, loss="relaxed"), fit(story, x, loss=Trace_ELBO())
    assert_close(ours.parameters(), pyros.parameters())  # their sums have another order
    assert_close(torch.tensor(elbos(ours)), torch.tensor(elbos(pyros)))


def test_em_is_a_choice_of_its_own(x):
    fitted = fit(STORIES["gmm"](), x, loss="em", epochs=3)
    assert isinstance(fitted.run, EM)
    assert isinstance(fit(STORIES["gmm"](), x).run, SVI)


# Stories from scratch


def nothing(*columns):
    pass


def mixture(x):
    """Two normals, of plain functions with parameters in Pyro's store."""
    loc = pyro.param("loc", torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.OneHotCategorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(c @ loc, scale).to_event(1), obs=x)


def test_a_mixture_from_scratch_finds_two_clusters():
    """At the optimum of so distant clusters: their means, and the deviation within them."""
    side = (torch.arange(60) % 2) * 2 - 1
    x = side[:, None] * torch.tensor([6.0, 2.0]) + torch.randn(60, D)
    fitted = pyro_moe.fit(
        mixture,
        nothing,
        x,
        epochs=150,
        batch_size=60,
        learning_rate=0.1,
        prior="none",
        progress=False,
    )
    means = torch.stack([x[side == s].mean(0) for s in (-1, 1)])
    parameters = fitted.parameters()
    assert_close(parameters["loc"], means, rtol=0, atol=0.01)
    within = (x - means[(side + 1) // 2]).square().mean().sqrt()
    assert_close(parameters["scale"].exp(), within, rtol=0.01, atol=0)
    assert (evaluation.gate(fitted, x).argmax(-1) == (side + 1) // 2).all()


@pytest.mark.parametrize("batch_size", [40, 10])
def test_a_latent_outside_the_plate_finds_its_posterior(batch_size):
    """w ~ N(0, 1), x ~ N(w, 1): w | x ~ N(Σx / (N + 1), 1 / (N + 1)), for batches of any size."""
    num = 40
    x = 2.0 + torch.randn(num, 1, dtype=torch.float64)

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).expand([1]).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(1.0, dtype=torch.float64))
        log_scale = pyro.param("log_scale", torch.tensor(-1.0, dtype=torch.float64))
        pyro.sample("w", dist.Normal(loc, log_scale.exp()))

    epochs = 240 * batch_size // num
    fitted = pyro_moe.fit(
        model,
        guide,
        x,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=0.05,
        prior="none",
        progress=False,
    )
    loc, scale = fitted.parameters()["loc"], fitted.parameters()["log_scale"].exp()
    deviation = (num + 1) ** -0.5
    assert abs(loc - x.sum() / (num + 1)) < 0.25 * deviation
    assert scale.item() == pytest.approx(deviation, rel=0.15)


def test_networks_that_a_plain_function_names_are_copied_and_learned(x):
    encoder = NormalConditional(nn.Linear(D, 2))
    decoder = nn.Linear(1, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    before = [p.clone() for p in decoder.parameters()]
    fitted = pyro_moe.fit(model, guide, x, epochs=2, prior="none", progress=False)
    assert fitted.story is None
    assert len(fitted.parameters()) == 4
    assert_close(list(decoder.parameters()), before, **EXACT)
    codes = evaluation.encode(fitted, x)
    assert not torch.equal(codes, encoder(x).mean)


def test_convolutional_networks_take_the_places_of_encoder_and_decoder():
    x = torch.rand(N, 64)
    story = DMVAE(
        64,
        2,
        K,
        hidden=(4,),
        likelihood="continuous-bernoulli",
        encoder=ConvolutionalEncoder((1, 8, 8), 4, channels=2),
        decoder=ConvolutionalDecoder(2, (1, 8, 8), channels=2),
    )
    fitted, start = fit(story, x), fit(story, x, epochs=0).parameters()
    convolutions = [key for key, p in start.items() if p.dim() == 4]
    assert len(convolutions) == 4
    learned = fitted.parameters()
    assert all(not torch.equal(learned[key], start[key]) for key in convolutions)
    assert evaluation.encode(fitted, x).shape == (N, 2)
    expected = fitted.story.decoder(evaluation.encode(fitted, x)).mean.detach()
    assert_close(evaluation.reconstruct(fitted, x), expected)


# What is shown


def test_each_epoch_is_recorded_and_reported(x):
    lengths = []
    fitted = fit(STORIES["dmvae"](), x, callback=lambda each: lengths.append(len(each.history)))
    assert lengths == [1, 2]
    expected = {"phase", "epoch", "elbo", "temperature", "learning_rate", "seconds"}
    assert all(set(record) == expected for record in fitted.history)
    assert all(record["seconds"] > 0 for record in fitted.history)


def test_a_fit_warns_where_it_was_called_from(x):
    with pytest.warns(NonFiniteWarning, match="expected finite losses") as caught:
        fit(STORIES["gmm"](), x, learning_rate=lambda done: 1e200)
    assert caught[0].filename == __file__
    with pytest.warns(DataWarning, match="far from all others") as caught:
        fit(GMM(2, 1), x.index_fill(0, torch.tensor([3]), 1e6))
    assert caught[0].filename == __file__
    with pytest.warns(DataWarning, match="expected rows like those of training") as caught:
        evaluation.gate(fit(STORIES["gmm"](), x), 1e9 * x)
    assert caught[0].filename == __file__


def test_parameters_are_copies(x):
    fitted = fit(STORIES["dmvae"](), x)
    fitted.parameters()["prior.loc"].fill_(math.nan)
    assert fitted.story.prior.loc.isfinite().all()


@pytest.mark.filterwarnings("ignore:expected at least:pyro_moe.EmptyComponentWarning")
def test_what_is_computed_from_a_fit_has_dropout_at_rest(x):
    gate = nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.5), nn.Linear(8, K))
    story = DeepMoE(D, 1, K, gate=gate)
    for choices in ({"initialize": "random"}, {"initialize": "keep", "epochs": 0}):
        fitted = fit(story, (x, x[:, :1]), **choices)
        g = evaluation.gate(fitted, x)
        assert_close(evaluation.gate(fitted, x), g, **EXACT)
        assert_close(evaluation.gate(fitted, x[:5]), g[:5])
    assert gate.training  # the caller's own stays as it was


# Temperatures of a relaxed c


def relaxed_mixture(seen):
    """A mixture by plain functions, whose guide notes the temperature that its site has."""

    def model(x):
        loc = pyro.param("loc", torch.tensor([[0.0, 0.0], [5.0, 5.0]]))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.RelaxedOneHotCategorical(torch.tensor(0.2), torch.ones(2)))
            pyro.sample("x", dist.Normal(c @ loc, 1.0).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("data", len(x)), poutine.trace() as trace:
            site = dist.RelaxedOneHotCategorical(torch.tensor(0.6), logits=logits)
            pyro.sample("c", site)
        fn = trace.trace.nodes["c"]["fn"]
        if isinstance(fn, dist.RelaxedOneHotCategorical):
            seen.append(round(fn.temperature.item(), 6))

    return model, guide


@pytest.mark.parametrize("loss", ["relaxed", "categorical-kl"])
def test_a_c_that_plain_functions_relax_keeps_its_temperature_unless_one_is_given(x, loss):
    for temperature, expected in ((None, 0.6), (0.3, 0.3)):
        seen = []
        pyro_moe.fit(
            *relaxed_mixture(seen), x, loss=loss, temperature=temperature, epochs=2, progress=False
        )
        assert set(seen) == {expected}


@pytest.mark.parametrize("loss", ["relaxed", Trace_ELBO()])
def test_the_temperatures_of_a_story_are_annealed_and_end_where_training_ended(x, loss):
    fitted = fit(STORIES["dmvae"](), x, loss=loss, epochs=5)
    last = fitted.history[-1]["temperature"]
    assert last < fitted.history[0]["temperature"] <= 1.0
    assert fitted.story.temperature.item() == pytest.approx(last)
    assert fitted.story.prior_temperature.item() == pytest.approx(PRIOR_SHARE * last)


def test_other_objectives_leave_the_temperatures_alone(x):
    fitted = fit(STORIES["dmvae"](), x)
    assert fitted.story.temperature == STORIES["dmvae"]().temperature


def test_a_divergence_of_categoricals_needs_c_in_the_guide(x):
    story = STORIES["gmm"]()
    message = r"^expected a site 'c' in the guide for loss='categorical-kl'; got none$"
    with pytest.raises(SiteError, match=message):
        pyro_moe.fit(
            story.model, lambda x: None, x, loss="categorical-kl", prior="none", progress=False
        )
