"""Tables of every notation are read right, or refused in a line that names the option."""

import bz2
import codecs
import gzip
import lzma
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_moe import DataError, DataWarning, datasets
from pyro_moe.datasets import reading

FRAME = pd.DataFrame({"größe": [1.5, -2.25, 1e-3], "y": [2, 3, 1]})


@pytest.fixture
def save(tmp_path):
    """A function that writes text or bytes to a file."""

    def write(content, name="my.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def refused(path, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        datasets.table(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def is_frame(rows):
    assert rows.columns == ("größe",)
    assert rows.x.flatten().tolist() == FRAME["größe"].tolist()
    assert rows.y.tolist() == FRAME["y"].tolist()


# How a file is written


@pytest.mark.parametrize("encoding", [None, "utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-be"])
@pytest.mark.parametrize(("sep", "decimal"), [(",", "."), (";", ","), ("\t", ","), ("|", ".")])
def test_every_notation_is_read(save, sep, decimal, encoding):
    text = FRAME.to_csv(index=False, sep=sep, decimal=decimal)
    path = save(text, encoding=encoding or "utf-8")
    is_frame(datasets.table(path, target="y", sep=sep, decimal=decimal, encoding=encoding))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_tells_the_encoding(save, mark, encoding):
    path = save(mark + FRAME.to_csv(index=False).encode(encoding))
    is_frame(datasets.table(path, target="y"))


@pytest.mark.parametrize("name", ["my.tsv", "MY.TSV", "my.tsv.gz"])
def test_tsv_has_tabs(save, name):
    content = FRAME.to_csv(index=False, sep="\t").encode()
    is_frame(
        datasets.table(
            save(gzip.compress(content) if name.endswith("gz") else content, name), target="y"
        )
    )


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("my.csv.gz", gzip.compress),
        ("my.txt.bz2", bz2.compress),
        ("my.csv.xz", lzma.compress),
        ("my.txt", bytes),
    ],
)
def test_compressed_files_are_read(save, name, pack):
    path = save(pack(FRAME.to_csv(index=False).encode()), name)
    is_frame(datasets.table(path, target="y"))
    assert sum(map(len, datasets.load(path, target="y"))) == 3


def test_white_space_and_the_first_line_of_excel(save):
    is_frame(datasets.table(save("größe  y\n1.5 2\n-2.25   3\n1e-3 1\n"), target="y", sep=r"\s+"))
    is_frame(datasets.table(save("sep=;\ngröße;y\n1.5;2\n-2.25;3\n1e-3;1\n"), target="y"))


def test_every_digit_of_a_double_is_kept(save):
    values = 4e9 + np.random.default_rng(0).normal(size=(50, 2))
    frame = pd.DataFrame(values, columns=["a", "y"])
    rows = datasets.table(save(frame.to_csv(index=False)), target="y")
    assert (rows.x.dtype, rows.y.dtype) == (torch.float64, torch.float64)
    assert rows.x[:, 0].tolist() == frame["a"].tolist()
    assert rows.y.tolist() == frame["y"].tolist()


SEP = "expected columns separated by {!r} in FILE; got one column {!r}: try sep={!r} "
DECIMAL = "if the decimal mark is {0!r}, give decimal={0!r} (on the command line, --decimal {0})"
SEMICOLON = "if ';' separates columns, give sep=';' (on the command line, --sep ';')"
GROUPS = "write numbers without separators of thousands"
NUMBERS = "expected numbers in column {!r} of FILE; got {!r} in row {}: {}"
COLUMNS = (
    "choose other columns with columns=… (on the command line, --columns), or write a formula, in "
    "which text is a factor (pyro_moe.mixture; --formula)"
)
ENCODING = (
    "expected {} text in FILE; got other bytes: name its encoding, such as latin-1 or utf-16, "
    "with encoding=… (on the command line, --encoding)"
)
WRONG = {
    "semicolons": (
        "a;y\n1;2\n",
        {},
        SEP.format(",", "a;y", ";") + "(on the command line, --sep ';')",
    ),
    "tabs": (
        "a\ty\n1\t2\n",
        {},
        SEP.format(",", "a\ty", "\t") + "(on the command line, --sep '\\t')",
    ),
    "bars": ("a|y\n1|2\n", {}, SEP.format(",", "a|y", "|") + "(on the command line, --sep '|')"),
    "semicolons and decimal commas": (
        "a;y\n1,5;2,5\n",
        {},
        SEP.format(",", "a;y", ";") + "(on the command line, --sep ';')",
    ),
    "commas": (
        "a,y\n1,2\n",
        {"sep": ";"},
        SEP.format(";", "a,y", ",") + "(on the command line, --sep ',')",
    ),
    "spaces": (
        "a y\n1 2\n",
        {},
        SEP.format(",", "a y", r"\s+") + r"(on the command line, --sep '\s+')",
    ),
    "decimal commas": (
        "a;y\n1,5;2\n",
        {"sep": ";"},
        NUMBERS.format("a", "1,5", 0, DECIMAL.format(",")),
    ),
    "quoted decimal commas": (
        'a,y\n1,2\n2,"-2,5e3"\n',
        {"target": "y"},
        NUMBERS.format("y", "-2,5e3", 1, DECIMAL.format(",")),
    ),
    "decimal points": (
        "a;y\n1.5;2\n",
        {"sep": ";", "decimal": ","},
        NUMBERS.format("a", "1.5", 0, DECIMAL.format(".")),
    ),
    "thousands": (
        'a,y\n"1,234,567.5",2\n',
        {},
        NUMBERS.format("a", "1,234,567.5", 0, GROUPS),
    ),
    "thousands with points": (
        "a;y\n1.234,5;2\n",
        {"sep": ";", "decimal": ","},
        NUMBERS.format("a", "1.234,5", 0, GROUPS),
    ),
    "thousands or a decimal comma": (
        'a,y\n"1,234",2\n',
        {},
        NUMBERS.format("a", "1,234", 0, f"{DECIMAL.format(',')}; {GROUPS}"),
    ),
    "semicolons below a comma": (
        "size, m;price\n1;2\n",
        {},
        NUMBERS.format("size", "1;2", 0, SEMICOLON),
    ),
    "yes and no": (
        "a,y\nyes,1\nno,2\n",
        {},
        NUMBERS.format("a", "yes", 0, f"write yes and no as 1 and 0, or {COLUMNS}"),
    ),
    "a stray text below a missing value": (
        "a,y\nNA,1\n?,2\n3,3\n",
        {},
        NUMBERS.format("a", "?", 1, COLUMNS),
    ),
    "no names": (
        "1.5,2\n2.5,3\n",
        {},
        "expected names of columns in the first line of FILE; got numbers: 1.5, 2",
    ),
    "white space in a name": (
        "a, y\n1,2\n",
        {"target": "y"},
        "expected a column 'y' in FILE; got 'a', ' y': did you mean ' y'?",
    ),
    "a name twice": (
        "a,a,y\n1,2,3\n",
        {"target": "y"},
        "expected each column name of FILE once; got 'a' 2 times",
    ),
    "no index": (
        "a,y\n1,2\n",
        {"index": "id"},
        "expected a column 'id' in FILE; got 'a', 'y'",
    ),
    "too large a target": (
        "a,y\n1,2\n2,-1e39\n",
        {"target": "y"},
        "expected numbers that float32 can hold in column 'y' of FILE; got -1e+39 in row 1",
    ),
    "not UTF-16": ("a,y\n1,2\n", {"encoding": "utf-16"}, ENCODING.format("utf-16")),
    "UTF-16 without mark": ("a,y\n1,2\n".encode("utf-16-le"), {}, ENCODING.format("utf-8")),
    "Latin-1": ("größe,y\n1,2\n".encode("latin-1"), {}, ENCODING.format("utf-8")),
    "Latin-1 further down": (
        "a,y\n" + "1,2\n" * 5000 + "1,\xe9\n",
        {"encoding": "ascii"},
        ENCODING.format("ascii"),
    ),
}


@pytest.mark.parametrize(("content", "options", "message"), WRONG.values(), ids=WRONG)
def test_another_notation_is_named_with_its_option(save, content, options, message):
    assert refused(save(content), **options) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sep": ";;"},
            "expected sep of one character, such as ';', or '\\s+' for white space; got ';;'",
        ),
        ({"decimal": ";"}, "expected decimal '.' or ','; got ';'"),
        (
            {"encoding": "klingon"},
            "expected an encoding such as 'utf-8', 'latin-1' or 'utf-16'; got 'klingon'",
        ),
    ],
)
def test_an_unknown_notation_is_an_error(save, options, message):
    assert refused(save("a\n1\n"), ValueError, **options) == message


def test_a_name_may_hold_a_separator(save):
    assert datasets.table(save('"a,b"\n1\n')).columns == ("a,b",)
    assert datasets.table(save("price; EUR\n1\n"), sep=",").columns == ("price; EUR",)


# Columns that are no data


def left_out(path, *, columns=("a",), **options):
    """The names in the warnings, if the others become x."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = datasets.table(path, **options)
    assert rows.columns == columns
    assert all(each.category is DataWarning and each.filename == __file__ for each in caught)
    return [str(each.message).split("'")[1] for each in caught]


@pytest.mark.parametrize(
    "index", [[0, 1, 2], [2, 0, 1], [17, 3, 40], ["u", "v", "w"], pd.date_range("2020", periods=3)]
)
def test_the_index_that_pandas_writes_is_left_out(save, index):
    frame = pd.DataFrame({"a": [1.5, 2.5, 0.5], "y": [2, 3, 1]}, index=index)
    path = save(frame.to_csv())
    assert left_out(path, target="y") == ["Unnamed: 0"]
    assert left_out(path, target="y", index="Unnamed: 0") == []
    again = save(pd.read_csv(path).to_csv(), "again.csv")
    assert left_out(again, target="y") == ["Unnamed: 0.1", "Unnamed: 0"]
    assert left_out(again, target="y", index=["Unnamed: 0.1", "Unnamed: 0"]) == []


@pytest.mark.parametrize(
    "text",
    ["a,y,\n1.5,2,\n2.5,3,\n", "a, ,y\n1.5,,2\n2.5,,3\n", "a,y,,\n1.5,2,,\n2.5,3,,\n"],
)
def test_columns_without_name_and_values_are_left_out(save, text):
    path = save(text)
    places = [
        place for place, name in enumerate(text.split("\n")[0].split(",")) if not name.strip()
    ]
    assert left_out(path, target="y") == [f"Unnamed: {place}" for place in places]
    assert datasets.table(path, target="y", columns="a").x.tolist() == [[1.5], [2.5]]


def test_a_trailing_comma_below_the_names_alone(save):
    path = save("a,y\n1.5,2,\n2.5,3,\n")
    assert datasets.table(path).x.tolist() == [[1.5, 2.0], [2.5, 3.0]]


@pytest.mark.parametrize("text", [",a\n0.5,1\n0.25,2\n", ",a\n0,1\n0,2\n", "a,,b\n1,2,3\n4,5,6\n"])
def test_a_column_without_name_that_may_be_data_is_asked_about(save, text):
    path = save(text)
    name = f"Unnamed: {text.split()[0].split(',').index('')}"
    assert refused(path) == (
        f"expected a name of each column of FILE; got none of column {name!r}: leave it out with "
        f"index={name!r} (on the command line, --index {name!r}), or choose columns with columns=… "
        "(--columns)"
    )
    assert name not in datasets.table(path, index=name).columns
    assert datasets.table(path, columns=name).columns == (name,)


def test_an_index_may_be_used_by_name(save):
    path = save(",a\n3,1.5\n1,2.5\n")
    assert datasets.table(path, target="Unnamed: 0").y.tolist() == [3, 1]
    assert datasets.table(path, columns=["Unnamed: 0"]).x.tolist() == [[3], [1]]


def test_index_names_columns_that_are_no_data(save):
    path = save("id,note,a,y\n7,x,1.5,2\n9,y,2.5,3\n")
    assert datasets.table(path, index=["id", "note"], target="y").columns == ("a",)
    assert (
        refused(path, index="y", target="y") == "expected each column of FILE once; got 'y' twice"
    )


@pytest.mark.parametrize(("numbers", "warned"), [("123", True), ("312", True), ("925", False)])
def test_numbered_rows_are_named(save, numbers, warned):
    path = save("".join(f"{n},{v}\n" for n, v in zip(["id", *numbers], "a513", strict=True)))
    assert left_out(path, columns=("id", "a")) == ["id"] * warned
    assert datasets.table(path, index="id").columns == ("a",)


# Classes


@pytest.mark.parametrize("name", ["NA", "null", "None", "nan", "N/A", "NULL", "NaN"])
def test_a_class_is_a_class_whatever_its_name(save, name):
    path = save(f"a,country,n\n1,{name},NA\n2,DE,1\n3,FR,2\n4,,3\n")
    names = datasets.class_names(path, "country")
    assert names == tuple(sorted(("DE", "FR", name)))
    options = {"target": "country", "columns": "a", "classes": {"country": names}}
    rows = datasets.table(path, **options, missing_targets=True)
    expected = [names.index(each) for each in (name, "DE", "FR")]
    assert rows.y[:3].tolist() == expected
    assert rows.y[3].isnan()
    assert datasets.table(path, **options, drop_missing=True).y.tolist() == expected
    rows = datasets.table(path, target="n", columns="a", missing_targets=True)
    assert rows.y[0].isnan()
    assert datasets.class_names(path, "n") is None


def test_white_space_around_a_class_is_none_of_it(save):
    path = save("a,animal\n1, cat\n2,cat\n3,dog \n4, \n")
    assert datasets.class_names(path, "animal") == ("cat", "dog")


def test_numbers_in_another_notation_are_no_classes(save):
    path = save("a;b\n1;2,5\n2;3,5\n")
    with pytest.raises(DataError, match=r"^expected numbers in column 'b' of .*--decimal ,\)$"):
        datasets.class_names(path, "b", sep=";")
    assert datasets.class_names(path, "b", sep=";", decimal=",") is None


def test_parquet_tells_a_missing_value_from_its_name(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "my.parquet"
    for kind in ("object", "string", "category"):
        country = pd.Series(["NA", None, "DE"]).astype(kind)
        pd.DataFrame({"a": [1, 2, 3], "country": country}).to_parquet(path)
        assert datasets.class_names(path, "country") == ("DE", "NA")
    frame = pd.DataFrame({"a": pd.Categorical([3, None, 5]), "b": pd.Categorical([0.5, 1.5, 2.5])})
    frame.to_parquet(path)
    assert datasets.table(path, drop_missing=True).x.tolist() == [[3, 0.5], [5, 2.5]]
    pd.DataFrame({"a": [1, 2], "y": np.array([2**64 - 1, 0], np.uint64)}).to_parquet(path)
    assert datasets.table(path, target="y").y.tolist() == [2.0**64, 0.0]


def test_texts_for_true_and_false_are_one_and_zero(save):
    rows = datasets.table(save("a,b,c\nTRUE,true,True\nFALSE,false,\n"), columns=["a", "b"])
    assert rows.x.tolist() == [[1, 1], [0, 0]]


# Compressed files that grow


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_compressed_text_grows_to_a_limit(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LEAST_LIMIT", 1000)
    path = tmp_path / f"my.csv{suffix}"
    with reading.OPENERS[suffix](path, "wb") as file:
        file.write(b"a,b\n" + b"0,0\n" * 10**6)
    with pytest.raises(DataError) as caught:
        datasets.table(path)
    assert re.fullmatch(
        rf"expected a table of at most [0-9,]+ bytes in {path}, 100 times its compressed size; "
        r"got more: if you trust its source, unpack it, or write it as \.csv",
        str(caught.value),
    )
    with reading.OPENERS[suffix](path, "wb") as file:
        file.write(b"a,b\n" + b"0,0\n" * 200)
    assert len(datasets.table(path)) == 200


def test_a_parquet_file_announces_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LEAST_LIMIT", 1000)
    path = tmp_path / "my.parquet"
    pd.DataFrame({"a": [1.0] * 10**6}).to_parquet(path)
    with pytest.raises(DataError, match="expected a table of at most"):
        datasets.table(path)
    pd.DataFrame({"a": [1.0] * 90}).to_parquet(path)
    assert len(datasets.table(path)) == 90
