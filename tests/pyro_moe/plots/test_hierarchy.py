"""The picture of a hierarchy: a tree of components, in the colors of their groups."""

import pytest
import torch
from matplotlib.colors import to_rgba

import pyro_moe
from pyro_moe import DataError, Rows, SiteError, datasets, models, plots
from pyro_moe.plots import style


def as_it_is(story, rows):
    return pyro_moe.fit(
        story.model, story.guide, rows.x, epochs=0, initialize="keep", progress=False
    )


@pytest.fixture(scope="module")
def plane():
    """Rows of five normals in two groups, and a story whose gate and codes know them."""
    centers = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [30.0, 30.0], [33.0, 30.0]])
    labels = torch.arange(50) % 5
    draw = torch.Generator().manual_seed(0)
    rows = Rows(centers[labels] + 0.3 * torch.randn(50, 2, generator=draw), labels=labels)
    gate = torch.nn.Linear(2, 5)  # the nearest center has the largest logit
    encoder = torch.nn.Linear(2, 4)
    story = models.HierarchicalDMVAE(2, 2, 5, gate=gate, encoder=encoder)
    with torch.no_grad():
        gate.weight.copy_(40.0 * centers)
        gate.bias.copy_(-20.0 * centers.square().sum(-1))
        encoder.weight.copy_(torch.eye(4, 2))
        encoder.bias.zero_()
        story.prior.maximize(rows.x, torch.eye(5)[labels])
    return rows, as_it_is(story, rows)


def leaves(axes):
    """The numbers and the colors of components, from top to bottom."""
    ticks = [tick.label2 for tick in axes.yaxis.get_major_ticks()]
    return [int(t.get_text()) for t in ticks], [to_rgba(t.get_color()) for t in ticks]


def test_components_of_a_group_are_side_by_side_in_one_color(plane):
    rows, fit = plane
    left, right = plots.hierarchy(fit, rows).axes
    order, colors = leaves(left)
    assert sorted(order) == list(range(5))
    group = {k: int(fit.story.prior.log_memberships()[k].argmax()) for k in range(5)}
    assert colors == [to_rgba(style.PALETTE[group[k]]) for k in order]
    assert {*order[:2]} == {3, 4} or {*order[-2:]} == {3, 4}
    heights = sorted(max(line.get_xdata()) for line in left.lines)
    assert len(heights) == 4
    assert heights[-1] > 3 * heights[-2]  # the groups are far from each other
    (drawn,) = right.collections
    expected = [to_rgba(style.PALETTE[group[int(k)]], 0.8) for k in rows.labels]
    assert [tuple(c) for c in drawn.get_facecolors()] == expected


def test_images_are_in_the_rows_of_their_components():
    rows = datasets.digits()[1].subsample(50, seed=0)
    story = models.HierarchicalDMVAE(64, 3, 4, num_groups=2, hidden=(8,))
    fit = as_it_is(story, rows)
    left, right = plots.hierarchy(fit, rows).axes
    order, _ = leaves(left)
    grid = right.images[0].get_array()
    assert grid.shape == (10 * len(order), 80, 3)
    components = fit.story.gate(rows.x).logits.argmax(-1)
    scaled = 1.0 - rows.x / rows.x.max()
    for place, component in enumerate(order):
        first = torch.as_tensor(grid[10 * place + 1 : 10 * place + 9, 1:9, 0])
        members = scaled[components == component].reshape(-1, 8, 8)
        assert (members - first).abs().amax((1, 2)).min() < 1e-6


def test_a_story_of_one_layer_has_no_hierarchy(plane):
    rows, _ = plane
    fit = as_it_is(models.DMVAE(2, 2, 3, hidden=(4,)), rows)
    with pytest.raises(SiteError, match=r"^expected a site 'c1' in the guide or the model; got"):
        plots.hierarchy(fit, rows)


def test_rows_are_images_or_in_the_plane():
    rows = Rows(torch.randn(20, 3))
    fit = as_it_is(models.HierarchicalDMVAE(3, 2, 3, hidden=(4,)), rows)
    with pytest.raises(DataError, match=r"^expected images, or x with 2 columns; got 3 columns$"):
        plots.hierarchy(fit, rows)
