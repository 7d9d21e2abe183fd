"""Fits that are pickled, copied, and sent to other processes, go on as the originals do."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import joblib
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.testing import assert_close

import pyro_moe
from pyro_moe import criticism, evaluation, models
from pyro_moe.fitting import geometric
from pyro_moe.inference.programs import modules


def table(number=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, 2, generator=generator)
    return x, x[:, :1] + 0.1 * torch.randn(number, 1, generator=generator)


class Edited(models.GMM):
    """A shipped story with another model."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.mixture.logits))
            p = self.mixture.normals
            pyro.sample("x", dist.StudentT(5.0, c @ p.mean, c @ p.stddev).to_event(1), obs=x)


NET = nn.Linear(2, 1)


def line(x):
    return NET(x)


def plain_model(x, y=None):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(line(x), scale).to_event(1), obs=y)


def plain_guide(x, y=None):
    """There is nothing to guess."""


def weighted(x, y=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x @ weight).unsqueeze(-1), 1.0).to_event(1), obs=y)


def slower(done):
    return 1e-2 * (1.0 - done)


DEEP = {"z_dim": 2, "hidden": (4,)}
SHIPPED = {
    "gmm": lambda: models.GMM(2, 2),
    "vae": lambda: models.VAE(2, **DEEP),
    "vade": lambda: models.VaDE(2, num_components=2, **DEEP),
    "dmvae": lambda: models.DMVAE(2, num_components=2, **DEEP),
    "me": lambda: models.ME(2, 1, 2),
    "deepmoe": lambda: models.DeepMoE(2, 1, 2, hidden=(4,)),
    "hierarchicalme": lambda: models.HierarchicalME(2, 1, (2, 2)),
    "gmmmoe": lambda: models.GMMMoE(2, 1, 2),
    "vademoe": lambda: models.VaDEMoE(2, 1, 2, **DEEP),
    "dvmoe": lambda: models.DVMoE(2, 1, 2, **DEEP),
    "bayesian": lambda: models.BayesianExperts(models.ME(2, 1, 2)),
    "edited": lambda: Edited(2, 2),
}
OF_X = ("gmm", "vae", "vade", "dmvae", "edited")


def trained(model, guide, data, **options):
    options = {"epochs": 3, "progress": False, "prior": "weak", **options}
    return pyro_moe.fit(model, guide, data, **options)


def shipped(name, **options):
    story = SHIPPED[name]()
    return trained(story.model, story.guide, table()[:1] if name in OF_X else table(), **options)


def by_em(name):
    return shipped(name, loss="em", tolerance=0.0)


SCHEDULES = {"learning_rate": slower, "temperature": geometric(1.0, 0.1)}
FITS = {
    **{name: partial(shipped, name) for name in SHIPPED},
    **{f"{name} by em": partial(by_em, name) for name in ("gmm", "me", "hierarchicalme", "gmmmoe")},
    "plain functions": lambda: trained(plain_model, plain_guide, table()),
    "schedules": lambda: shipped("dmvae", **SCHEDULES),
    "last phase": lambda: shipped("vae", validation=0.2, epochs=20),
    "relaxed": lambda: shipped("dmvae", loss="relaxed"),
    "object": lambda: shipped("vae", loss=Trace_ELBO()),
    "enumerated": lambda: shipped("gmm", loss=TraceEnum_ELBO(max_plate_nesting=1)),
    "automatic guide": lambda: trained(weighted, AutoNormal(weighted), table()),
}


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


WAYS = {"pickle": pickled, "deepcopy": copy.deepcopy}


@pytest.fixture(scope="module")
def fits():
    made = {}

    def of(name):
        if name not in made:
            made[name] = FITS[name]()
        return made[name]

    return of


def answers(fit):
    """Numbers that depend on all parameters."""
    data = fit.data if len(fit.data) > 1 else fit.data[0]
    return evaluation.elbo(fit, data, num_samples=2)


def same(one, other):
    left, right = one.parameters(), other.parameters()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(answers(one), answers(other))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FITS)
def test_a_copy_answers_and_goes_on_as_the_original_does(fits, name, way):
    fit = fits(name)
    again = WAYS[way](fit)
    same(again, fit)
    assert again.history == fit.history
    own = {id(part) for part in modules(fit.programs.model, fit.programs.guide)}
    assert not own & {id(part) for part in modules(again.programs.model, again.programs.guide)}
    epochs = fit.run.epochs + 2
    options = {"epochs": epochs, "progress": False}
    same(again.resume(**options), fit.resume(**options))


@pytest.mark.parametrize("name", ["gmmmoe", "gmmmoe by em", "plain functions"])
def test_a_copy_leaves_the_original_as_it_was(fits, name):
    fit = fits(name)
    before = fit.parameters()
    for way in WAYS.values():
        for value in way(fit).programs.parameters().values():
            value.data.add_(1.0)
    after = fit.parameters()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_automatic_guide_keeps_its_model_while_it_is_pickled(fits):
    fit = fits("automatic guide")
    pickle.dumps(fit)
    assert fit.programs.guide.model is not None


def test_a_shallow_copy_has_the_same_programs(fits):
    fit = fits("gmm")
    assert copy.copy(fit).programs is fit.programs


def test_a_pickled_fit_of_a_run_without_its_optimizer_stays_so(fits):
    fit = replace(fits("gmm"), run=None)
    for way in WAYS.values():
        assert way(fit).run is None
        same(way(fit), fit)


def within():
    def model(x, y=None):
        plain_model(x, y)

    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: shipped("vae", learning_rate=lambda done: 1e-3), "<lambda>"),
        (lambda: trained(within(), plain_guide, table(), epochs=1), "within.<locals>.model"),
    ],
    ids=["schedule", "model"],
)
def test_a_function_without_a_place_in_a_module_is_named(make, named):
    with pytest.raises(pickle.PicklingError, match=f"at the top level of a module.*{named}"):
        pickle.dumps(make())


def test_a_class_without_a_place_in_a_module_is_named():
    class Local(models.GMM):
        pass

    story = Local(2, 2)
    with pytest.raises(pickle.PicklingError, match="Local"):
        pickle.dumps(trained(story.model, story.guide, table()[0]))


def in_a_pool(*jobs):
    # a fresh interpreter, not a fork of this one
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def by_joblib(*jobs):
    return joblib.Parallel(2)(joblib.delayed(job)() for job in jobs)


@pytest.mark.parametrize("pool", [in_a_pool, by_joblib])
def test_a_fit_goes_to_another_process_and_comes_back(fits, pool):
    fit, (x, _) = fits("me by em"), table()
    jobs = partial(fit.resume, epochs=5, progress=False), partial(evaluation.predict, fit, x)
    (longer, prediction), (expected, here) = pool(*jobs), [job() for job in jobs]
    # another process may add in another order, by its threads and by where its memory begins
    assert longer.history[:3] == fit.history[:3]
    assert len(longer.history) == len(expected.history)
    for name, value in longer.parameters().items():
        assert_close(value, expected.parameters()[name], rtol=1e-6, atol=1e-9)
    assert_close(prediction.mean, here.mean, rtol=1e-9, atol=1e-12)


RESULTS = {
    "prediction": lambda fit, x, y: evaluation.predict(fit, x),
    "imputation": lambda fit, x, y: evaluation.impute(
        fit, x.where(x > 0, torch.nan), num_samples=2, num_rounds=1
    ),
    "novelty": lambda fit, x, y: evaluation.novelty(fit, x, num_samples=2),
    "health": lambda fit, x, y: criticism.health(fit),
    "check": lambda fit, x, y: criticism.check(fit, (x, y), num_replicates=20),
    "rows": lambda fit, x, y: pyro_moe.Rows(x, y),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_can_be_pickled(fits, name):
    result = RESULTS[name](fits("gmmmoe"), *table())
    again = pickled(result)
    assert str(again) == str(result)
