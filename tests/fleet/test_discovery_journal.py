"""The journal of a listing: who opens it again knows what was known, and asks for what comes next."""

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
from auditor.fleet.discovery_journal import DEVICES_A_PAGE, PRODUCTS_A_PAGE, TOKEN_FROM, Listing
from auditor.fleet.pager import Place
from auditor.models import Listed, ListedDevice, Product
from auditor.text.globs import _fits
from tests.fleet.snapshots import fits

ALL = FleetSource(products="all")


def product(key: str, count: int | None = None) -> Product:
    return Product(key, f"Product {key}", count)


def device(name: str) -> ListedDevice:
    return ListedDevice(name, f"iot-{name}", "ONLINE", "2026-01-02T03:04:05.000Z", None)


def products(*keys: str, total: int | None = None) -> Listed[Product]:
    return Listed(tuple(map(product, keys)), None, len(keys) if total is None else total, None)


def page(names: Sequence[str], total: int | None, token: str | None = None) -> Listed[ListedDevice]:
    return Listed(tuple(map(device, names)), None, total, token)


def full(number: int) -> list[str]:
    return [f"d{number}-{at}" for at in range(DEVICES_A_PAGE)]


def state(listing: Listing) -> dict[str, Any]:
    """All that a listing knows, failures apart."""
    return {
        "told": listing.told,
        "pages": listing.pages,
        "rows": listing.rows,
        "place": (listing.pager.place, listing.pager.phase, listing.pager.total, listing.pager.doubt),
        "products": {
            key: (each.product, each.rows, each.pager.place, each.pager.phase, each.pager.total, each.pager.doubt)
            for key, each in listing.products.items()
        },
        "whole": listing.whole,
    }


def opened(path: Path, fleet: FleetSource = ALL) -> dict[str, Any]:
    with Listing(path, fleet) as listing:
        assert listing.pages_before == listing.pages
        return state(listing)


KEYS = ("a", "b", "lamp_1")
numbers = st.none() | st.integers(0, 300)
names = st.lists(st.sampled_from(["x", "y", 'q"', "灯", "\u2028", "-1"]), max_size=3) | st.integers(0, 5).map(full)
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


def take(listing: Listing, step: tuple[str, Any, Any]) -> None:
    """Does what a step says, to one of the products that are wanted by then."""
    what, which, told = step
    if what == "products":
        listing.take_products(products(*which, total=told))
    elif what == "no_products":
        listing.no_products("Forbidden.RAM", "No.")
    elif listing.products:
        key = list(listing.products)[which % len(listing.products)]
        if what == "devices":
            listing.take_devices(key, page(*told))
        else:
            listing.refuse_token(key)


@settings(max_examples=150, deadline=None)
@given(fleet=fleets, taken=st.lists(steps, max_size=12), cut=st.integers(0, 40))
@example(ALL, [("products", ["a"], 1), ("devices", 0, (full(0), 120, None)), ("devices", 0, (full(1), 120, "t"))], 7)
@example(ALL, [("products", ["a"], 1), ("devices", 0, (full(0), 51, None)), ("devices", 0, (["x"], 51, None))], 0)
def test_a_journal_opened_again_knows_what_the_listing_that_wrote_it_knew(
    fleet: FleetSource, taken: list[tuple[str, Any, Any]], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "eu.jsonl")
        states = []
        with Listing(path, fleet) as listing:
            states.append(state(listing))
            for step in taken:
                before = listing.pages
                take(listing, step)
                if listing.pages > before:
                    states.append(state(listing))
            assert opened(path, fleet) == states[-1]  # while it is open too: each line counts once it is written
        assert opened(path, fleet) == states[-1]
        if len(states) > 1:  # killed while it wrote its last line
            whole = path.read_bytes()
            last = whole.splitlines(keepends=True)[-1]
            path.write_bytes(whole[: len(whole) - 1 - cut % len(last)])
            assert opened(path, fleet) == states[-2]
            assert path.read_bytes() == whole.removesuffix(last)


def journal(path: Path) -> list[bytes]:
    """A listing of two products, one of them begun; its lines."""
    with Listing(path, ALL) as listing:
        listing.take_products(products("a", "b"))
        listing.take_devices("a", page(full(0), 120))
        listing.take_devices("b", page(["x"], 1))
        listing.take_devices("a", page(full(1), 120))
    return path.read_bytes().splitlines(keepends=True)


RUBBISH = [
    b"\n",
    b"null\n",
    b"[]\n",
    b"7\n",
    b'"text"\n',
    b"{}\n",
    b'{"what":\n',
    b"\x00" * 50 + b"\n",
    b"\xff\xfe\n",
    b'{"what":"devices","product_key":"gone","total":1,"next_token":null,"again":false,"devices":[]}\n',
    b'{"what":"devices","product_key":"a"}\n',
    b'{"what":"products","total":1,"products":[{"odd":1}]}\n',
    b'{"what":"products","total":1,"products":7}\n',
    b'{"what":"token_refused"}\n',
]


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_a_line_that_is_none_of_ours_ends_what_is_known_and_is_cut_with_all_that_follows(
    tmp_path: Path, rubbish: bytes
) -> None:
    path = tmp_path / "eu.jsonl"
    lines = journal(path)
    path.write_bytes(b"".join(lines[:2]))
    expected = opened(path)
    path.write_bytes(b"".join([*lines[:2], rubbish, *lines[2:]]))
    with Listing(path, ALL) as listing:
        known = state(listing)
        assert {**known, "pages": 2} == expected
        assert path.read_bytes() == b"".join(lines[:2])
        listing.take_devices("b", page(["x"], 1))
    assert path.read_bytes() == b"".join(lines[:3])


def test_what_is_gone_on_with_is_what_would_have_come_of_one_go(tmp_path: Path) -> None:
    lines = journal(tmp_path / "whole.jsonl")
    for count in range(len(lines)):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(b"".join(lines[:count]))
        with Listing(path, ALL) as listing:
            left = [orjson.loads(line) for line in lines[count:]]
            for record in left:
                if record["what"] == "products":
                    listing.take_products(products("a", "b"))
                else:
                    told = [each["device_name"] for each in record["devices"]]
                    listing.take_devices(record["product_key"], page(told, record["total"]))
            assert listing.pages_before == count
        assert path.read_bytes() == b"".join(lines)


def test_a_listing_asks_for_page_after_page_and_then_for_the_newest_again(tmp_path: Path) -> None:
    with Listing(tmp_path / "eu.jsonl", ALL) as listing:
        listing.take_products(products("a"))
        (left,) = listing.left()
        asked = []
        for names in (full(0), ["z"], full(0)):
            asked.append((left.pager.place.page, left.pager.phase))
            listing.take_devices("a", page(names, DEVICES_A_PAGE + 1))
        assert asked == [(1, "forward"), (2, "forward"), (1, "newest")]
        assert listing.over
        assert listing.whole
        assert listing.left() == []
        assert listing.rows == DEVICES_A_PAGE + 1  # not counted again
    records = [orjson.loads(line) for line in (tmp_path / "eu.jsonl").read_bytes().splitlines()]
    assert [record.get("again") for record in records] == [None, False, False, True]


def test_products_of_several_pages_are_all_wanted(tmp_path: Path) -> None:
    keys = [f"p{at:03}" for at in range(PRODUCTS_A_PAGE + 5)]
    first, rest = keys[:PRODUCTS_A_PAGE], keys[PRODUCTS_A_PAGE:]
    with Listing(tmp_path / "eu.jsonl", ALL) as listing:
        listing.take_products(products(*first, total=len(keys)))
        assert not listing.told
        assert not listing.over
        assert listing.pager.place == Place(2)
        listing.take_products(products(*rest, total=len(keys)))
        assert not listing.told  # the newest are looked at once more
        listing.take_products(products("new", *first[1:], total=len(keys)))
        assert listing.told
        assert list(listing.products) == [*keys, "new"]


def test_an_account_without_products_is_listed_at_once(tmp_path: Path) -> None:
    with Listing(tmp_path / "eu.jsonl", ALL) as listing:
        assert not listing.over
        listing.take_products(products())
        assert listing.over
        assert listing.whole
        assert (listing.done, listing.rows, listing.left()) == (0, 0, [])


def test_products_that_are_named_and_not_told_of_are_asked_for_all_the_same(tmp_path: Path) -> None:
    fleet = FleetSource(products=("b", "unlisted"))
    with Listing(tmp_path / "eu.jsonl", fleet) as listing:
        assert listing.named
        listing.take_products(products("a", "b"))
        assert {key: each.product for key, each in listing.products.items()} == {
            "b": product("b"),
            "unlisted": Product("unlisted", None, None),
        }
        assert listing.told
        assert not listing.over


def test_named_products_are_listed_without_the_list_of_products_if_that_is_refused(tmp_path: Path) -> None:
    path, fleet = tmp_path / "eu.jsonl", FleetSource(products=("b", "a"))
    for _ in range(2):  # and again, from the journal
        with Listing(path, fleet) as listing:
            if not listing.pages:
                listing.no_products("Forbidden.RAM", "No.")
            assert listing.told
            assert list(listing.products) == ["b", "a"]


keys = st.sampled_from(["lamp_1", "lamp_2", "Lamp_1", "plug", "k[1]", "*"])
patterns = st.lists(st.sampled_from(["lamp_*", "*_1", "plug", "?lug", "l[!x]mp*", "*", "k[[]1]", "none"]), max_size=2)


@settings(max_examples=100, deadline=None)
@given(
    told=st.lists(keys, unique=True),
    named=st.none() | st.lists(keys, min_size=1, unique=True),
    include=patterns,
    exclude=patterns,
)
def test_products_are_wanted_that_are_named_and_fit_the_patterns(
    told: list[str], named: list[str] | None, include: list[str], exclude: list[str]
) -> None:
    fleet = FleetSource(
        products="all" if named is None else tuple(named),
        include=Patterns(product_key=tuple(include)),
        exclude=Patterns(product_key=tuple(exclude)),
    )
    with tempfile.TemporaryDirectory() as folder, Listing(Path(folder, "eu.jsonl"), fleet) as listing:
        listing.take_products(products(*told))
        found = set(listing.products)
    assert found == {
        key
        for key in (told if named is None else named)
        if (not include or any(fits(key, each) for each in include)) and not any(fits(key, each) for each in exclude)
    }


@pytest.mark.parametrize(
    ("pattern", "key", "fitting"),
    [("lamp_*", "lamp_1", True), ("lamp_*", "Lamp_1", False), ("lamp", "lamp_1", False), ("*", "", True), ("?", "ab", False)],
)  # fmt: skip
def test_a_pattern_is_of_the_whole_name_in_its_letter_case(pattern: str, key: str, *, fitting: bool) -> None:
    assert _fits(key, [pattern]) is fitting
    assert not _fits(key, [])


def test_the_largest_product_is_listed_first(tmp_path: Path) -> None:
    with Listing(tmp_path / "eu.jsonl", ALL) as listing:
        sizes = {"small": 1, "untold": None, "large": 9_000, "middle": 50, "none": 0}
        listing.take_products(Listed(tuple(product(*each) for each in sizes.items()), None, len(sizes), None))
        order = [each.product.product_key for each in listing.left()]
        assert order[:3] == ["large", "middle", "small"]
        assert set(order[3:]) == {"untold", "none"}
        listing.take_devices("large", page(["x"], 1))
        assert next(each.product.product_key for each in listing.left()) == "middle"


def test_what_could_not_be_listed_is_asked_for_again_by_who_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "eu.jsonl"
    with Listing(path, ALL) as listing:
        listing.take_products(products("a", "b"))
        listing.take_devices("a", page(full(0), 120))
        listing.take_devices("b", page(["x"], 1))
        before = path.read_bytes()
        listing.fail("a", "iot.system.SystemException", "Busy.")
        assert listing.products["a"].failure == ("iot.system.SystemException", "Busy.")
        assert (listing.over, listing.whole, listing.done, listing.left()) == (True, False, 2, [])
    assert path.read_bytes() == before
    with Listing(path, ALL) as listing:
        (left,) = listing.left()
        assert (left.product.product_key, left.failure, left.pager.place) == ("a", None, Place(2))
        assert (listing.over, listing.done) == (False, 1)


def test_a_refused_token_leads_back_and_is_known_to_who_goes_on(tmp_path: Path) -> None:
    path, last = tmp_path / "eu.jsonl", TOKEN_FROM // DEVICES_A_PAGE
    with Listing(path, ALL) as listing:
        listing.take_products(products("a"))
        pager = listing.products["a"].pager
        for number in range(last + 1):
            listing.take_devices("a", page(full(number), 2 * TOKEN_FROM, f"to {number + 2}"))
        assert pager.place == Place(last + 2, f"to {last + 2}")
        rows = listing.rows
        listing.refuse_token("a")
        assert pager.place == Place(last)
        expected = state(listing)
    assert opened(path) == expected
    with Listing(path, ALL) as listing:
        assert listing.products["a"].pager.place == Place(last)
        assert listing.rows == rows
        listing.take_devices("a", page(full(last), 2 * TOKEN_FROM, "anew"))
        assert listing.products["a"].pager.place == Place(last + 1, "anew")


def test_a_journal_that_is_not_open_takes_nothing(tmp_path: Path) -> None:
    listing = Listing(tmp_path / "eu.jsonl", ALL)
    with pytest.raises(RuntimeError, match="not open"):
        listing.take_products(products("a"))
    assert listing.pages == 0
    with listing:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        listing.no_products("x", "y")


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for path in (tmp_path / "gone" / "eu.jsonl", tmp_path / "folder.jsonl"):
        with pytest.raises(RunNotWritableError, match="cannot be written"), Listing(path, ALL):
            pytest.fail("opened")
