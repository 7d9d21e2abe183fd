"""A written file is its shipped story exactly, and errors in a file are said with their line."""

import re
import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

import pyro_moe
from pyro_moe import DataError, runs
from pyro_moe.inference import MarginalELBO
from pyro_moe.runs import story_file
from pyro_moe.runs.shipped import source_of
from pyro_moe.stories import parameters

N, D, K, L = 40, 3, 2, 2
EXACT = {"rtol": 0, "atol": 0}
NUMBERS = {"x_dim": D, "y_dim": 2, "num_components": K, "z_dim": L, "hidden": (8, 4)}
NAMES = tuple(name for name in runs.STORIES if name != "hierarchicalme")
each_story = pytest.mark.parametrize("name", NAMES)


def source(name):
    return source_of(name)


def both(name, folder):
    """The story of a written file, and the shipped one."""
    shipped = runs.STORIES[name]
    known = parameters(shipped)
    arguments = {key: value for key, value in NUMBERS.items() if key in known}
    if name == "hierarchicalme":
        del arguments["num_components"]
    written = story_file.read(story_file.write(folder / "my.py", name)).story
    return written(**arguments), shipped(**arguments)


@pytest.fixture
def x():
    return torch.randn(N, D) + 4.0 * torch.eye(D)[torch.arange(N) % 2]


@pytest.fixture
def y(x):
    return torch.stack([x[:, 0] + x[:, 1], x[:, 2] - 1.0], 1) + 0.1 * torch.randn(N, 2)


@pytest.fixture
def data(name, x, y):
    return (x, y) if "observe_target(" in source(name) else (x,)


@pytest.mark.parametrize("name", runs.STORIES)
@pytest.mark.usefixtures("double")
def test_a_written_story_has_the_elbo_and_gradients_of_the_shipped_one(
    name, data, scatter, loss_and_gradients, tmp_path
):
    written, shipped = both(name, tmp_path)
    with torch.no_grad():
        shipped.adapt(*data)
    scatter(shipped)
    written.load_state_dict(shipped.state_dict())
    elbo = MarginalELBO(num_particles=2)
    found = loss_and_gradients(elbo, written.model, written.guide, written, *data)
    expected = loss_and_gradients(elbo, shipped.model, shipped.guide, shipped, *data)
    assert_close(found, expected, **EXACT)
    assert any(value.any() for value in found[1].values())


@each_story
@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
@pytest.mark.parametrize("missing", [False, True], ids=["", "missing"])
def test_a_written_story_is_fitted_like_the_shipped_one(name, missing, data, tmp_path):
    """Start and all: each parameter comes out the same, bit by bit."""
    if missing and len(data) == 1:
        pytest.skip("no targets")
    if missing:
        data[1][::3] = torch.nan
    choices = {
        "epochs": 3,
        "batch_size": 16,
        "prior": "none",
        "progress": False,
        "missing_targets": missing,
    }
    if name in ("gmm", "me", "gmmmoe"):
        choices["loss"] = "em"
    fits = [
        pyro_moe.fit(story.model, story.guide, data, **choices) for story in both(name, tmp_path)
    ]
    phases, expected = ([record["phase"] for record in fit.history] for fit in fits)
    assert phases == expected
    assert_close(*(fit.story.state_dict() for fit in fits), **EXACT)


@each_story
def test_every_statement_stands_under_its_equation_and_assumptions_are_marked(name):
    lines = source(name).splitlines()
    for number, line in enumerate(lines):
        if re.search(r"pyro\.sample\(|observe_target\(", line) and not line.lstrip().startswith(
            "#"
        ):
            while not lines[number].lstrip().startswith("#"):  # the code that leads up to it
                number -= 1
            while lines[number - 1].lstrip().startswith("#"):
                number -= 1
            assert re.search("[~∝=]|no clusters", lines[number]), line
    assert sum("# Assumption: " in line for line in lines) >= 2


@each_story
def test_a_written_story_imports_by_absolute_names_what_it_uses(name):
    imports = [line for line in source(name).splitlines() if re.match("(from|import) ", line)]
    assert imports
    assert not any(line.startswith("from .") for line in imports)


# What a comment says may be written instead

HEAVY_X = "StudentT(3.0, p.mean, p.stddev).to_event(1)"
INSTEAD = [
    *((name, "self.decoder(z)", HEAVY_X, "p") for name in ("vae", "vade", "dmvae", "dvmoe")),
    *(
        (
            name,
            "choose(c, self.mixture.normals)",
            "StudentT(3.0, c @ p.mean, c @ p.stddev).to_event(1)",
            "n",
        )
        for name in ("gmm", "gmmmoe")
    ),
    (
        "dvmoe",
        "Mixture(self.gate(x).logits, self.expert_distributions(x)), y)",
        "choose(c, self.expert_distributions(x))",
        "",
    ),
]
SHORT = {"p": "self.decoder(z)", "n": "self.mixture.normals"}


@pytest.mark.parametrize(("name", "old", "new", "short"), INSTEAD)
@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
def test_what_a_comment_says_may_be_written_instead_can_be_fitted(
    name, old, new, short, data, tmp_path
):
    text = source(name)
    comments = [line.strip(" #") for line in text.splitlines() if line.lstrip().startswith("#")]
    assert new in " ".join(comments)
    if short:
        assert f"p = {SHORT[short]}" in " ".join(comments)
        new = re.sub(r"\bp\.", f"{SHORT[short]}.", new)
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    edited = "\n".join(code)
    (statement,) = (line for line in code if old in line and "return" not in line)
    changed = statement.replace(old, f"{new}, y)" if old.endswith("y)") else new)
    edited = edited.replace(statement, changed)
    edited = edited.replace(
        "import torch\n",
        "import torch\nfrom pyro.distributions import StudentT\n"
        "from pyro_moe.distributions import choose\n",
        1,
    )
    story = story_file.read(written(tmp_path / "edited.py", edited)).story
    known = parameters(story)
    story = story(**{key: value for key, value in NUMBERS.items() if key in known})
    fit = pyro_moe.fit(
        story.model, story.guide, data, epochs=2, initial_epochs=1, prior="none", progress=False
    )
    assert fit.stopped is None
    assert {"training"} <= {record["phase"] for record in fit.history}


def written(path, text):
    path.write_text(text)
    return path


def test_an_edited_assumption_is_the_one_that_is_fitted(tmp_path, x):
    text = source("vae").replace(
        "import torch\n", "import torch\nimport pyro.distributions as dist\n"
    )
    edited = text.replace(
        "self.decoder(z), obs=x",
        "dist.StudentT(3.0, self.decoder(z).mean, self.decoder(z).stddev).to_event(1), obs=x",
    )
    story = story_file.read(written(tmp_path / "edited.py", edited)).story(D, L)
    site = poutine.trace(story.model).get_trace(x).nodes["x"]
    assert isinstance(site["fn"].base_dist, dist.StudentT)
    usual = runs.STORIES["vae"](D, L)
    usual.load_state_dict(story.state_dict())
    elbos = []
    for each in (usual, story):
        torch.manual_seed(0)
        elbos.append(MarginalELBO().loss(each.model, each.guide, x))
    assert elbos[0] != pytest.approx(elbos[1], rel=1e-3)


# Files


def test_a_file_that_is_there_is_never_overwritten(tmp_path):
    path = written(tmp_path / "my.py", "mine")
    with pytest.raises(DataError) as caught:
        story_file.write(path, "gmm")
    assert str(caught.value) == f"expected a file that does not exist; got {path}"
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("path", "template", "message"),
    [
        ("my.txt", "gmm", "expected the name of a file that ends in .py; got my.txt"),
        ("my.py", "tree", r"expected a story in \('gmm', .*\); got 'tree'"),
        ("file/my.py", "gmm", r"expected a folder that .*; got file.*"),
    ],
)
def test_what_cannot_be_written(path, template, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(ValueError, match=message):
        story_file.write(path, template)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_reading_leaves_nothing_behind(tmp_path):
    path = story_file.write(tmp_path / "new" / "my.py", "dvmoe")
    file = story_file.read(path)
    assert file.name == "my.py"
    assert file.content == path.read_bytes()
    assert list(path.parent.iterdir()) == [path]
    assert file.story.__module__ not in sys.modules


def test_dataclasses_find_the_names_of_their_file(tmp_path):
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    body = "@dataclass\nclass Widths:\n    first: int = 3\n    other: ClassVar[int] = 2\n"
    head += "from typing import ClassVar\n"
    text = source("gmm")
    path = written(tmp_path / "my.py", head + text.replace("class Story", f"{body}\nclass Story"))
    assert story_file.read(path).story(2, 3).mixture.num_components == 3


MODULE = "from torch import nn\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (1,\n", r"expected Python in my\.py; got '\(' was never closed in line 1"),
        ("class A:\npass", r"expected Python in my\.py; got expected an indented .* in line 2"),
        ("x = '\0'", r"expected Python in my\.py; got source code .*null bytes.*"),
        ("x = 1", r"expected a class Story, an nn\.Module, in my\.py; got none"),
        ("Story = 3", r"expected a class Story, an nn\.Module, in my\.py; got 3"),
        ("class Story: pass", r"expected a class Story, an nn\.Module, in my\.py; got <class .*"),
        (
            MODULE + "class Story(nn.Module):\n    def model(self, x): pass",
            r"expected a method 'guide' of Story in my\.py; got none",
        ),
    ],
)
def test_files_that_are_no_stories(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(text)
    with pytest.raises(DataError) as caught:
        story_file.read("my.py")
    assert re.fullmatch(message, str(caught.value))


def test_a_file_that_is_not_there():
    with pytest.raises(DataError, match=r"expected a story file; got no\.py \(No such file"):
        story_file.read("no.py")


# What a file does wrong


def broken(tmp_path, old, new, story="dvmoe"):
    """A story's file with an error in it, and the number of the line where it is."""
    lines = source(story).splitlines()
    (place,) = (i for i, line in enumerate(lines) if old in line and "# " not in line)
    lines[place] = lines[place].replace(old, new)
    return written(tmp_path / "my.py", "\n".join(lines)), place + 1


def explained(path, x, y):
    try:
        story = story_file.read(path).story(D, 2, K, L)
        pyro_moe.fit(story.model, story.guide, (x, y), epochs=1, prior="none", progress=False)
    except Exception as error:
        return story_file.explain(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from torch import nn", "from torch import nm", "got ImportError in line {}: cannot .*"),
        (
            "super().__init__(x_dim",
            "super().__init__(1 / 0, x_dim",
            "got ZeroDivisionError in line {}: .*",
        ),
        ("self.decoder(z)", "self.decode(z)", "got AttributeError in line {}: .* 'decode'.*"),
        ("c @ prior.loc", "c @ mean", "got NameError in line {}: .*'mean'.*"),
    ],
)
def test_errors_are_explained_with_their_line(old, new, message, tmp_path, x, y):
    path, line = broken(tmp_path, old, new)
    expected = re.escape(f"expected {path} to run; ") + message.format(line)
    assert re.fullmatch(expected, explained(path, x, y))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("self.decoder(z)", "self.decoder(x)", "expected a story that runs on these rows; got: .*"),
        ("distributions(x)), y)", "distributions(x)), y[:, :1])", "expected y with 2 .*; got 1"),
    ],
)
def test_the_librarys_own_words_are_kept(old, new, message, tmp_path, x, y):
    """Also where Pyro raised another error in the place of the first."""
    path, line = broken(tmp_path, old, new)
    where = re.escape(str(path))
    assert re.fullmatch(f"{message}, in line {line} of {where}", explained(path, x, y))


def test_errors_of_others_are_not_explained(x):
    story = runs.STORIES["gmm"](D + 1, K)
    with pytest.raises(DataError) as caught:
        pyro_moe.fit(story.model, story.guide, x)
    assert story_file.explain(caught.value) is None
