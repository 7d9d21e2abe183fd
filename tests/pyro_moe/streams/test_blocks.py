"""Rows that come in blocks, on disk, give the fit that the same rows in memory give."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_moe
from pyro_moe import DataError, evaluation, models, runs
from pyro_moe.inference.rows import OnDisk, on_disk
from pyro_moe.streams import Parquet, blocks

N = 400


@pytest.fixture(autouse=True)
def _all_on_disk(monkeypatch):
    monkeypatch.setattr(on_disk, "IN_MEMORY", 0)
    monkeypatch.setattr(blocks, "IN_MEMORY", 0)
    monkeypatch.setattr(on_disk, "READ", 2**17)


def table():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    return x, x[:, :1].abs() + 0.1 * torch.randn(N, 1, generator=generator)


class Rows(Dataset):
    """Rows read by index, which keeps the numbers that were asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return N

    def __getitem__(self, number):
        self.asked.append(number)
        return tuple(column[number] for column in table())


class Stream(IterableDataset):
    def __init__(self, size=None):
        self.size = size

    def __iter__(self):
        x, y = table()
        if self.size is None:
            return zip(x, y, strict=True)
        return zip(x.split(self.size), y.split(self.size), strict=True)


def memory_map(folder, column, name):
    np.save(folder / name, column.numpy())
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def parquet(folder):
    x, y = table()
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y[:, 0]})
    frame.to_parquet(folder / "my.parquet", row_group_size=150)
    return Parquet(folder / "my.parquet", target=["y"], rows=64)


SOURCES = {
    "dataset": lambda folder: TensorDataset(*table()),
    "rows": lambda folder: Stream(),
    "blocks": lambda folder: Stream(90),
    "loader": lambda folder: DataLoader(TensorDataset(*table()), batch_size=90),
    "maps": lambda folder: tuple(
        memory_map(folder, c, n) for c, n in zip(table(), "xy", strict=True)
    ),
    "parquet": parquet,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_has_the_same_rows(source, tmp_path):
    x, y = blocks.on_disk(SOURCES[source](tmp_path))
    assert isinstance(x, OnDisk)
    assert torch.equal(x[:], table()[0])
    assert torch.equal(y[:], table()[1])


STORIES = {
    "gmm by em": (lambda: models.GMM(2, 3), {"loss": "em"}),
    "me by em": (lambda: models.ME(2, 1, 3), {"loss": "em"}),
    "gmmmoe by em": (lambda: models.GMMMoE(2, 1, 3), {"loss": "em", "restarts": 3}),
    "deepmoe": (
        lambda: models.DeepMoE(2, 1, 3, hidden=(4,)),
        {"initialize": "random", "validation": 0.2},
    ),
    "dvmoe": (lambda: models.DVMoE(2, 1, 3, 2, hidden=(4,)), {}),
}


@pytest.mark.parametrize("name", STORIES)
def test_rows_on_disk_give_the_fit_of_rows_in_memory(name):
    make, options = STORIES[name]
    fits = []
    columns = table()[:1] if name == "gmm by em" else table()
    for data in (columns, TensorDataset(*columns)):
        torch.manual_seed(0)
        story = make()
        options = {"epochs": 3, "progress": False, "prior": "weak", **options}
        fits.append(pyro_moe.fit(story.model, story.guide, data, **options))
    one, other = fits
    for key, value in one.parameters().items():
        torch.testing.assert_close(other.parameters()[key], value, rtol=1e-9, atol=1e-11)
    assert one.num_rows == other.num_rows == N
    torch.testing.assert_close(one.training.mean, other.training.mean)


@pytest.mark.parametrize("loss", ["em", "marginal"])
@pytest.mark.parametrize("names", ["weights", "labels", "weights labels", "groups weights"])
def test_rows_on_disk_have_annotations(names, loss):
    known = {
        "weights": torch.arange(N) % 3 + 0.5,
        "labels": torch.where(torch.arange(N) % 5 == 0, torch.arange(N) % 2, -1),
        "groups": torch.arange(N) // 2,
    }
    options = {name: known[name] for name in names.split()}
    fits = []
    for data in (table(), TensorDataset(*table())):
        torch.manual_seed(0)
        story = models.ME(2, 1, 2)
        options |= {"epochs": 3, "loss": loss, "progress": False, "prior": "weak", "restarts": 1}
        fits.append(pyro_moe.fit(story.model, story.guide, data, **options))
    one, other = fits
    for key, value in one.parameters().items():
        torch.testing.assert_close(other.parameters()[key], value, rtol=1e-5, atol=1e-8)


def streamed(**options):
    story = models.ME(2, 1, 2)
    options = {"epochs": 2, "progress": False, **options}
    return pyro_moe.fit(story.model, story.guide, TensorDataset(*table()), **options)


def test_a_dataset_is_read_by_index_once():
    rows = Rows()
    story = models.ME(2, 1, 2)
    pyro_moe.fit(story.model, story.guide, rows, epochs=2, progress=False)
    assert rows.asked == list(range(N))


def test_a_fit_keeps_a_sample_of_many_rows(monkeypatch):
    monkeypatch.setattr(pyro_moe.fitting.training, "chosen", lambda data, seed: slice(9))
    fit = streamed()
    assert [type(column) for column in fit.data] == [torch.Tensor] * 2
    assert len(fit.data[0]) == 9
    assert fit.num_rows == N
    assert "keeps a sample of its training rows" in repr(fit)
    assert pickle.loads(pickle.dumps(fit)).num_rows == N  # noqa: S301
    with pytest.raises(DataError, match="the fit keeps a sample of its training rows; got none"):
        fit.rows()
    with pytest.raises(ValueError, match="got one of a run folder, or of rows on disk"):
        fit.resume()
    assert evaluation.predict(fit, table()[0]).mean.shape == (N, 1)


def test_a_streamed_fit_is_saved_and_restored(tmp_path):
    fit = streamed()
    arguments = {"x_dim": 2, "y_dim": 1, "num_components": 2}
    runs.save(fit, tmp_path, story_name="me", story_arguments=arguments, data_name="my")
    again, _, _ = runs.restore(tmp_path, pyro_moe.Rows(*table()))
    assert again.restored is None  # the fingerprint is that of these rows
    assert again.num_rows == N


def test_a_fit_that_was_stopped_goes_on(tmp_path):
    whole = streamed(epochs=4, tolerance=-1.0)
    streamed(
        epochs=4, tolerance=-1.0, checkpoint=tmp_path, callback=lambda fit: len(fit.history) == 2
    )
    again = streamed(epochs=4, tolerance=-1.0, resume=tmp_path)
    assert again.parameters().keys() == whole.parameters().keys()
    for key, value in whole.parameters().items():
        torch.testing.assert_close(again.parameters()[key], value, rtol=0, atol=0)


class Bad(IterableDataset):
    def __init__(self, *items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


BAD = {
    "no rows": (Bad(), "expected rows of data; got none"),
    "three dimensions": (
        Bad(torch.zeros(2, 2, 2)),
        "expected rows x of shape (D,), or blocks (B, D); got 3 dimensions",
    ),
    "infinite": (
        Bad(torch.zeros(3, 1), torch.tensor([[0.0], [torch.inf]])),
        "expected finite values in x; got inf in row 1 (1 of 2 rows have such values), "
        "in the block from row 3 on",
    ),
    "widths": (
        Bad(torch.zeros(3, 1), torch.zeros(3, 2)),
        "expected blocks of float32 (1,); got float32 (2,) from row 3 on",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_bad_blocks_are_named(data, message):
    with pytest.raises(DataError) as caught:
        blocks.on_disk(data)
    assert str(caught.value) == message


def test_a_map_in_memory_of_its_own_keeps_its_changes(tmp_path):
    np.save(tmp_path / "x.npy", table()[0].numpy())
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[:] = 1.0
    (x,) = blocks.on_disk(changed)
    assert x[:].eq(1.0).all()
    assert x[torch.arange(N)].eq(1.0).all()


def test_parquet_names_its_columns_and_what_is_missing(tmp_path):
    fit_of = parquet(tmp_path)
    assert (fit_of.columns, fit_of.targets) == (("a", "b"), ("y",))
    story = models.ME(2, 1, 2)
    fit = pyro_moe.fit(story.model, story.guide, fit_of, epochs=1, progress=False)
    assert (fit.columns, fit.targets) == (("a", "b"), ("y",))
    with pytest.raises(DataError, match=r"expected column 'c' in .*; got a, b, y"):
        Parquet(tmp_path / "my.parquet", target="c")
    with pytest.raises(DataError, match="expected a Parquet file at"):
        Parquet(tmp_path / "other.parquet")
