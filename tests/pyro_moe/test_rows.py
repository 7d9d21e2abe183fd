"""Every kind of data that users hold becomes tensors, or an error that says what to mend."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pyro_moe import DataError
from pyro_moe.rows import Rows, as_tensors, column_names, has_target, looks_like_classes

X = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
CLASSES = torch.tensor([0, 2, 1])
FRAME = pd.DataFrame({"a": [0.0, 2.0, 4.0], "b": [1, 3, 5]})


class Squares(Dataset):
    """Rows (x, y) of a numpy array and a Python number."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return np.array([row, row + 1.0]), row**2


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(X)


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.double(),
        X.long(),
        X.clone().requires_grad_(),
        X.to_sparse(),
        scipy.sparse.csr_matrix(X.numpy()),
        scipy.sparse.coo_array(X.numpy()),
        FRAME.astype(pd.SparseDtype(float, 0.0)),
        FRAME.astype({"b": pd.SparseDtype(int)}),
        FRAME.astype({"a": pd.SparseDtype(float), "b": pd.SparseDtype(int)}),
        FRAME.astype("category"),
        np.ma.array(X.numpy()),
        list(np.ma.array(X.numpy())),
        X.numpy(),
        X.double().numpy(),
        X.numpy().astype(">f8"),
        X.numpy().astype(np.longdouble),
        X.numpy().astype(np.uint16),
        X.numpy()[::-1][::-1],
        X.tolist(),
        FRAME,
        FRAME.set_index(pd.Index([7, 8, 9])),
        FRAME.astype({"b": "Int64"}),
        FRAME.astype(object),
        FRAME.map(Decimal),
        Rows(X),
        pytest.param(TensorDataset(X), id="TensorDataset"),
        (X,),
        [X],
    ],
    ids=str,
)
def test_every_kind_of_x(data: Any) -> None:
    (x,) = as_tensors(data)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    torch.testing.assert_close(x, X, rtol=0, atol=0)


@pytest.mark.parametrize(
    "data",
    [
        (X, CLASSES),
        [X, CLASSES],
        (X.numpy(), CLASSES.numpy().astype(np.int8)),
        (X.numpy(), CLASSES.to(torch.uint8)),
        (FRAME, pd.Series([0, 2, 1])),
        (FRAME, pd.Series([0, 2, 1], index=[7, 8, 9], dtype="Int64")),
        (FRAME, pd.Series([0, 2, 1], dtype=object)),
        (FRAME, pd.Series([0, 2, 1], dtype="category")),
        (FRAME, [0, 2, 1]),
        Rows(X, CLASSES),
        Rows(X, CLASSES, labels=CLASSES, image_shape=(1, 1, 2)),
        pytest.param(TensorDataset(X, CLASSES), id="TensorDataset"),
    ],
    ids=str,
)
def test_whole_numbers_in_y_stay_whole(data: Any) -> None:
    x, y = as_tensors(data)
    torch.testing.assert_close(x, X, rtol=0, atol=0)
    assert y.dtype == torch.int64
    assert y.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    "y", [[True, False, True], np.array([True, False, True]), pd.Series([1, 0, 1], dtype="boolean")]
)
def test_yes_or_no_becomes_one_or_zero(y: Any) -> None:
    result = as_tensors((X, y))[1]
    assert result.dtype == torch.int64
    assert result.tolist() == [1, 0, 1]


MASKED = np.ma.masked_equal([0, -9, 1], -9)


class Masked(Squares):
    """Rows whose features are masked arrays."""

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return MASKED[row : row + 1], row


@pytest.mark.parametrize(
    "y",
    [
        MASKED,
        MASKED.astype(float),
        MASKED.astype(object),
        [MASKED[:1], MASKED[1:2], MASKED[2:]],
        torch.tensor([0.0, torch.nan, 1.0]),
        [0, None, 1],
        [Decimal(0), Decimal("NaN"), Decimal(1)],
        pd.Series([0, pd.NaT, 1], dtype=object),
        *(
            pd.Series([0, None, 1], dtype=object).astype(kind)
            for kind in ("Int64", "Float64", "boolean", "category", "object", "Int8")
        ),
        pd.Series([0.0, None, 1.0], dtype=pd.SparseDtype(float)),
    ],
    ids=repr,
)
def test_missing_targets_of_every_kind(y: Any) -> None:
    _, result = as_tensors((X, y), missing_targets=True)
    expected = torch.tensor([0.0, torch.nan, 1.0]).reshape(result.shape)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert has_target(y).tolist() == [True, False, True]
    message = r"^expected finite values in y; got nan in row 1 \(1 of 3 rows have such values\)$"
    with pytest.raises(DataError, match=message):
        as_tensors((X, y))


@pytest.mark.parametrize("kind", ["int64[pyarrow]", "double[pyarrow]", "bool[pyarrow]"])
def test_missing_targets_of_arrow(kind: str) -> None:
    pytest.importorskip("pyarrow")
    y = pd.Series([0, None, 1], dtype=object).astype(kind)
    assert has_target(as_tensors((X, y), missing_targets=True)[1]).tolist() == [True, False, True]


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_tensors() -> None:
    mask = torch.tensor([True, False, True])
    y = torch.masked.masked_tensor(CLASSES, mask)
    assert torch.equal(has_target(as_tensors((X, y), missing_targets=True)[1]), mask)


def test_whole_numbers_beyond_those_of_doubles() -> None:
    y = [2**60 + 1, 0, -(2**60) - 1]
    assert as_tensors((X, np.array(y, dtype=object)))[1].tolist() == y
    for large in (np.array([2**64 - 1, 0, 1], np.uint64), [2**64 - 1, 0, 1]):
        assert as_tensors((X, large), dtype=torch.float64)[1].tolist() == [2.0**64, 0, 1]


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([0, 1, 2, 1], True),
        ([2, 3, 1, 1], True),
        ([0.0, 1.0, torch.nan, 1.0], True),
        ([True, False, True], True),
        ([-1, 1, 1], True),  # two values
        ([0, 1, 2], False),  # no value repeats
        ([2, 3, 4, 4], False),  # starts at neither 0 nor 1
        ([0, 1, 3, 3], False),  # a gap
        ([0.0, 0.5, 1.0, 1.0], False),
        ([1, 1, 1], False),
        ([*range(10), 0], True),
        ([*range(11), 0], False),
        ([torch.nan, torch.nan], False),
        ([[0.5, 0], [0.7, 1], [0.9, 1]], True),
    ],
)
def test_targets_that_look_like_classes(y: Any, expected: bool) -> None:
    assert looks_like_classes(torch.tensor(y)) is expected


def test_real_y_takes_the_type_asked_for_and_keeps_its_shape() -> None:
    for shape in [(3,), (3, 1), (3, 4)]:
        y = torch.ones(shape, dtype=torch.float16)
        x, result = as_tensors((X, y), dtype=torch.float64)
        assert (x.dtype, result.dtype) == (torch.float64, torch.float64)
        assert result.shape == shape


def test_frame_of_numbers_and_yes_or_no() -> None:
    (x,) = as_tensors(FRAME.assign(c=[True, False, True]))
    assert x.tolist() == [[0, 1, 1], [2, 3, 0], [4, 5, 1]]


def test_dataset_of_pairs_of_other_things_than_tensors() -> None:
    x, y = as_tensors(Squares())
    assert x.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert y.tolist() == [0, 1, 4]


def test_array_is_copied() -> None:
    array = X.numpy().copy()
    (x,) = as_tensors(array)
    array[:] = -1
    torch.testing.assert_close(x, X)


def test_rows_have_a_length() -> None:
    assert len(Rows(X)) == 3


NAN_X = np.array([[0.0, 1.0], [np.nan, 3.0], [4.0, np.nan]])
BAD = {
    "nan": (NAN_X, "expected finite values in x; got nan in row 1 (2 of 3 rows have such values)"),
    "inf": (
        torch.tensor([[0.0], [1.0], [-torch.inf]]),
        "expected finite values in x; got -inf in row 2 (1 of 3 rows have such values)",
    ),
    "too large": (
        np.array([[1.0], [1e300]]),
        "expected finite values in x; got 1e+300, which torch.float32 cannot hold, in row 1 "
        "(1 of 2 rows have such values)",
    ),
    "nan in y": (
        (X, [0.0, 1.0, np.nan]),
        "expected finite values in y; got nan in row 2 (1 of 3 rows have such values)",
    ),
    "nan in matrix y": (
        (X, [[0.0, 1.0], [np.nan, 1.0], [1.0, 1.0]]),
        "expected finite values in y; got nan in row 1 (1 of 3 rows have such values)",
    ),
    "missing in frame": (
        FRAME.assign(b=pd.array([1, None, 2], dtype="Int64")),
        "expected finite values in x; got nan in row 1, column 'b' (1 of 3 rows have such values)",
    ),
    "missing in mixed frame": (
        FRAME.assign(b=[True, None, False]),
        "expected finite values in x; got nan in row 1, column 'b' (1 of 3 rows have such values)",
    ),
    "masked": (
        np.ma.masked_equal([[0, 1], [2, -9], [4, 5]], -9),
        "expected finite values in x; got nan in row 1 (1 of 3 rows have such values)",
    ),
    "masked rows": (
        Masked(),
        "expected finite values in x; got nan in row 1 (1 of 3 rows have such values)",
    ),
    "masked text": (
        np.ma.array([["a"], ["b"]], mask=[[True], [False]]),
        "expected numbers in x; got 'b' in row 1",
    ),
    "masked records": (
        np.ma.array([(1, 2)], mask=[(True, False)], dtype=[("a", int), ("b", int)]),
        "expected numbers in x; got '(1, 2)' in row 0",
    ),
    "too large in Rows": (
        Rows(X[:1], torch.tensor([[1.0, 1e300]], dtype=torch.float64), targets=("u", "v")),
        "expected finite values in y; got 1e+300, which torch.float32 cannot hold, in row 0, "
        "column 'v' (1 of 1 rows have such values)",
    ),
    "one dimension": (np.zeros(3), "expected x of shape (N, D); got shape (3,)"),
    "three dimensions": (
        torch.zeros(2, 3, 4),
        "expected x of shape (N, D); got shape (2, 3, 4)",
    ),
    "a number": (3.0, "expected x of shape (N, D); got shape ()"),
    "none": (None, "expected x of shape (N, D); got shape ()"),
    "no rows": (FRAME[:0], "expected x of shape (N, D); got shape (0, 2)"),
    "no columns": (torch.zeros(3, 0), "expected x of shape (N, D); got shape (3, 0)"),
    "a list of vectors": (list(X), "expected x of shape (N, D); got shape (2,)"),
    "short y": (
        (X, torch.zeros(2, 4)),
        "expected as many rows in y as in x, 3; got shape (2, 4)",
    ),
    "a number as y": ((X, 1), "expected as many rows in y as in x, 3; got shape ()"),
    "short third": (
        (X, CLASSES, X[:2]),
        "expected as many rows in column 2 as in x, 3; got shape (2, 2)",
    ),
    "empty y": (
        (X, torch.zeros(3, 0)),
        "expected y of shape (N,) or (N, M); got shape (3, 0)",
    ),
    "text column": (
        FRAME.assign(c=["1", "Oslo", "Rome"]),
        "expected numbers in x; got '1' in row 0, column 'c'",
    ),
    "text array": ([["a", "b"]], "expected numbers in x; got 'a' in row 0"),
    "text categories": (
        pd.DataFrame({"a": pd.Categorical(["u", "v"])}),
        "expected numbers in x; got 'u' in row 0, column 'a'",
    ),
    "dates": (
        np.array([["2020-01-02"]], dtype="datetime64[D]"),
        "expected numbers in x; got '2020-01-02' in row 0",
    ),
    "text y": ((FRAME, pd.Series(["u", "v", "w"])), "expected numbers in y; got 'u' in row 0"),
    "complex tensor": (X.to(torch.complex64), "expected real numbers in x; got torch.complex64"),
    "complex array": (X.numpy() + 1j, "expected numbers in x; got '1j' in row 0"),
    "durations": (np.zeros((2, 1), "m8[s]"), "expected numbers in x; got '0 seconds' in row 0"),
    "text": ("digits", "expected numbers in x; got 'digits'"),
    "ragged": (
        [[1.0, 2.0], [3.0]],
        "expected rows of equal length in x, or a tuple (x, y); got unequal ones",
    ),
    "empty tuple": ((), "expected x or a pair (x, y); got an empty tuple"),
    "empty list": ([], "expected x of shape (N, D); got shape (0,)"),
    "endless dataset": (Stream(), "expected a Dataset that has a length; got Stream"),
    "empty dataset": (TensorDataset(X[:0]), "expected a Dataset with rows; got none"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_bad_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        as_tensors(data)
    assert str(caught.value).partition(": leave these rows out")[0] == message


def test_dataset_of_rows_of_several_lengths() -> None:
    class Growing(Squares):
        def __getitem__(self, row: int) -> torch.Tensor:
            return torch.zeros(row + 1)

    with pytest.raises(DataError, match=r"^expected a Dataset whose rows can be stacked; got "):
        as_tensors(Growing())


def test_pandas_rows_in_another_order_are_an_error():
    y = pd.Series([1.0, 2.0, 3.0], index=[0, 2, 1])
    message = "expected rows of x and y in the same order; got index 1 in x and 2 in y in row 1"
    with pytest.raises(DataError, match=message):
        as_tensors((FRAME, y))
    assert as_tensors((FRAME, y.sort_index()))[1].tolist() == [1.0, 3.0, 2.0]
    assert as_tensors((FRAME, y.to_numpy()))[1].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (FRAME, ("a", "b")),
        ((FRAME, CLASSES), ("a", "b")),
        (FRAME.set_axis([0, 1], axis=1), None),
        (X, None),
        ((X, CLASSES), None),
        (Rows(X), None),
        (Rows(X, columns=("a", "b")), ("a", "b")),
    ],
)
def test_columns_have_the_names_of_their_frame(data, names):
    assert column_names(data) == names
