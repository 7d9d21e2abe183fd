"""Every tool takes a story of plain functions with two layers of assignments, ``c1`` and ``c``."""

import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.testing import assert_close

import pyro_moe
from pyro_moe import Rows, SiteError, cli, criticism, evaluation, models, plots, runs

N, G, K = 60, 2, 3
TREE = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
LOSSES = {
    "marginal": "marginal",
    "categorical-kl": "categorical-kl",
    "relaxed": "relaxed",
    "Trace_ELBO": Trace_ELBO(),
    "TraceEnum_ELBO": TraceEnum_ELBO(max_plate_nesting=1),
}
PLACES = [[-3.0, 0.0], [-3.0, 3.0], [4.0, 0.0]]
net = nn.Linear(2, 2 + G + K)
maps = nn.Linear(2, 2)


def relaxed(logits):
    return dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits)


def model(x, y=None):
    pyro.module("maps", maps)
    loc = pyro.param("loc", torch.tensor(PLACES))
    slope = pyro.param("slope", torch.ones(K))
    level = pyro.param("level", torch.tensor([0.0, 5.0]))
    with pyro.plate("data", len(x)):
        c1 = pyro.sample("c1", relaxed(torch.zeros(G)))
        c = pyro.sample("c", relaxed(c1 @ (4.0 * TREE - 2.0)))
        z = pyro.sample("z", dist.Normal(c @ loc, 1.0).to_event(1))
        x = pyro.sample("x", dist.Normal(maps(z), 0.5).to_event(1), obs=x)
        mean = (c @ slope) * x[..., 0] + c1 @ level
        pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


def guide(x, y=None):
    pyro.module("net", net)
    loc, groups, logits = net(x).split([2, G, K], -1)
    with pyro.plate("data", len(x)):
        c1 = pyro.sample("c1", relaxed(groups))
        pyro.sample("c", relaxed(logits + c1 @ TREE))
        pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))


def guide_without_c1(x, y=None):
    pyro.module("net", net)
    loc, _, logits = net(x).split([2, G, K], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("c", relaxed(logits))
        pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))


STORY = """
import pyro
import torch
from torch import nn

from pyro_moe.models import HierarchicalDVMoE


class Story(HierarchicalDVMoE):
    def __init__(self, x_dim, y_dim, num_components=3, z_dim=2, num_groups=2):
        super().__init__(x_dim, y_dim, num_components, z_dim, num_groups=num_groups, hidden=(4,))
"""


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    x = torch.tensor(PLACES)[labels] + torch.randn(N, 2, generator=generator)
    y = x[:, 0] + 5.0 * (labels == 2) + 0.3 * torch.randn(N, generator=generator)
    return Rows(x, y, labels)


@pytest.fixture(scope="module", params=["marginal", "Trace_ELBO", "without c1"])
def fit(request, rows):
    if request.param == "without c1":
        return pyro_moe.fit(model, guide_without_c1, rows, epochs=3, seed=0, progress=False)
    loss = LOSSES[request.param]
    return pyro_moe.fit(model, guide, rows, loss=loss, epochs=3, seed=0, progress=False)


def test_training_changes_what_depends_on_either_layer(fit):
    assert fit.stopped is None
    assert all(p.isfinite().all() for p in fit.parameters().values())
    for name, before in (("loc", torch.tensor(PLACES)), ("level", torch.tensor([0.0, 5.0]))):
        assert fit.parameters()[name].ne(before).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_objective_trains_from_a_clustering(rows, loss):
    fitted = pyro_moe.fit(
        model,
        guide,
        rows,
        loss=LOSSES[loss],
        initialize="autoencoder",
        epochs=2,
        compile=False,
        progress=False,
    )
    assert fitted.stopped is None
    assert all(p.isfinite().all() for p in fitted.parameters().values())


def test_evaluation(fit, rows):
    for site, number in (("c", K), ("c1", G)):
        g, error = evaluation.gate(fit, rows, site=site, return_error=True)
        assert g.shape == error.shape == (N, number)
        assert_close(g.sum(-1), torch.ones(N))
        r = evaluation.posterior(fit, rows, site=site)
        assert r.shape == (N, number)
        assert_close(r.sum(-1), torch.ones(N).double())
    assert evaluation.encode(fit, rows).shape == (N, 2)
    assert evaluation.reconstruct(fit, rows).shape == (N, 2)
    p = evaluation.predict(fit, rows)
    assert_close(p.variance, p.within + p.between)
    assert p.sample(5).shape[:2] == (5, N)
    assert evaluation.regression_scores(p, rows.y)["log_likelihood"] > -1e3
    bound = evaluation.elbo(fit, rows)
    closer = evaluation.importance_weighted_bound(fit, rows, num_samples=64)
    assert closer.mean() > bound.mean() - 0.1
    assert evaluation.novelty(fit, rows, num_samples=8).p_value.min() > 0
    missing = rows.x.clone()
    missing[::5, 0] = torch.nan
    assert evaluation.impute(fit, missing, num_samples=8, num_rounds=1).mean.isfinite().all()


def test_samples_of_a_group_are_of_its_components(fit):
    """Of group 1 nearly all rows are of component 2."""
    weights = torch.tensor([-2.0, -2.0, 2.0]).softmax(-1)
    x = evaluation.sample(fit, 4000, component=1, site="c1", noise=False, seed=1)
    loc = fit.parameters()["loc"].detach()
    maps_of_fit = fit.programs.model.__globals__["maps"]
    each = maps_of_fit(loc).detach()
    expected = weights @ each
    between = weights @ (each - expected).square()
    spread = ((maps_of_fit.weight.detach().square().sum(-1) + between) / 4000).sqrt()
    assert ((x.mean(0) - expected).abs() < 4.5 * spread + 1e-6).all()


def test_criticism(fit, rows, tmp_path):
    assert len(criticism.check(fit, rows, num_replicates=19).table) > 0
    assert len(criticism.health(fit, rows).shares) == K
    idata = criticism.to_arviz(fit, rows, num_draws=8)
    drawn = idata["posterior"] if "posterior" in dir(idata) else idata.posterior
    for name, number in (("c", K), ("c1", G)):
        values = drawn[name].values
        assert values.shape[-1] == N
        assert 0 <= values.min() <= values.max() < number
    assert fit.report(tmp_path / "report.html", rows).stat().st_size > 10_000
    assert "Fit of" in repr(fit.summary())


def test_plots(fit, rows):
    assert {"history", "latent_map", "reconstructions", "generated", "gate_map", "predictions"} <= {
        *plots.pictures(fit, rows)
    }


def test_a_site_that_is_none_is_an_error(fit, rows):
    for site in ("c7", "z"):
        message = rf"^expected a site '{site}' in the guide or the model; got sites \[.*'c1'.*\]$"
        for ask in (evaluation.gate, evaluation.posterior):
            with pytest.raises(SiteError, match=message):
                ask(fit, rows, site=site)
        with pytest.raises(SiteError, match=f"^expected a site '{site}' in the model; got"):
            evaluation.sample(fit, 3, component=0, site=site)


def test_a_story_of_one_layer_has_no_other():
    story = models.DMVAE(2, 2, K, hidden=(4,))
    x = torch.randn(8, 2)
    fit = pyro_moe.fit(story.model, story.guide, x, epochs=0, initialize="keep", progress=False)
    for site in ("c1", "z"):
        with pytest.raises(SiteError, match=f"^expected a site '{site}' in the guide or the model"):
            evaluation.gate(fit, x, site=site)


def test_em_is_for_one_layer():
    def story(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c1", dist.OneHotCategorical(torch.ones(2)))
            c = pyro.sample("c", dist.OneHotCategorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(c[..., :1], 1.0).to_event(1), obs=x)

    message = "^expected no latent site besides 'c' for EM; got 'c1'$"
    with pytest.raises(SiteError, match=message):
        pyro_moe.fit(story, lambda x: None, torch.randn(9, 1), loss="em", progress=False)


@pytest.mark.parametrize("loss", ["relaxed", "categorical-kl"])
def test_a_relaxed_objective_needs_every_layer_in_the_guide(rows, loss):
    message = rf"^expected a site 'c1' in the guide for loss='{loss}'; got none$"
    with pytest.raises(SiteError, match=message):
        pyro_moe.fit(model, guide_without_c1, rows, loss=loss, progress=False)


# Values by hand


@pytest.fixture(scope="module")
def by_hand():
    """Five rows of a story without z, its fit, and p(c1, c, y | x) as a table (N, G, K)."""
    torch.manual_seed(0)
    x, y = torch.randn(5, 2), torch.randn(5)
    weights, means, levels = torch.randn(G, K), torch.randn(K, 2), torch.tensor([-1.0, 2.0])
    groups = torch.tensor([0.3, 0.7])

    def story(x, y=None):
        with pyro.plate("data", len(x)):
            c1 = pyro.sample("c1", dist.OneHotCategorical(groups))
            c = pyro.sample("c", dist.OneHotCategorical(logits=c1 @ weights))
            x = pyro.sample("x", dist.Normal(c @ means, 1.0).to_event(1), obs=x)
            mean = (c @ means)[..., 0] + c1 @ levels
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    fit = pyro_moe.fit(
        story, lambda x, y=None: None, (x, y), epochs=0, initialize="keep", progress=False
    )
    log_p = groups.log().view(G, 1) + weights.log_softmax(-1)
    log_p = log_p + dist.Normal(means, 1.0).to_event(1).log_prob(x[:, None, None])
    mean = means[:, 0] + levels.view(G, 1)
    return fit, x, y, log_p, mean


@pytest.mark.parametrize(("site", "dim"), [("c", 1), ("c1", 2)])
def test_gate_and_posterior_equal_bayes_rule(by_hand, site, dim):
    fit, x, y, log_p, mean = by_hand
    expected = log_p.flatten(1).softmax(-1).view(-1, G, K).sum(dim)
    assert_close(evaluation.gate(fit, x, site=site), expected, rtol=1e-4, atol=1e-5)
    joint = log_p + dist.Normal(mean, 0.5).log_prob(y[:, None, None])
    expected = joint.flatten(1).softmax(-1).view(-1, G, K).sum(dim)
    got = evaluation.posterior(fit, (x, y), site=site).float()
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_predictions_average_over_all_layers(by_hand):
    fit, x, y, log_p, mean = by_hand
    weights = log_p.flatten(1).softmax(-1)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(weights), dist.Normal(mean.flatten().expand(5, -1), 0.5)
    )
    p = evaluation.predict(fit, x)
    assert p.gate.shape == (5, K)
    assert_close(p.mean[:, 0].float(), mixture.mean, rtol=1e-4, atol=1e-5)
    assert_close(p.variance[:, 0].float(), mixture.variance, rtol=1e-4, atol=1e-5)
    assert_close(p.log_prob(y).float(), mixture.log_prob(y), rtol=1e-4, atol=1e-5)
    assert_close(p.cdf(y)[:, 0].float(), mixture.cdf(y), rtol=1e-4, atol=1e-5)
    drawn = p.sample(2000, seed=1).float()
    error = (mixture.variance / 2000).sqrt()
    assert ((drawn.mean(0).flatten() - mixture.mean).abs() < 4.5 * error).all()


def test_log_densities_have_all_layers_summed_out(by_hand):
    fit, x, y, log_p, mean = by_hand
    joint = log_p + dist.Normal(mean, 0.5).log_prob(y[:, None, None])
    expected = joint.flatten(1).logsumexp(-1)
    assert_close(evaluation.elbo(fit, (x, y)).float(), expected, rtol=1e-5, atol=1e-5)
    got = evaluation.information_criteria(fit)["log_likelihood"]
    assert got == pytest.approx(expected.sum().item(), rel=1e-5)
    novelty = evaluation.novelty(fit, x)
    assert_close(novelty.log_density.float(), log_p.flatten(1).logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_imputation_averages_over_all_layers():
    """x is N(m_gk, 1) with c1 and c both at work, so that E[x_1 | x_0] is a weighted mean."""
    means = torch.tensor([[[0.0, 0.0], [3.0, 5.0]], [[1.0, -5.0], [4.0, 9.0]]])

    def story(x):
        with pyro.plate("data", len(x)):
            c1 = pyro.sample("c1", dist.OneHotCategorical(torch.ones(2)))
            c = pyro.sample("c", dist.OneHotCategorical(torch.ones(2)))
            loc = (c.unsqueeze(-1) * (c1 @ means.flatten(1)).unflatten(-1, (2, 2))).sum(-2)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    x = torch.randn(20, 2)
    fit = pyro_moe.fit(story, lambda x: None, x, epochs=0, initialize="keep", progress=False)
    got = evaluation.impute(fit, [[2.0, math.nan]], num_samples=8).mean[0, 1]
    weights = dist.Normal(means[..., 0], 1.0).log_prob(torch.tensor(2.0)).flatten().softmax(-1)
    assert got.item() == pytest.approx((weights @ means[..., 1].flatten()).item(), rel=1e-4)


def test_a_gate_of_groups_is_the_sum_of_those_of_their_components():
    story = models.HierarchicalDVMoE(2, 1, K, 2, num_groups=G, hidden=(4,))
    x = torch.randn(8, 2)
    y = torch.randn(8)
    fit = pyro_moe.fit(
        story.model, story.guide, (x, y), epochs=0, initialize="keep", progress=False
    )
    memberships = story.prior.log_memberships().exp()
    got = evaluation.gate(fit, x, site="c1")
    assert_close(got, evaluation.gate(fit, x) @ memberships, rtol=1e-4, atol=1e-5)
    got = evaluation.posterior(fit, (x, y), site="c1").float()
    expected = evaluation.posterior(fit, (x, y)).float() @ memberships
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


# Run folders and the command line


def test_runs_and_the_command_line(rows, tmp_path, capsys):
    file, table, run = tmp_path / "my_story.py", tmp_path / "table.csv", tmp_path / "run"
    file.write_text(STORY)
    frame = pd.DataFrame({"a": rows.x[:, 0], "b": rows.x[:, 1], "y": rows.y})
    frame.to_csv(table, index=False)
    data = ["--data", str(table), "--target", "y"]
    options = ["--num-groups", "2", "--epochs", "2", "--quiet", "--out", str(run)]
    assert cli.main(["fit", str(file), *data, *options]) == 0, capsys.readouterr().err
    assert cli.main(["check", str(run), "--trust"]) == 0
    assert cli.main(["report", str(run), "--trust"]) == 0
    out = str(tmp_path / "predictions.csv")
    assert cli.main(["predict", str(run), "--data", str(table), "--out", out, "--trust"]) == 0
    assert isinstance(runs.load(run, trust_code=True)[0], nn.Module)
    fit, *_ = runs.restore(run, trust_code=True)
    assert evaluation.gate(fit, rows.x, site="c1").shape == (N, G)


def test_a_shipped_story_is_restored_with_its_groups(rows, tmp_path):
    arguments = {"x_dim": 2, "z_dim": 2, "num_components": K, "num_groups": G, "hidden": [4]}
    story = models.HierarchicalDMVAE(**arguments)
    fit = pyro_moe.fit(story.model, story.guide, rows.x, epochs=2, progress=False)
    name = {"story_name": "hierarchicaldmvae", "story_arguments": arguments}
    runs.save(fit, tmp_path / "run", **name)
    restored, *_ = runs.restore(tmp_path / "run", Rows(rows.x))
    for site in ("c", "c1"):
        assert_close(
            evaluation.gate(restored, rows.x, site=site), evaluation.gate(fit, rows.x, site=site)
        )
