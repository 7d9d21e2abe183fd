"""A tree of gates: the check sees what a flat one cannot say, and no more with the tree."""

import pytest
from torch.testing import assert_close

from pyro_moe import criticism, evaluation, models
from pyro_moe.inference.programs import modules


@pytest.fixture(scope="module")
def example(load):
    return load("hierarchical_gate")


@pytest.fixture(scope="module")
def fits(example):
    return example.fitted(example.pumps(3000, seed=1), epochs=20)


@pytest.fixture(scope="module")
def held_out(example):
    return example.pumps(1500, seed=2)


@pytest.fixture(scope="module")
def checks(example, fits, held_out):
    own = {"y": {"first pump": example.first_pump}}
    return {
        name: criticism.check(fit, held_out, statistics=own, num_replicates=100)
        for name, fit in fits.items()
    }


def test_in_a_flat_gate_extreme_pressure_calls_the_first_pump(checks):
    surprises = checks["flat"].surprises().set_index("statistic").loc[["first pump"]]
    overall = surprises[surprises["component"].isna()]
    assert (overall["replicated"] > overall["observed"] + 0.1).all()
    assert len(overall) == 1


def test_in_a_tree_it_does_not(checks):
    assert checks["tree"].surprises().empty


def test_new_rows_are_likelier_with_the_tree(fits, held_out):
    table = criticism.compare(fits, held_out)
    assert table.index.tolist() == ["tree", "flat"]
    assert table["difference"].iloc[1] < -3 * table["difference_standard_error"].iloc[1]


def test_leaves_of_a_branch_sum_to_the_branch(example, held_out):
    tree = example.TreeGate()
    leaves, branches = tree(held_out.x).probs, tree.root(held_out.x).probs
    assert_close(leaves.reshape(-1, 2, 2).sum(-1), branches)
    within = leaves.reshape(-1, 2, 2)[:, 1] / branches[:, 1:]
    assert_close(within, tree.leaves[1](held_out.x).probs)


def test_the_tree_is_the_librarys_hierarchical_mixture(fits, held_out):
    """With the same parameters `models.HierarchicalME` gives the same density of y."""
    fit = fits["tree"]
    story, tree = sorted(modules(fit.programs.model), key=lambda part: not hasattr(part, "experts"))
    hierarchical = models.HierarchicalME(x_dim=3, y_dim=1, num_components=(2, 2))
    hierarchical.units.load_state_dict(story.units.state_dict())
    hierarchical.gate.load_state_dict(tree.root.state_dict())
    for i, branch in enumerate(hierarchical.experts.experts):
        branch.gate.load_state_dict(tree.leaves[i].state_dict())
        state = story.experts.state_dict()
        own = ("network.weight", "network.bias", "log_scale")
        leaves = {name: state[name][2 * i : 2 * i + 2] for name in own}
        branch.experts.load_state_dict(state | leaves)
    expected = hierarchical(held_out.x).log_prob(held_out.y).detach().double()
    density = evaluation.predict(fit, held_out.x).log_prob(held_out.y)
    assert_close(density, expected, rtol=1e-4, atol=1e-4)
    assert_close(evaluation.elbo(fit, held_out), expected, rtol=1e-4, atol=1e-4)
