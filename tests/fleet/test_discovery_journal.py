"""The journal of a journal: who opens it again knows what was known, and asks for what comes next."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.config.settings import FleetSource, Patterns
from auditor.errors import RunNotWritableError
from auditor.fleet.discovery_journal import (
    DEVICES_PER_PAGE,
    MAX_DEVICES_BY_PAGE_NUMBER,
    PRODUCTS_PER_PAGE,
    DiscoveryJournal,
)
from auditor.fleet.pager import PageReference
from auditor.models import ListedDevice, ListPage, Product
from auditor.text.globs import matches_any
from tests.fleet.snapshots import fits

ALL = FleetSource(products="all")


def product(key: str, count: int | None = None) -> Product:
    return Product(key, f"Product {key}", count)


def device(name: str) -> ListedDevice:
    return ListedDevice(name, f"iot-{name}", "ONLINE", "2026-01-02T03:04:05.000Z", None)


def products(*keys: str, total: int | None = None) -> ListPage[Product]:
    return ListPage(tuple(map(product, keys)), None, len(keys) if total is None else total, None)


def page(names: Sequence[str], total: int | None, token: str | None = None) -> ListPage[ListedDevice]:
    return ListPage(tuple(map(device, names)), None, total, token)


def full_page(number: int) -> list[str]:
    return [f"d{number}-{at}" for at in range(DEVICES_PER_PAGE)]


def state(journal: DiscoveryJournal) -> dict[str, Any]:
    """All that a journal knows, failures apart."""
    return {
        "products_complete": journal.products_complete,
        "pages": journal.pages,
        "rows": journal.rows,
        "place": (journal.pager.next_page, journal.pager.phase, journal.pager.total, journal.pager.problem),
        "products": {
            key: (each.product, each.rows, each.pager.next_page, each.pager.phase, each.pager.total, each.pager.problem)
            for key, each in journal.products.items()
        },
        "whole": journal.complete,
    }


def reopened_state(path: Path, fleet: FleetSource = ALL) -> dict[str, Any]:
    with DiscoveryJournal(path, fleet) as journal:
        assert journal.pages_before == journal.pages
        return state(journal)


KEYS = ("a", "b", "lamp_1")
numbers = st.none() | st.integers(0, 300)
names = st.lists(st.sampled_from(["x", "y", 'q"', "灯", "\u2028", "-1"]), max_size=3) | st.integers(0, 5).map(full_page)
tokens = st.none() | st.sampled_from(["t", 'to "k"en'])
steps = st.one_of(
    st.tuples(st.just("products"), st.lists(st.sampled_from(KEYS), max_size=3), numbers),
    st.tuples(st.just("no_products"), st.none(), st.none()),
    st.tuples(st.just("devices"), st.integers(0, 2), st.tuples(names, numbers, tokens)),
    st.tuples(st.just("refuse_token"), st.integers(0, 2), st.none()),
)
fleets = st.sampled_from(
    [ALL, FleetSource(products=("b", "unlisted")), FleetSource(products="all", exclude=Patterns(product_key=("b",)))]
)


def record_step(journal: DiscoveryJournal, step: tuple[str, Any, Any]) -> None:
    """Does what a step says, to one of the products that are wanted by then."""
    what, which, told = step
    if what == "products":
        journal.record_products(products(*which, total=told))
    elif what == "no_products":
        journal.record_products_denied("Forbidden.RAM", "No.")
    elif journal.products:
        key = list(journal.products)[which % len(journal.products)]
        if what == "devices":
            journal.record_devices(key, page(*told))
        else:
            journal.record_rejected_token(key)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(fleet=fleets, taken=st.lists(steps, max_size=12), cut=st.integers(0, 40))
@example(
    ALL,
    [("products", ["a"], 1), ("devices", 0, (full_page(0), 120, None)), ("devices", 0, (full_page(1), 120, "t"))],
    7,
)
@example(ALL, [("products", ["a"], 1), ("devices", 0, (full_page(0), 51, None)), ("devices", 0, (["x"], 51, None))], 0)
def test_reopened_journal_has_the_state_of_its_writer(
    fleet: FleetSource, taken: list[tuple[str, Any, Any]], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "eu.jsonl")
        states = []
        with DiscoveryJournal(path, fleet) as journal:
            states.append(state(journal))
            for step in taken:
                before = journal.pages
                record_step(journal, step)
                if journal.pages > before:
                    states.append(state(journal))
            assert (
                reopened_state(path, fleet) == states[-1]
            )  # while it is open too: each line counts once it is written
        assert reopened_state(path, fleet) == states[-1]
        if len(states) > 1:  # killed while it wrote its last line
            whole = path.read_bytes()
            last = whole.splitlines(keepends=True)[-1]
            path.write_bytes(whole[: len(whole) - 1 - cut % len(last)])
            assert reopened_state(path, fleet) == states[-2]
            assert path.read_bytes() == whole.removesuffix(last)


def write_journal(path: Path) -> list[bytes]:
    """Write a journal of two products, one of them incomplete; return its lines."""
    with DiscoveryJournal(path, ALL) as journal:
        journal.record_products(products("a", "b"))
        journal.record_devices("a", page(full_page(0), 120))
        journal.record_devices("b", page(["x"], 1))
        journal.record_devices("a", page(full_page(1), 120))
    return path.read_bytes().splitlines(keepends=True)


RUBBISH = [
    b"\n",
    b"null\n",
    b"[]\n",
    b"7\n",
    b'"text"\n',
    b"{}\n",
    b'{"kind":\n',
    b"\x00" * 50 + b"\n",
    b"\xff\xfe\n",
    b'{"kind":"devices","product_key":"gone","total":1,"next_token":null,"reread":false,"devices":[]}\n',
    b'{"kind":"devices","product_key":"a"}\n',
    b'{"kind":"products","total":1,"products":[{"odd":1}]}\n',
    b'{"kind":"products","total":1,"products":7}\n',
    b'{"kind":"token_rejected"}\n',
]


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_invalid_line_is_truncated_with_all_that_follows(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "eu.jsonl"
    lines = write_journal(path)
    path.write_bytes(b"".join(lines[:2]))
    expected = reopened_state(path)
    path.write_bytes(b"".join([*lines[:2], rubbish, *lines[2:]]))
    with DiscoveryJournal(path, ALL) as journal:
        known = state(journal)
        assert {**known, "pages": 2} == expected
        assert path.read_bytes() == b"".join(lines[:2])
        journal.record_devices("b", page(["x"], 1))
    assert path.read_bytes() == b"".join(lines[:3])


def test_resumed_discovery_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    lines = write_journal(tmp_path / "whole.jsonl")
    for count in range(len(lines)):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(b"".join(lines[:count]))
        with DiscoveryJournal(path, ALL) as journal:
            left = [orjson.loads(line) for line in lines[count:]]
            for record in left:
                if record["kind"] == "products":
                    journal.record_products(products("a", "b"))
                else:
                    told = [each["device_name"] for each in record["devices"]]
                    journal.record_devices(record["product_key"], page(told, record["total"]))
            assert journal.pages_before == count
        assert path.read_bytes() == b"".join(lines)


def test_pages_are_requested_in_order_and_the_newest_again(tmp_path: Path) -> None:
    with DiscoveryJournal(tmp_path / "eu.jsonl", ALL) as journal:
        journal.record_products(products("a"))
        (left,) = journal.remaining()
        asked = []
        for names in (full_page(0), ["z"], full_page(0)):
            asked.append((left.pager.next_page.page, left.pager.phase))
            journal.record_devices("a", page(names, DEVICES_PER_PAGE + 1))
        assert asked == [(1, "forward"), (2, "forward"), (1, "newest")]
        assert journal.finished
        assert journal.complete
        assert journal.remaining() == []
        assert journal.rows == DEVICES_PER_PAGE + 1  # not counted again
    records = [orjson.loads(line) for line in (tmp_path / "eu.jsonl").read_bytes().splitlines()]
    assert [record.get("reread") for record in records] == [None, False, False, True]


def test_products_of_several_pages_are_all_discovered(tmp_path: Path) -> None:
    keys = [f"p{at:03}" for at in range(PRODUCTS_PER_PAGE + 5)]
    first, rest = keys[:PRODUCTS_PER_PAGE], keys[PRODUCTS_PER_PAGE:]
    with DiscoveryJournal(tmp_path / "eu.jsonl", ALL) as journal:
        journal.record_products(products(*first, total=len(keys)))
        assert not journal.products_complete
        assert not journal.finished
        assert journal.pager.next_page == PageReference(2)
        journal.record_products(products(*rest, total=len(keys)))
        assert not journal.products_complete  # the newest are looked at once more
        journal.record_products(products("new", *first[1:], total=len(keys)))
        assert journal.products_complete
        assert list(journal.products) == [*keys, "new"]


def test_account_without_products_is_complete_immediately(tmp_path: Path) -> None:
    with DiscoveryJournal(tmp_path / "eu.jsonl", ALL) as journal:
        assert not journal.finished
        journal.record_products(products())
        assert journal.finished
        assert journal.complete
        assert (journal.done, journal.rows, journal.remaining()) == (0, 0, [])


def test_configured_products_that_are_not_listed_are_requested(tmp_path: Path) -> None:
    fleet = FleetSource(products=("b", "unlisted"))
    with DiscoveryJournal(tmp_path / "eu.jsonl", fleet) as journal:
        assert journal.has_configured_products
        journal.record_products(products("a", "b"))
        assert {key: each.product for key, each in journal.products.items()} == {
            "b": product("b"),
            "unlisted": Product("unlisted", None, None),
        }
        assert journal.products_complete
        assert not journal.finished


def test_configured_products_are_used_if_the_list_is_denied(tmp_path: Path) -> None:
    path, fleet = tmp_path / "eu.jsonl", FleetSource(products=("b", "a"))
    for _ in range(2):  # and again, from the journal
        with DiscoveryJournal(path, fleet) as journal:
            if not journal.pages:
                journal.record_products_denied("Forbidden.RAM", "No.")
            assert journal.products_complete
            assert list(journal.products) == ["b", "a"]


keys = st.sampled_from(["lamp_1", "lamp_2", "Lamp_1", "plug", "k[1]", "*"])
patterns = st.lists(st.sampled_from(["lamp_*", "*_1", "plug", "?lug", "l[!x]mp*", "*", "k[[]1]", "none"]), max_size=2)


@settings(max_examples=100, deadline=None)
@given(
    told=st.lists(keys, unique=True),
    named=st.none() | st.lists(keys, min_size=1, unique=True),
    include=patterns,
    exclude=patterns,
)
def test_products_must_be_configured_and_match_the_patterns(
    told: list[str], named: list[str] | None, include: list[str], exclude: list[str]
) -> None:
    fleet = FleetSource(
        products="all" if named is None else tuple(named),
        include=Patterns(product_key=tuple(include)),
        exclude=Patterns(product_key=tuple(exclude)),
    )
    with tempfile.TemporaryDirectory() as folder, DiscoveryJournal(Path(folder, "eu.jsonl"), fleet) as journal:
        journal.record_products(products(*told))
        found = set(journal.products)
    assert found == {
        key
        for key in (told if named is None else named)
        if (not include or any(fits(key, each) for each in include)) and not any(fits(key, each) for each in exclude)
    }


@pytest.mark.parametrize(
    ("pattern", "key", "fitting"),
    [("lamp_*", "lamp_1", True), ("lamp_*", "Lamp_1", False), ("lamp", "lamp_1", False), ("*", "", True), ("?", "ab", False)],
)  # fmt: skip
def test_pattern_matches_the_complete_name_case_sensitively(pattern: str, key: str, *, fitting: bool) -> None:
    assert matches_any(key, [pattern]) is fitting
    assert not matches_any(key, [])


def test_largest_product_is_listed_first(tmp_path: Path) -> None:
    with DiscoveryJournal(tmp_path / "eu.jsonl", ALL) as journal:
        sizes = {"small": 1, "untold": None, "large": 9_000, "middle": 50, "none": 0}
        journal.record_products(ListPage(tuple(product(*each) for each in sizes.items()), None, len(sizes), None))
        order = [each.product.product_key for each in journal.remaining()]
        assert order[:3] == ["large", "middle", "small"]
        assert set(order[3:]) == {"untold", "none"}
        journal.record_devices("large", page(["x"], 1))
        assert next(each.product.product_key for each in journal.remaining()) == "middle"


def test_failed_products_are_requested_again_by_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "eu.jsonl"
    with DiscoveryJournal(path, ALL) as journal:
        journal.record_products(products("a", "b"))
        journal.record_devices("a", page(full_page(0), 120))
        journal.record_devices("b", page(["x"], 1))
        before = path.read_bytes()
        journal.fail("a", "iot.system.SystemException", "Busy.")
        assert journal.products["a"].failure == ("iot.system.SystemException", "Busy.")
        assert (journal.finished, journal.complete, journal.done, journal.remaining()) == (True, False, 2, [])
    assert path.read_bytes() == before
    with DiscoveryJournal(path, ALL) as journal:
        (left,) = journal.remaining()
        assert (left.product.product_key, left.failure, left.pager.next_page) == ("a", None, PageReference(2))
        assert (journal.finished, journal.done) == (False, 1)


def test_rejected_token_leads_back_and_is_replayed(tmp_path: Path) -> None:
    path, last = tmp_path / "eu.jsonl", MAX_DEVICES_BY_PAGE_NUMBER // DEVICES_PER_PAGE
    with DiscoveryJournal(path, ALL) as journal:
        journal.record_products(products("a"))
        pager = journal.products["a"].pager
        for number in range(last + 1):
            journal.record_devices("a", page(full_page(number), 2 * MAX_DEVICES_BY_PAGE_NUMBER, f"to {number + 2}"))
        assert pager.next_page == PageReference(last + 2, f"to {last + 2}")
        rows = journal.rows
        journal.record_rejected_token("a")
        assert pager.next_page == PageReference(last)
        expected = state(journal)
    assert reopened_state(path) == expected
    with DiscoveryJournal(path, ALL) as journal:
        assert journal.products["a"].pager.next_page == PageReference(last)
        assert journal.rows == rows
        journal.record_devices("a", page(full_page(last), 2 * MAX_DEVICES_BY_PAGE_NUMBER, "anew"))
        assert journal.products["a"].pager.next_page == PageReference(last + 1, "anew")


def test_closed_journal_records_nothing(tmp_path: Path) -> None:
    journal = DiscoveryJournal(tmp_path / "eu.jsonl", ALL)
    with pytest.raises(RuntimeError, match="not open"):
        journal.record_products(products("a"))
    assert journal.pages == 0
    with journal:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        journal.record_products_denied("x", "y")


def test_journal_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for path in (tmp_path / "gone" / "eu.jsonl", tmp_path / "folder.jsonl"):
        with pytest.raises(RunNotWritableError, match="cannot be written"), DiscoveryJournal(path, ALL):
            pytest.fail("opened")
