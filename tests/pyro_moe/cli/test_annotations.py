"""Columns of weights, groups and known components on the command line, without a formula."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_moe
from pyro_moe import datasets, evaluation, models, runs
from pyro_moe.cli import main

OPTIONS = ["--weights", "w", "--groups", "firm", "--labels", "known"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotated")
    rng = np.random.default_rng(0)
    component = np.repeat(rng.integers(0, 2, 40), 4)
    x = rng.uniform(0.0, 5.0, 160).round(3)
    known = pd.Series(component).where(np.arange(160) % 8 == 0).astype("Int64")
    pd.DataFrame(
        {
            "x": x,
            "w": rng.integers(1, 4, 160),
            "firm": [f"f{i}" for i in np.repeat(np.arange(40), 4)],
            "known": known,
            "y": np.where(component, 1 + 2 * x, 9 - x) + rng.normal(0, 0.5, 160).round(3),
        }
    ).to_csv(folder / "t.csv", index=False)
    pd.DataFrame({"x": [1.0, 2.0]}).to_csv(folder / "new.csv", index=False)
    assert main(command(folder, "all")) == 0
    return folder


def command(folder, out, options=OPTIONS, story="me"):
    line = ["fit", story, "--data", str(folder / "t.csv"), "--target", "y", "--quiet"]
    line += ["--num-components", "2", "--out", str(folder / out), *options]
    line += [] if options[: len(OPTIONS)] == OPTIONS else ["--columns", "x"]
    return line if "--restarts" in line or story != "me" else [*line, "--restarts", "1"]


def test_the_command_is_the_call(folder):
    rows = datasets.table(folder / "t.csv", target="y", weights="w", groups="firm", labels="known")
    assert rows.columns == ("x",)
    train, _ = rows.split(0.2, 0)
    story = models.ME(x_dim=1, y_dim=1, num_components=2)
    about = dict(train.annotations)
    fit = pyro_moe.fit(
        story.model, story.guide, (train.x, train.y), **about, restarts=1, progress=False
    )
    restored, _, again = runs.restore(folder / "all")
    for name, value in fit.parameters().items():
        torch.testing.assert_close(restored.parameters()[name], value, rtol=0.0, atol=0.0)
    assert restored.restored is None
    assert restored.annotations.names == ("weights", "groups", "labels")
    for name in restored.annotations.names:
        torch.testing.assert_close(
            getattr(restored.annotations, name),
            getattr(fit.annotations, name),
            equal_nan=True,
        )
    assert again.annotations.keys() == about.keys()
    posterior = evaluation.posterior(restored, again)
    firms = again.annotations["groups"]
    torch.testing.assert_close(posterior[firms == firms[0]].std(0), torch.zeros(2).to(posterior))


def test_whole_groups_are_set_aside(folder):
    _, train, test = runs.restore(folder / "all")
    firms = [set(rows.annotations["groups"].tolist()) for rows in (train, test)]
    assert not firms[0] & firms[1]
    assert len(firms[1]) == 8
    assert len(train) + len(test) == 160


@pytest.mark.parametrize("name", ["check", "compare", "report", "predict"])
def test_the_other_commands_take_the_run(folder, capsys, name):
    more = {
        "check": ["--replicates", "20"],
        "predict": ["--data", str(folder / "new.csv"), "--out", str(folder / "p.csv")],
    }
    assert main([name, str(folder / "all"), *more.get(name, [])]) == 0
    assert capsys.readouterr().err == ""


def test_another_table_needs_no_annotations(folder, tmp_path, capsys):
    pd.read_csv(folder / "t.csv")[["y", "x"]].to_csv(tmp_path / "o.csv", index=False)
    fit, rows, _ = runs.restore(folder / "all", tmp_path / "o.csv")
    assert fit.restored is not None
    assert rows.annotations == {}
    assert main(["check", str(folder / "all"), "--data", str(tmp_path / "o.csv")]) == 0


def test_sampling_weights_have_no_unit_and_sandwich_errors(folder):
    assert main(command(folder, "s", ["--weights", "w", "--weight-type", "sampling"])) == 0
    fit = runs.restore(folder / "s")[0]
    assert fit.settings["weight_type"] == "sampling"
    assert fit.annotations.weights.mean().item() == pytest.approx(1.0)
    assert fit.restored is None
    assert fit.coefficients()["standard_error"].notna().all()


def test_a_story_of_gradients_takes_weights_and_labels(folder):
    options = ["--weights", "w", "--labels", "known", "--epochs", "1"]
    assert main(command(folder, "d", options, story="dvmoe")) == 0
    fit = runs.restore(folder / "d")[0]
    assert fit.annotations.names == ("weights", "labels")
    assert fit.restored is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight-type", "sampling"], "expected --weights, a column of the table, with"),
        (["--weights", "nothing"], "expected a column 'nothing'"),
        (["--weights", "firm"], "expected numbers in column 'firm'"),
        (["--weights", "known"], "leave them out with drop_missing=True"),
        (["--labels", "firm"], "labels are numbers"),
        (["--labels", "w"], "expected labels from 0 to 1"),
        (["--resume", "RUN", "--weights", "w"], "expected --groups firm with --resume"),
        (
            ["--resume", "RUN", *OPTIONS, "--weight-type", "sampling"],
            "expected --weight-type replication with --resume",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, capsys, options, message):
    options = [str(folder / "all") if word == "RUN" else word for word in options]
    line = command(folder, "bad", options)
    if "--resume" in line:
        del line[line.index("--out") : line.index("--out") + 2]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "bad").exists()


def test_annotations_need_a_table(capsys):
    assert main(["fit", "gmm", "--data", "spiral", "--weights", "w"]) == 2
    assert "expected --weights with a table; got it with data spiral" in capsys.readouterr().err
