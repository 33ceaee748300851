"""Tables for people and for programs."""

import csv

import numpy as np
import pytest

from equijax import tables


def test_columns_are_aligned_and_no_line_ends_in_blanks():
    rows = [["a", 1.23456, None], ["longer", 1000000.0, True]]
    assert tables.text(["name", "number", "ok"], rows).splitlines() == [
        "name    number   ok",
        "a        1.235    -",
        "longer   1e+06  yes",
    ]
    assert tables.text(["name", "n"], [["a", "b"]], left=2) == "name  n\na     b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (False, "no"),
        (3, "3"),
        (np.float64(-0.000123456), "-0.0001235"),
        ([(0.5, 0.0, 1 / 3)], "(0.5,0,0.333333)"),
        ("text", "text"),
    ],
)
def test_entries(value, text):
    assert tables.cell(value) == text


def test_errors_in_pairs():
    assert tables.pair(1.0, 2.34567) == "1 / 2.346" and tables.pair(None, None) == "-"


def test_csv_keeps_ten_digits_and_text(tmp_path):
    tables.write_csv(tmp_path / "a.csv", ["x", "name"], rows=[[1 / 3, "a, b"], [np.float32(0.5), ""], [7, "c"]])
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.reader(file)) == [["x", "name"], ["0.3333333333", "a, b"], ["0.5", ""], ["7", "c"]]
