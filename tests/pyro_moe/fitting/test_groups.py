"""Rows of a group are from one component also where a story is trained by gradients."""

import pytest
import torch

import pyro_moe
from pyro_moe import models
from pyro_moe.inference.em import EM
from pyro_moe.inference.handlers import Annotate, Annotations, annotated
from pyro_moe.inference.objectives import MarginalELBO
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.rows.groups import whole_groups
from pyro_moe.inference.svi import marginal_elbo
from pyro_moe.inference.traces import enumerated_traces, row_bounds

N = 120


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 40, (N,), generator=generator).sort().values
    component = groups % 2
    x = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    y = torch.where(component == 0, 2.0, -1.0) * x[:, 0]
    y = y + 0.7 * torch.randn(N, generator=generator, dtype=torch.float64)
    order = torch.randperm(N, generator=generator)
    return x[order], y[order], groups[order], component[order]


def story():
    return models.ME(1, 1, 2, gate_columns=[]).double()


WEIGHTS = 0.5 + torch.arange(N, dtype=torch.float64) % 3
LABELS = torch.nn.functional.one_hot(torch.arange(N) % 2, 2).double()


def annotations(groups, names):
    labels = torch.where((groups % 5 == 0).unsqueeze(-1), LABELS[groups], torch.nan)
    known = {"weights": WEIGHTS, "labels": labels}
    return Annotations(groups=groups, **{name: known[name] for name in names})


@pytest.mark.parametrize("prior", [Prior(0, 0, 0), Prior(3.0, 0.0, 0.1)], ids=["flat", "prior"])
@pytest.mark.parametrize("names", [(), ("weights",), ("labels",), ("weights", "labels")])
def test_the_loss_of_all_rows_is_minus_the_objective_of_em(rows, names, prior):
    x, y, groups, _ = rows
    one, about = story(), annotations(groups, names)
    run = EM(one.model, one.guide, (x, y), 0, 0, prior, annotations=about)
    elbo = MarginalELBO(prior=prior, num_rows=N, mean_weight=about.total(N) / N)
    programs = [annotated(each, about.names) for each in (one.model, one.guide)]
    loss = elbo.loss(*programs, x, y, *about.columns)
    assert loss == pytest.approx(-run.log_posterior().item(), rel=1e-12)
    posterior = run.e_step()[0]
    with Annotate(about):
        traces = enumerated_traces(one.model, one.guide, x, y)
    bounds = row_bounds(*traces)
    torch.testing.assert_close(bounds, run.log_likelihoods(), rtol=1e-10, atol=1e-10)
    for group in groups.unique():
        mine = posterior[groups == group] / posterior[groups == group].sum(-1, keepdim=True)
        torch.testing.assert_close(mine, mine[:1].expand_as(mine))


@pytest.mark.parametrize(
    "make", [story, lambda: models.VaDEMoE(1, 1, 2, 1, hidden=(4,)).double()], ids=["ME", "VaDEMoE"]
)
def test_groups_of_one_row_are_no_groups(rows, make):
    x, y, *_ = rows
    one, bounds = make(), []
    for about in (Annotations(), Annotations(groups=torch.randperm(N))):
        torch.manual_seed(0)
        with Annotate(about):
            bounds.append(row_bounds(*enumerated_traces(one.model, one.guide, x, y)))
    torch.testing.assert_close(*bounds, rtol=1e-6, atol=1e-9)  # q(c) is that of Bayes


def test_held_out_groups_have_the_bound_of_the_objective(rows):
    x, y, groups, _ = rows
    one, about = story(), annotations(groups, ("weights",))
    run = EM(one.model, one.guide, (x, y), 0, 0, annotations=about)
    store = {"params": {}, "constraints": {}}
    bound = marginal_elbo(one.model, one.guide, store, (x, y), 0, about)
    assert bound == pytest.approx(run.log_likelihoods().sum().item() / about.total(N), rel=1e-10)


def test_minibatches_are_of_whole_groups(rows):
    groups = rows[2]
    torch.manual_seed(0)
    parts = list(whole_groups(groups, 30))
    assert torch.cat(parts).sort().values.equal(torch.arange(N))
    assert len(parts) == 4
    of_parts = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, of_parts)) == len(groups.unique())
    assert all(20 <= len(part) <= 45 for part in parts)
    assert [len(part) for part in whole_groups(torch.zeros(5), 2)] == [5]


def test_a_group_without_weight_has_no_term(rows):
    x, y, groups, _ = rows
    one = story()
    weights = torch.where(groups == groups[0], 0.0, 1.0).double()
    kept = weights > 0
    whole = Annotations(groups=groups, weights=weights)
    some = Annotations(groups=groups[kept])
    terms = EM(one.model, one.guide, (x, y), 0, 0, annotations=whole).log_likelihoods()
    others = EM(one.model, one.guide, (x[kept], y[kept]), 0, 0, annotations=some)
    torch.testing.assert_close(terms.sum(), others.log_likelihoods().sum())


def test_gradients_train_to_the_optimum_of_em(rows):
    x, y, groups, component = rows
    options = {"groups": groups, "prior": "none", "progress": False}
    one = story()
    exact = pyro_moe.fit(one.model, one.guide, (x, y), **options, restarts=4)
    best, one = exact.history[-1]["elbo"], story()
    fit = pyro_moe.fit(
        one.model,
        one.guide,
        (x, y),
        **options,
        loss="marginal",
        initialize=component,
        epochs=60,
        batch_size=30,
        learning_rate=0.03,
        validation=0.0,
    )
    run = EM(fit.programs.model, fit.programs.guide, (x, y), 0, 0, annotations=fit.annotations)
    assert run.log_likelihoods().sum().item() / N == pytest.approx(best, abs=0.003)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.DeepMoE(1, 1, 2, hidden=(4,)),
        lambda: models.GMMMoE(1, 1, 2),
        lambda: models.VaDEMoE(1, 1, 2, 1, hidden=(4,)),
        lambda: models.DMVAE(1, 1, 2, hidden=(4,)),
    ],
    ids=["DeepMoE", "GMMMoE", "VaDEMoE", "DMVAE"],
)
def test_stories_take_groups(rows, make):
    x, y, groups, _ = rows
    one = make()
    data = x if isinstance(one, models.DMVAE) else (x, y)
    fit = pyro_moe.fit(
        one.model, one.guide, data, groups=groups, epochs=2, validation=0.2, progress=False
    )
    assert fit.settings["loss"] == "marginal"
    assert fit.held_out_elbo is not None
    assert fit.stopped is None


def test_rows_held_out_are_whole_groups(rows):
    from pyro_moe.fitting.arguments import held_rows

    x, y, groups, _ = rows
    held = held_rows((x, y), 0.2, 0, groups)
    others = torch.ones(N, dtype=torch.bool).index_fill(0, held, False)
    assert not set(groups[held].tolist()) & set(groups[others].tolist())
    assert len(held_rows((x, y), 0.2, 0, torch.zeros(N))) == 0


def test_a_story_whose_targets_are_not_given_c_takes_no_groups(rows):
    x, y, groups, _ = rows
    one = models.DVMoE(1, 1, 2, 1, hidden=(4,))
    with pytest.raises(ValueError, match=r"expected a story whose targets .*; got DVMoE"):
        pyro_moe.fit(one.model, one.guide, (x, y), groups=groups, epochs=1)
    one = models.GMMMoE(1, 1, 2)
    with pytest.raises(ValueError, match=r"by EM; got GMMMoE: loss='marginal' is for others"):
        pyro_moe.fit(one.model, one.guide, (x, y), groups=groups, loss="em")
    with pytest.raises(ValueError, match=r"expected loss='em' or 'marginal' for rows in groups"):
        pyro_moe.fit(one.model, one.guide, (x, y), groups=groups, loss="relaxed")
