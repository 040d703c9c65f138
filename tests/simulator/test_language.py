"""The language of QueryDeviceBySQL: what is documented is read, and all else is refused."""

import pytest

from auditor.simulator.search.language import Condition, Statement, StatementRefused, parse_statement

PRODUCT = Condition("product_key", "=", "k1abc")


def test_a_statement_is_read_in_any_letter_case_of_its_keywords() -> None:
    text = "select NAME, count FROM"  # a field is in lower case
    with pytest.raises(StatementRefused):
        parse_statement(text)
    upper = 'SELECT name, status FROM device WHERE product_key = "k1abc" ORDER BY gmt_create LIMIT 40, 10'
    expected = Statement(("name", "status"), False, ((PRODUCT,),), "gmt_create", 40, 10)
    assert parse_statement(upper) == expected
    lower = 'select name,status from device where product_key="k1abc" order by gmt_create limit 40,10'
    assert parse_statement(lower) == expected


def test_a_page_has_20_rows_without_a_limit() -> None:
    found = parse_statement('SELECT * FROM device WHERE product_key = "k1abc"')
    assert (found.fields, found.counts, found.order, found.first, found.rows) == (None, False, None, 0, 20)


def test_and_binds_more_strongly_than_or() -> None:
    found = parse_statement(
        'SELECT count(*) FROM device WHERE product_key = "k1abc" AND gmt_create > "2020-04-04 16:38:17.250" '
        'OR name LIKE "lamp%"'
    )
    after = Condition("gmt_create", ">", 1_586_018_297_250)
    assert found.any_of == ((PRODUCT, after), (Condition("name", "LIKE", "lamp"),))
    assert found.counts


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ('product_key > "k1"', "operator > does not support the field product_key"),
        ('gmt_create LIKE "2020%"', "operator LIKE does not support the field gmt_create"),
        ('gmt_create = "2020-04-04"', "not in the format"),
        ('firmware = "1"', "field firmware does not exist"),
        ('name LIKE "%lamp"', "prefix only"),
        ('name != "lamp"', "invalid"),
        ('name >= "lamp"', "invalid"),
        ("name = 'lamp'", "invalid"),
        ('(name = "lamp")', "invalid"),
        ('name = "la"mp"', "invalid"),
        ('name = "lamp" ORDER BY name', "cannot be sorted by"),
        ('name = "lamp" LIMIT 51', "out of range"),
        ('name = "lamp" LIMIT 0', "out of range"),
        ('name = "lamp" LIMIT 9951, 50', "out of range"),
        (
            'name = "lamp" OR name = "a" OR name = "b" OR name = "c" OR name = "d" OR name = "e"',
            "more than 5 conditions",
        ),
        (f'name = "{"x" * 400}"', "longer than 400 characters"),
    ],
)
def test_a_statement_outside_the_documented_limits_is_refused(condition: str, message: str) -> None:
    with pytest.raises(StatementRefused, match=message):
        parse_statement(f"SELECT * FROM device WHERE {condition}")


def test_the_last_row_of_the_window_can_be_requested() -> None:
    assert parse_statement('SELECT * FROM device WHERE name = "lamp" LIMIT 9950, 50').first == 9950
