import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pyro_moe.inference import EM, em
from pyro_moe.inference.handlers import UNANNOTATED, Annotations
from pyro_moe.inference.objectives import objective
from pyro_moe.inference.prior import WEAK
from pyro_moe.inference.svi import SVI
from pyro_moe.models import GMM, ME, DeepMoE, GMMMoE, HierarchicalME
from pyro_moe.processes import Processes

N, D = 25, 2  # an odd number, so that the shares of two processes differ
WORKER = """
import sys
import torch
import torch.distributed as group
sys.path.insert(0, sys.argv[1])
import test_processes
rank, meeting = int(sys.argv[2]), f"file://{sys.argv[3]}/meeting"
torch.set_num_threads(1)
group.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
test_processes.worker(rank, sys.argv[3])
group.destroy_process_group()
"""


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x, x[:, :1].abs()


def run():
    torch.manual_seed(1)
    story = DeepMoE(D, 1, 2, hidden=(3,)).double()
    elbo, treatment = objective("marginal")
    settings = {"learning_rate": 1e-2, "temperature": 1.0, "seed": 0}
    return SVI(
        story.model, story.guide, data(), elbo, treatment, epochs=3, batch_size=9, **settings
    )


# Stories, their targets, and iterations. L-BFGS makes much of rounding errors, so there is one.
BY_EM = {
    "mixture": (lambda: GMM(D, 2), None, 3),
    "tied": (lambda: GMMMoE(D, 1, 2, covariance="tied"), None, 3),
    "normal": (lambda: ME(D, 1, 2), None, 3),
    "full": (lambda: ME(D, 2, 2, experts="normal-full"), lambda y: torch.cat([y, y**2], 1), 3),
    "poisson": (lambda: ME(D, 1, 2, experts="poisson"), lambda y: y.round().long(), 3),
    "classes": (lambda: ME(D, 2, 2, experts="categorical"), lambda y: y[:, 0].gt(1).long(), 3),
    "tree": (lambda: HierarchicalME(D, 1, (2, 2)), None, 1),
    "wide gate": (lambda: ME(160, 1, 2), None, 1),
}


ANNOTATED = {
    "weights": Annotations(weights=torch.arange(N) % 3 + 0.5),
    "labels": Annotations(
        weights=torch.arange(N) % 2 + 1.0,
        labels=torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [0.3, 0.7]]).repeat(9, 1)[:N],
    ),
    "groups": Annotations(groups=torch.arange(N) // 2),
}


def by_em(name):
    """Parameters and objectives of EM, with shared rows in a process group."""
    annotations = ANNOTATED.get(name, UNANNOTATED)
    name = "normal" if name in ANNOTATED else name
    make, target, iterations = BY_EM[name]
    x, y = data()
    if name == "wide gate":
        x = (x[:, :1] * torch.arange(1, 161)).sin()
    columns = (x,) if name == "mixture" else (x, y if target is None else target(y))
    torch.manual_seed(1)
    story = make().double()
    story.adapt(*columns)
    run = EM(story.model, story.guide, columns, iterations, 0, WEAK, -1.0, annotations)
    list(run)
    return dict(run.parameters()), [record["objective"] for record in run.history]


def worker(rank, folder):
    """What each of the two processes does."""
    em.SHARED = 0
    torch.save({name: by_em(name) for name in (*BY_EM, *ANNOTATED)}, f"{folder}/em-{rank}.pt")
    shared = run()
    list(shared)
    torch.save((dict(shared.parameters()), shared.history), f"{folder}/{rank}.pt")
    other = run()
    other.data = tuple(column[rank:] for column in other.data)
    with pytest.raises(ValueError, match="expected the same rows in all 2 processes; got others"):
        list(other)
    processes = Processes.running()
    assert (processes.rank, processes.size) == (rank, 2)
    assert processes.agree(float(rank)) == 0.0
    values = [torch.full((2,), float(rank)), torch.tensor(rank, dtype=torch.float64)]
    processes.add(values)
    assert_close(values, [torch.ones(2), torch.tensor(1.0, dtype=torch.float64)])


def test_two_processes_train_as_one(tmp_path):
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", WORKER, folder]
    both = [
        subprocess.Popen([*arguments, str(rank), str(tmp_path)], env=environment)  # noqa: S603
        for rank in range(2)
    ]
    assert [each.wait(timeout=120) for each in both] == [0, 0]
    alone = run()
    list(alone)
    for rank in range(2):
        parameters, history = torch.load(tmp_path / f"{rank}.pt")
        assert_close(parameters, dict(alone.parameters()), rtol=1e-9, atol=1e-10)
        for one, two in zip(history, alone.history, strict=True):
            assert one["elbo"] == pytest.approx(two["elbo"], rel=1e-9)
    by_rank = [torch.load(tmp_path / f"em-{rank}.pt") for rank in range(2)]
    for name in (*BY_EM, *ANNOTATED):
        parameters, objectives = by_em(name)
        for found, history in (each[name] for each in by_rank):
            assert history == pytest.approx(objectives, rel=1e-7, abs=1e-7)
            assert_close(found, parameters, rtol=1e-3, atol=1e-3)
        assert_close(*(each[name][0] for each in by_rank), rtol=0, atol=0)


def test_few_rows_are_not_shared():
    run = EM(*[GMM(D, 2).double().model] * 2, data()[:1], 1, 0)
    assert run.e_step()[0].shape == (N, 2)
    assert Processes.sharing() == Processes(0, 1)
    assert [Processes(rank, 3).part(7) for rank in range(3)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 7),
    ]


def test_one_process_keeps_its_rows_and_numbers():
    processes = Processes.running()
    rows = torch.arange(5)
    assert processes == Processes(0, 1)
    assert_close(processes.share(rows), rows)
    assert_close(Processes(1, 2).share(rows), torch.tensor([1, 3]))
    values = [torch.ones(2)]
    processes.add(values)
    assert_close(values, [torch.ones(2)])
    assert processes.agree(3.0) == 3.0


def test_nothing_is_launched_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Processes.launched() as processes:
        assert processes == Processes(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with Processes.launched("cpu") as processes:
        assert processes == Processes(0, 1)


def test_torchrun_launches_a_group(monkeypatch, tmp_path):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr("torch.distributed.init_process_group", asked.append)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: asked.append("end"))
    with Processes.launched("cpu"):
        assert asked == ["gloo"]
    assert asked == ["gloo", "end"]
