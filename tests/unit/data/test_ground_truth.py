"""Ground truths of every type, as a person writes them."""

import datetime
import json
from decimal import Decimal

import pytest

from megatron_nft.data.ground_truth import NoGroundTruth, ground_truth_of, gsm8k_number, last_box

DAY = datetime.date(2021, 3, 5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (34, "34"),
        (34.0, "34"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (1e22, "10000000000000000000000"),
        (1e-5, "0.00001"),
        (123456789.25, "123456789.25"),
        (0.1 + 0.2, "0.30000000000000004"),
        (12345678901234567890123, "12345678901234567890123"),
        (Decimal("1.50"), "1.5"),
        (Decimal("3.14159265358979323846"), "3.14159265358979323846"),
        (Decimal("1E+3"), "1000"),
        (True, "true"),
        (False, "false"),
        (DAY, "2021-03-05"),
        (datetime.datetime(2021, 3, 5), "2021-03-05"),
        (datetime.datetime(2021, 3, 5, 12, 30), "2021-03-05 12:30:00"),
        (datetime.time(12, 30), "12:30:00"),
        (b"x+1", "x+1"),
        (" 34 ", " 34 "),
        ("34.0", "34.0"),
        ("None", "None"),
        ("[1, 2]", "[1, 2]"),
        (r"\{1, 2\}", r"\{1, 2\}"),
        ('["34"]', "34"),
        (["34"], "34"),
        ([34, 34.0, None], "34"),
        (["1/2", 0.25], '["1/2", "0.25"]'),
        ('["1/2", "0.25"]', '["1/2", "0.25"]'),
        ("['34']", "34"),
        ("['1/2', \"2'\"]", '["1/2", "2\'"]'),
        ('["34", 0.50]', '["34", "0.5"]'),
        (['a "b"', "ä"], '["a \\"b\\"", "ä"]'),
    ],
)
def test_a_value_is_written_as_a_person_would(value, text):
    assert ground_truth_of(value) == text


@pytest.mark.parametrize(
    "value", [None, "", " \n", float("nan"), Decimal("nan"), "nan", "<NA>", "NaT", [], [None, ""], '[""]']
)
def test_what_is_no_ground_truth(value):
    assert ground_truth_of(value) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"x": 1}, "a dict, not text, a number, a date"),
        ([["1"], ["2"]], "a list of lists"),
        (float("inf"), "Infinity, not a number"),
        (b"\xff\xfe", "bytes that are no text"),
        (datetime.timedelta(days=1), "a timedelta, not text"),
    ],
)
def test_what_no_text_can_stand_for(value, reason):
    with pytest.raises(NoGroundTruth, match=reason):
        ground_truth_of(value)


@pytest.mark.parametrize(
    ("solution", "number"),
    [
        ("She has 3 * 4 = <<3*4=12>>12 apples.\n#### 12", "12"),
        ("so\n#### 1,200\n", "1,200"),
        ("#### -3.5", "-3.5"),
        ("#### $18", "$18"),
        ("## Step 1\n#### Final answer: 12", None),
        ("#### 12\nand then more", None),
        ("is 4#### 12", None),
        ("34", None),
    ],
)
def test_gsm8ks_mark(solution, number):
    assert gsm8k_number(solution) == number


@pytest.mark.parametrize(
    ("solution", "box"),
    [
        (r"Then $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{a \text{ and } \boxed{b}}", r"a \text{ and } \boxed{b}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"is $\boxed 5$", "5"),
        (r"} \fbox{x}", "x"),
        (r"is \boxed5", "5"),
        (r"\boxed{1", None),
        (r"\boxed{2}, no: \boxed{1", None),
        (r"\boxed{2}, no: $\boxed 12$", None),
        (r"\boxed{2}, no: $\boxed\frac12$", None),
        ("no box", None),
    ],
)
def test_the_last_box(solution, box):
    assert last_box(solution) == box


def test_several_answers_read_back():
    assert json.loads(ground_truth_of(["x", "y"])) == ["x", "y"]
