import pytest
import torch

from pyro_moe.inference.rows import OnDisk, empty, on_disk, sample, shuffled, stored, without
from pyro_moe.inference.rows import order as orders


@pytest.fixture(autouse=True)
def _all_on_disk(monkeypatch):
    monkeypatch.setattr(on_disk, "IN_MEMORY", 0)
    monkeypatch.setattr(on_disk, "READ", 2**17)


X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


ORDER = torch.tensor([19, 0, 7])


def rows():
    (found,) = stored((part,) for part in X.split(20))
    return found


READ = {
    "slice": lambda x: x[3:9],
    "step": lambda x: x[::7],
    "one": lambda x: x[4],
    "numbers": lambda x: x[torch.arange(49, 0, -3)],
    "from the end": lambda x: x[torch.tensor([-1, 3, -50, 3])],
    "no numbers": lambda x: x[torch.arange(0)],
    "pairs": lambda x: x[torch.tensor([[3, 4], [7, 0]])],
    "many": lambda x: x[torch.arange(10_000) % 50],
    "of a part": lambda x: (x.part(slice(10, 30)) if type(x) is OnDisk else x[10:30])[ORDER],
    "mask": lambda x: x[torch.arange(50) % 2 == 0],
    "split": lambda x: torch.cat(list(x.split(7))),
    "mean": lambda x: x.mean(0),
    "sum": lambda x: 1.0 + x,
    "double": lambda x: x.double()[:],
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_what_is_read_is_in_memory(read):
    found = read(rows())
    assert type(found) is torch.Tensor
    assert torch.equal(found, read(X))


def test_numbers_of_no_row():
    with pytest.raises(IndexError, match=r"expected rows below 50; got -51"):
        rows()[torch.tensor([0, -51])]


def test_rows_stay_on_disk_in_another_type():
    found = rows().double()
    assert isinstance(found, OnDisk)
    assert found.dtype == torch.float64
    assert found.to(torch.float64) is found


def test_rows_are_written_and_changed():
    found = empty((50, 3), torch.float32)
    for first in range(0, 50, 8):
        found[first : first + 8] = X[first : first + 8]
    found.change(lambda part: 2 * part)
    assert torch.equal(found[:], 2 * X)
    assert torch.equal(found[ORDER], 2 * X[ORDER])
    assert torch.equal(found.part(slice(10, 20))[:], 2 * X[10:20])


@pytest.mark.parametrize("held", [[], [0], [3, 49], [19, 20, 21]])
def test_rows_that_are_not_held_out(held):
    numbers = torch.tensor(held, dtype=torch.int64)
    expected = X[[i for i in range(50) if i not in held]]
    assert torch.equal(without(X, numbers)[:], expected)
    assert torch.equal(without(rows(), numbers)[:], expected)


def test_a_few_rows_are_in_the_order_of_the_generator():
    torch.manual_seed(0)
    (order,) = shuffled(50, 1)
    torch.manual_seed(0)
    assert torch.equal(order, torch.randperm(50))


def test_windows_have_every_row_once(monkeypatch):
    monkeypatch.setattr(orders, "WINDOW", 256)
    found = list(shuffled(1000, 3, 4))
    assert [len(part) for part in found[:-1]] == [256] * (len(found) - 1)
    assert torch.equal(torch.cat(found).sort().values, torch.arange(1000))
    again = torch.cat(list(shuffled(1000, 3, 4)))
    assert torch.equal(torch.cat(found), again)
    assert not torch.equal(again, torch.cat(list(shuffled(1000, 3, 5))))


def test_a_sample_has_rows_of_all_columns():
    x, number = sample((X, torch.arange(50)), seed=0, most=20)
    assert len(x) <= 20
    assert torch.equal(x, X[number])
    assert sample((X,), seed=0)[0].data_ptr() == X.data_ptr()
