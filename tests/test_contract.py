"""Every tool takes a story of plain functions whose ``c`` is Pyro's own relaxed variable."""

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_moe
from pyro_moe import Rows, cli, criticism, evaluation, plots, runs

N, K = 60, 2
LOSSES = {
    "marginal": "marginal",
    "categorical-kl": "categorical-kl",
    "relaxed": "relaxed",
    "Trace_ELBO": Trace_ELBO(),
    "TraceEnum_ELBO": TraceEnum_ELBO(max_plate_nesting=1),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
}
STARTS = ("random", "autoencoder")
net = nn.Linear(2, 2 + K)
maps = nn.Linear(2, 2)


def model(x, y=None):
    pyro.module("maps", maps)
    loc = pyro.param("loc", torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
    slope = pyro.param("slope", torch.ones(K))
    with pyro.plate("data", len(x)):
        temperature = torch.tensor(0.5)
        c = pyro.sample("c", dist.RelaxedOneHotCategorical(temperature, logits=torch.zeros(K)))
        z = pyro.sample("z", dist.Normal(c @ loc, 1.0).to_event(1))
        x = pyro.sample("x", dist.Normal(maps(z), 0.5).to_event(1), obs=x)
        mean = (c @ slope) * x[..., 0]
        pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


def guide(x, y=None):
    pyro.module("net", net)
    loc, logits = net(x).split([2, K], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))
        pyro.sample("c", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits))


STORY = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Story(nn.Module):
    def __init__(self, x_dim, y_dim, num_components=2):
        super().__init__()
        self.net, self.maps = nn.Linear(x_dim, 2 + num_components), nn.Linear(2, x_dim)
        self.loc = nn.Parameter(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
        self.slope = nn.Parameter(torch.ones(num_components))

    def model(self, x, y=None):
        pyro.module("story", self)
        with pyro.plate("data", len(x)):
            logits = torch.zeros(2)
            c = pyro.sample("c", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits))
            z = pyro.sample("z", dist.Normal(c @ self.loc, 1.0).to_event(1))
            x = pyro.sample("x", dist.Normal(self.maps(z), 0.5).to_event(1), obs=x)
            pyro.sample("y", dist.Normal((c @ self.slope) * x[..., 0], 0.3), obs=y)

    def guide(self, x, y=None):
        pyro.module("story", self)
        loc, logits = self.net(x).split([2, 2], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))
            pyro.sample("c", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits))
"""


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    x = torch.randn(N, 2, generator=generator) + 3.0 * torch.stack(
        [2.0 * labels - 1, 0 * labels], 1
    )
    y = torch.where(labels == 0, -x[:, 0], 2.0 * x[:, 0])
    return Rows(x, y + 0.3 * torch.randn(N, generator=generator), labels)


@pytest.fixture(scope="module", params=LOSSES)
def fit(request, rows):
    loss = LOSSES[request.param]
    return pyro_moe.fit(model, guide, rows, loss=loss, epochs=3, seed=0, progress=False)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_training_starts_anywhere(rows, loss, start):
    fitted = pyro_moe.fit(
        model, guide, rows, loss=LOSSES[loss], initialize=start, epochs=2, progress=False
    )
    assert fitted.stopped is None
    assert all(p.isfinite().all() for p in fitted.parameters().values())
    assert fitted.parameters()["loc"].ne(torch.tensor([[-3.0, 0.0], [3.0, 0.0]])).any()


def test_evaluation(fit, rows):
    assert evaluation.encode(fit, rows).shape == (N, 2)
    assert evaluation.reconstruct(fit, rows).shape == (N, 2)
    g = evaluation.gate(fit, rows)
    torch.testing.assert_close(g.sum(-1), torch.ones(N))
    p = evaluation.predict(fit, rows)
    torch.testing.assert_close(p.variance, p.within + p.between)
    assert evaluation.regression_scores(p, rows.y)["log_likelihood"] > -1e3
    assert evaluation.clustering_scores(g, rows.labels)["accuracy"] >= 0.5
    bound = evaluation.elbo(fit, rows)
    closer = evaluation.importance_weighted_bound(fit, rows, num_samples=64)
    assert closer.mean() > bound.mean() - 0.1
    assert evaluation.novelty(fit, rows, num_samples=8).p_value.min() > 0
    assert evaluation.sample(fit, 7, component=1).shape == (7, 2)
    missing = rows.x.clone()
    missing[::5, 0] = torch.nan
    filled = evaluation.impute(fit, missing, num_samples=8, num_rounds=1)
    assert filled.mean.isfinite().all()


def test_discrete_assignments_are_one_hot_in_all_that_is_simulated(fit, rows):
    """A sample of component k is one of that component alone: z ~ N(loc_k, 1)."""
    x = evaluation.sample(fit, 4000, component=0, noise=False, seed=1)
    loc = fit.parameters()["loc"][0]
    maps_of_fit = fit.programs.model.__globals__["maps"]
    expected = maps_of_fit(loc).detach()
    spread = maps_of_fit.weight.detach().square().sum(-1).sqrt() / 4000**0.5
    assert ((x.mean(0) - expected).abs() < 4.5 * spread + 1e-6).all()


def test_criticism(fit, rows, tmp_path):
    assert len(criticism.check(fit, rows, num_replicates=19).table) > 0
    assert len(criticism.health(fit, rows).shares) == K
    other = pyro_moe.fit(model, guide, rows, epochs=1, prior="none", progress=False)
    assert len(criticism.compare({"one": fit, "other": other}, rows)) == 2
    idata = criticism.to_arviz(fit, rows, num_draws=8)
    assert "posterior_predictive" in list(getattr(idata, "children", idata.groups()))
    assert fit.report(tmp_path / "report.html", rows).stat().st_size > 10_000


def test_plots(fit, rows):
    assert {"history", "latent_map", "reconstructions", "generated", "gate_map", "predictions"} <= {
        *plots.pictures(fit, rows)
    }


@pytest.mark.parametrize("loss", ["marginal", "categorical-kl", "relaxed"])
def test_runs_and_the_command_line(loss, rows, tmp_path, capsys):
    file, table, run = tmp_path / "my_story.py", tmp_path / "table.csv", tmp_path / "run"
    file.write_text(STORY)
    frame = pd.DataFrame({"a": rows.x[:, 0], "b": rows.x[:, 1], "y": rows.y})
    frame.to_csv(table, index=False)
    data = ["--data", str(table), "--target", "y"]
    options = ["--loss", loss, "--epochs", "2", "--quiet", "--out", str(run)]
    assert cli.main(["fit", str(file), *data, *options]) == 0, capsys.readouterr().err
    assert cli.main(["check", str(run), "--trust"]) == 0
    assert cli.main(["report", str(run), "--trust"]) == 0
    assert cli.main(["compare", str(run), str(run), "--trust"]) == 0
    out = str(tmp_path / "predictions.csv")
    assert cli.main(["predict", str(run), "--data", str(table), "--out", out, "--trust"]) == 0
    assert isinstance(runs.load(run, trust_code=True)[0], nn.Module)
