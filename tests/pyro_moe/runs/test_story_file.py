"""A template is its shipped story exactly, and what is wrong with a file is said with its line."""

import re
import sys
from importlib import import_module
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

N, D, K, L = 40, 3, 2, 2
EXACT = {"rtol": 0, "atol": 0}
NUMBERS = {"x_dim": D, "y_dim": 2, "num_components": K, "z_dim": L, "hidden": (8, 4)}
each_template = pytest.mark.parametrize("name", story_file.TEMPLATES)


def arguments_of(story):
    known = story.__init__.__code__.co_varnames
    return {name: value for name, value in NUMBERS.items() if name in known}


def made(name, *, common_scale=False):
    """A template's story, and the shipped one."""
    template = import_module(f"pyro_moe.templates.{name}").Story
    arguments = arguments_of(template)
    shipped = runs.STORIES[name](**arguments)
    if "common_scale" in template.__init__.__code__.co_varnames:
        shipped = runs.STORIES[name](**arguments, common_scale=common_scale)
        arguments["common_scale"] = common_scale
    return template(**arguments), shipped


def in_template(key):
    """A shipped story's parameter as the template names it."""
    key = re.sub(r"^(dmvae|vade)\.", "", key)
    return key.replace("decoder.network.", "decoder.").replace("decoder.log_scale", "log_scale")


def parameters(story):
    return {in_template(key): value for key, value in story.named_parameters()}


@pytest.fixture
def x():
    return torch.randn(N, D) + 4.0 * torch.eye(D)[torch.arange(N) % 2]


@pytest.fixture
def y(x):
    return torch.stack([x[:, 0] + x[:, 1], x[:, 2] - 1.0], 1) + 0.1 * torch.randn(N, 2)


@pytest.fixture
def data(name, x, y):
    return (x, y) if "y" in sites(name) else (x,)


def sites(name):
    source = Path(import_module(f"pyro_moe.templates.{name}").__file__).read_text()
    named = set(re.findall(r'pyro.sample\(\s*"(\w)"', source))
    return named | ({"y"} if "observe_target(" in source else set())


@each_template
@pytest.mark.usefixtures("double")
def test_a_template_has_the_elbo_and_gradients_of_the_shipped_story(
    name, data, scatter, loss_and_gradients
):
    template, shipped = made(name)
    with torch.no_grad():
        shipped.adapt(*data)
        template.adapt(*data)
    scatter(shipped)
    named = parameters(shipped)
    assert named.keys() == dict(template.named_parameters()).keys()
    with torch.no_grad():
        for key, value in template.named_parameters():
            value.copy_(named[key])
    elbo = MarginalELBO(num_particles=2)
    loss, gradients = loss_and_gradients(elbo, template.model, template.guide, template, *data)
    expected, of_shipped = loss_and_gradients(elbo, shipped.model, shipped.guide, shipped, *data)
    assert loss == pytest.approx(expected, rel=1e-13)
    for key, value in of_shipped.items():
        assert_close(gradients[in_template(key)], value, rtol=1e-11, atol=1e-13, msg=key)
    assert all(value.any() for value in gradients.values() if value.shape != (1,))


@each_template
@pytest.mark.parametrize("missing", [False, True], ids=["", "missing"])
def test_a_template_is_fitted_like_the_shipped_story(name, missing, data, tmp_path):
    """Start and all: each parameter comes out the same, bit by bit."""
    if missing and len(data) == 1:
        pytest.skip("no targets")
    if missing:
        data[1][::3] = torch.nan
    template, shipped = made(name, common_scale=True)
    choices = {"epochs": 3, "batch_size": 16, "progress": False, "missing_targets": missing}
    if name in ("gmm", "me", "gmmmoe"):
        choices["loss"] = "em"
    assert getattr(template, "start", None) == getattr(shipped, "start", None)
    fits = [
        pyro_moe.fit(story.model, story.guide, data, **choices) for story in (template, shipped)
    ]
    learned, expected = (dict(fit.story.named_parameters()) for fit in fits)
    assert [record["phase"] for record in fits[0].history] == [
        record["phase"] for record in fits[1].history
    ]
    for key, value in expected.items():
        assert_close(learned[in_template(key)], value, **EXACT, msg=key)


@each_template
def test_every_statement_stands_under_its_equation_and_assumptions_are_marked(name):
    path = Path(import_module(f"pyro_moe.templates.{name}").__file__)
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.search(r"pyro\.sample\(|observe_target\(", line) and not line.lstrip().startswith(
            "#"
        ):
            while not lines[number].lstrip().startswith("#"):  # the code that leads up to it
                number -= 1
            while lines[number - 1].lstrip().startswith("#"):
                number -= 1
            assert re.search("[~∝=]", lines[number]), line
    assert sum("# ASSUMPTION: " in line for line in lines) >= 2
    assert {"c", "x"} <= sites("gmm")


# What a template says may be written instead

NORMAL_X = "dist.Normal(loc, scale)"
NORMAL_Y = "models.NormalExperts(maps, num_components, y_dim)"
GIVEN_C = "dist.StudentT(3.0, c @ m.loc, c @ m.log_scale.exp()).to_event(1)"
MIXTURE = "models.Mixture(self.gate(x).logits, self.experts(x))"
INSTEAD = [
    ("vae", NORMAL_X, "dist.StudentT(3.0, loc, scale)"),
    ("dvmoe", NORMAL_X, "dist.StudentT(3.0, loc, scale)"),
    ("vade", NORMAL_X, "dist.Bernoulli(logits=self.decoder(z))"),
    ("dmvae", NORMAL_X, "dist.ContinuousBernoulli(logits=self.decoder(z))"),
    ("dmvae", '"full"', '"tied"'),
    ("gmm", '"full"', '"diagonal"'),
    ("vade", '"learned"', '"uniform"'),
    ("dvmoe", '"uniform"', '"learned"'),
    ("gmm", "self.mixture.component(c)", GIVEN_C),
    ("me", NORMAL_Y, "models.StudentTExperts(maps, num_components, y_dim)"),
    ("deepmoe", NORMAL_Y, "models.PoissonExperts(maps, y_dim)"),
    ("gmmmoe", NORMAL_Y, "models.BernoulliExperts(maps)"),
    ("vademoe", NORMAL_Y, "models.CategoricalExperts(maps)"),
    ("dvmoe", MIXTURE, "models.choose(c, self.experts(x))"),
]


def suited(data, new):
    """Data in the support of what is written instead."""
    x, *others = data
    if "Bernoulli(logits" in new:
        x = (x > 1).to(x.dtype)
    if "Poisson" in new:
        others = [y.abs().round().long() for y in others]
    if "BernoulliExperts" in new:
        others = [(y > y.median(0).values).long() for y in others]
    if "Categorical" in new:
        others = [(y > y.median(0).values)[:, 0].long() for y in others]
    return (x, *others)


@pytest.mark.parametrize(("name", "old", "new"), INSTEAD)
@pytest.mark.filterwarnings("ignore::pyro_moe.EmptyComponentWarning")
def test_what_a_template_says_may_be_written_instead_can_be_fitted(name, old, new, data, tmp_path):
    text = story_file.write(tmp_path / "my.py", name).read_text()
    comments = [line.strip(" #") for line in text.splitlines() if line.lstrip().startswith("#")]
    assert new in " ".join(comments)
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    edited = "\n".join(code).replace("@ m.", "@ self.mixture.")
    assert edited.count(old) == 1
    edited = edited.replace(old, new.replace("@ m.", "@ self.mixture."))
    if "Categorical" in new:
        edited = edited.replace("y_dim", "num_classes")
    story = story_file.read(written(tmp_path / "edited.py", edited)).story
    values = NUMBERS | {"num_classes": 2, "common_scale": False}
    story = story(**{name: values[name] for name in story.__init__.__annotations__.keys() & values})
    data = suited(data, new)
    fit = pyro_moe.fit(story.model, story.guide, data, epochs=2, initial_epochs=1, progress=False)
    assert fit.stopped is None
    assert {"training"} <= {record["phase"] for record in fit.history}


def written(path, text):
    path.write_text(text)
    return path


def test_an_edited_assumption_is_the_one_that_is_fitted(tmp_path, x):
    text = story_file.write(tmp_path / "my.py", "vae").read_text()
    edited = text.replace(NORMAL_X, "dist.StudentT(3.0, loc, scale)")
    story = story_file.read(written(tmp_path / "edited.py", edited)).story(D, L, False)
    site = poutine.trace(story.model).get_trace(x).nodes["x"]
    assert isinstance(site["fn"].base_dist, dist.StudentT)
    usual = import_module("pyro_moe.templates.vae").Story(D, L, False)
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
    assert str(caught.value) == f"expected a file that is not there yet; got {path}"
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("path", "template", "message"),
    [
        ("my.txt", "gmm", "expected the name of a file that ends in .py; got my.txt"),
        ("my.py", "tree", r"expected a template in \('gmm', .*\); got 'tree'"),
        ("file/my.py", "gmm", r"expected a file that .*; got file.*"),
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
    text = Path(import_module("pyro_moe.templates.gmm").__file__).read_text()
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


def broken(tmp_path, old, new, template="dvmoe"):
    """A template with an error in it, and the number of the line where it is."""
    text = Path(import_module(f"pyro_moe.templates.{template}").__file__).read_text()
    lines = text.splitlines()
    (place,) = (i for i, line in enumerate(lines) if old in line and "# " not in line)
    lines[place] = lines[place].replace(old, new)
    return written(tmp_path / "my.py", "\n".join(lines)), place + 1


def explained(path, x, y):
    try:
        story = story_file.read(path).story(D, 2, K, L, False)
        pyro_moe.fit(story.model, story.guide, (x, y), epochs=1, progress=False)
    except Exception as error:
        return story_file.explain(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from torch import nn", "from torch import nm", "got ImportError in line {}: cannot .*"),
        ("super().__init__()", "super().__init__(1 / 0)", "got ZeroDivisionError in line {}: .*"),
        ("self.decoder(z)", "self.decode(z)", "got AttributeError in line {}: .* 'decode'.*"),
        ("loc = self", "loc = mean; loc = self", "got NameError in line {}: .*'mean'.*"),
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
        ("self.experts(x)), y)", "self.experts(x)), y[:, :1])", "expected y with 2 .*; got 1"),
    ],
)
def test_the_librarys_own_words_are_kept(old, new, message, tmp_path, x, y):
    """Also where Pyro raised another error in the place of the first."""
    path, line = broken(tmp_path, old, new)
    where = re.escape(str(path))
    assert re.fullmatch(f"{message}, in line {line} of {where}", explained(path, x, y))


def test_errors_of_others_are_not_explained(x):
    story = import_module("pyro_moe.templates.gmm").Story(D + 1, K)
    with pytest.raises(DataError) as caught:
        pyro_moe.fit(story.model, story.guide, x)
    assert story_file.explain(caught.value) is None
