"""Threads that fit and evaluate at the same time: each result is that of one thread alone."""

from concurrent.futures import ThreadPoolExecutor

import pyro
import pytest
import torch

import pyro_moe
from pyro_moe import criticism, evaluation, models
from pyro_moe.inference.context import reproducible, running


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 1, generator=generator)
    return x, x + 0.1 * torch.randn(100, 1, generator=generator)


@pytest.fixture(scope="module")
def fitted(rows):
    story = models.VaDEMoE(1, 1, 2, z_dim=1, hidden=(4,))
    return pyro_moe.fit(story.model, story.guide, rows, epochs=2, prior="weak", progress=False)


def together(function, number, threads=8):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, range(number)))


ASKED = {
    "predict": lambda fit, x, y: evaluation.predict(fit, x, num_samples=8).log_prob(y),
    "gate": lambda fit, x, y: evaluation.gate(fit, x, num_samples=8),
    "elbo": lambda fit, x, y: evaluation.elbo(fit, (x, y), num_samples=2),
    "bound": lambda fit, x, y: evaluation.importance_weighted_bound(fit, (x, y), num_samples=2),
    "encode": lambda fit, x, y: evaluation.encode(fit, x),
    "reconstruct": lambda fit, x, y: evaluation.reconstruct(fit, x),
    "sample": lambda fit, x, y: evaluation.sample(fit, 20),
    "novelty": lambda fit, x, y: evaluation.novelty(fit, x, num_samples=2).log_density,
    "impute": lambda fit, x, y: (
        evaluation.impute(fit, x.where(x > 0, torch.nan), num_samples=2, num_rounds=1).mean
    ),
    "draws": lambda fit, x, y: evaluation.predict(fit, x, num_samples=8).sample(3),
    "health": lambda fit, x, y: torch.tensor(criticism.health(fit).disagreement),
}


@pytest.mark.parametrize("name", ASKED)
def test_eight_threads_give_one_answer(fitted, rows, name):
    answers = together(lambda _: ASKED[name](fitted, *rows), 16)
    alone = ASKED[name](fitted, *rows)
    assert all(torch.equal(answer, alone) for answer in answers)


def test_forty_predictions_of_eight_threads_are_one_number(rows):
    story = models.ME(1, 1, 2)
    fit = pyro_moe.fit(
        story.model, story.guide, rows, loss="em", epochs=3, prior="weak", progress=False
    )
    assert len({*together(lambda _: evaluation.predict(fit, rows[0]).mean.sum().item(), 40)}) == 1


def test_fits_beside_predictions_are_those_of_one_thread(fitted, rows):
    x, y = rows
    stories = {"marginal": models.ME, "relaxed": models.GMMMoE, "em": models.GMMMoE}

    # A new story draws from torch's generator, which a fit in another thread may be using.
    made = {loss: [make(1, 1, 2) for _ in range(3)] for loss, make in stories.items()}

    def train(loss):
        story = made[loss].pop()
        fit = pyro_moe.fit(
            story.model,
            story.guide,
            rows,
            loss=loss,
            epochs=4,
            prior="weak",
            seed=3,
            progress=False,
        )
        return evaluation.predict(fit, x).log_prob(y)

    losses = [*stories] * 2
    alone = {loss: train(loss) for loss in stories}
    expected = ASKED["predict"](fitted, x, y)
    jobs = [lambda loss=loss: train(loss) for loss in losses]
    jobs += [lambda: ASKED["predict"](fitted, x, y)] * 6
    got = together(lambda i: jobs[i](), len(jobs))
    for loss, answer in zip(losses, got, strict=False):
        assert torch.equal(answer, alone[loss])
    for answer in got[len(losses) :]:
        assert torch.equal(answer, expected)


def test_an_error_in_one_thread_lets_the_others_run():
    def run(number):
        with reproducible(number), running({"params": {}, "constraints": {}}):
            pyro.param("p", torch.tensor(float(number)))
            if number % 2:
                raise ValueError("odd")
            return pyro.param("p").item()

    def attempt(number):
        try:
            return run(number)
        except ValueError as error:
            return str(error)

    assert together(attempt, 6) == [0.0, "odd", 2.0, "odd", 4.0, "odd"]
    assert "p" not in pyro.get_param_store()
