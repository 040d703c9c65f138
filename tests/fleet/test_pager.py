"""Reading a list that changes while it is read: nothing that was in it throughout is missed, whatever comes and goes."""

import random
from collections.abc import Hashable, Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.fleet.pager import MAX_EQUAL_PAGES, Pager, PageReference
from auditor.models import ListPage

SIZE = 5


class ChangingList:
    """A list as the platform keeps it: newest first, asked for by page, or past ``TOKEN_FROM`` items by token."""

    TOKEN_FROM = 20

    def __init__(self, items: Iterable[int], *, cursor: bool = False) -> None:
        self.items = sorted(items, reverse=True)
        self.always = set(self.items)
        self.ever = set(self.items)
        self.asked = 0
        self.cursor = cursor

    def change(self, dice: random.Random, added: int, removed: int) -> None:
        for _ in range(added):
            self.items.insert(0, max(self.ever, default=0) + 1)
            self.ever.add(self.items[0])
        for _ in range(min(removed, len(self.items))):
            self.always.discard(self.items.pop(dice.randrange(len(self.items))))

    def page(self, place: PageReference) -> ListPage[Hashable]:
        self.asked += 1
        if place.page * SIZE > self.TOKEN_FROM:
            assert place.token is not None, "asked past the bound without a token"
        first = (place.page - 1) * SIZE
        if self.cursor and place.token is not None:  # a token may mean an item instead of a position
            last = int(place.token)
            first = next((at for at, item in enumerate(self.items) if item < last), len(self.items))
        items = tuple(self.items[first : first + SIZE])
        more = first + SIZE < len(self.items)
        return ListPage(items, place.page, len(self.items), str(items[-1]) if more and items else None)


def read(shelf: ChangingList, changes: Iterable[tuple[int, int]], dice: random.Random) -> tuple[set[int], Pager]:
    pager: Pager = Pager(SIZE, max_by_page_number=ChangingList.TOKEN_FROM, max_items=10_000)
    seen: set[int] = set()
    waiting = iter(changes)
    while pager.phase != "ended":
        page = shelf.page(pager.next_page)
        seen |= {item for item in page.items if isinstance(item, int)}
        pager.add_page(page)
        shelf.change(dice, *next(waiting, (0, 0)))
        assert shelf.asked < 2_000
    return seen, pager


changes = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(count=st.integers(0, 120), changes=changes, seed=st.integers(0, 9), cursor=st.booleans())
@example(count=12, changes=[(0, 6)], seed=0, cursor=False)
@example(count=60, changes=[(3, 3)] * 30, seed=1, cursor=False)
def test_items_that_stay_throughout_are_read_while_others_change(
    count: int, changes: list[tuple[int, int]], seed: int, *, cursor: bool
) -> None:
    shelf = ChangingList(range(count), cursor=cursor)
    seen, pager = read(shelf, changes, random.Random(seed))
    assert shelf.always <= seen <= shelf.ever
    assert pager.problem is None
    if not changes:
        assert seen == set(range(count))
        assert shelf.asked == max(1, -(-count // SIZE)) + (count > SIZE)


def test_sequential_reading_would_miss_items() -> None:
    """That the list of these tests does slide: without this, the test above could not fail."""
    missed = 0
    for seed in range(20):
        shelf, seen, dice = ChangingList(range(60)), set[int](), random.Random(seed)
        ChangingList.TOKEN_FROM, before = 10_000, ChangingList.TOKEN_FROM
        try:
            for page in range(1, 13):
                seen |= {item for item in shelf.page(PageReference(page)).items if isinstance(item, int)}
                shelf.change(dice, 0, 2)
        finally:
            ChangingList.TOKEN_FROM = before
        missed += bool(shelf.always - seen)
    assert missed > 10


def test_items_that_are_added_meanwhile_are_read() -> None:
    shelf = ChangingList(range(30))
    seen, _ = read(shelf, [(8, 0)], random.Random(0))
    assert seen == set(range(38))


def test_list_that_changes_too_fast_ends_with_a_problem() -> None:
    shelf = ChangingList(range(5_000))

    def forever() -> Iterable[tuple[int, int]]:
        while True:
            yield 0, 9

    _, pager = read(shelf, forever(), random.Random(0))
    assert pager.problem == "it changed faster than it could be read"


def test_missing_token_ends_with_a_problem() -> None:
    pager: Pager = Pager(SIZE, max_by_page_number=10, max_items=10_000)
    for page in (1, 2):
        assert pager.next_page == PageReference(page)
        pager.add_page(ListPage((1, 2, 3, 4, 5), page, 100, None))
    assert pager.problem == "the platform returned no NextToken beyond the first 10"


def test_rejected_token_leads_back_to_the_last_page_without_token() -> None:
    pager: Pager = Pager(SIZE, max_by_page_number=10, max_items=10_000)
    for page in (1, 2, 3):
        pager.add_page(ListPage((1, 2, 3, 4, 5), page, 100, f"to {page + 1}"))
    assert pager.next_page == PageReference(4, "to 4")
    assert pager.forget_tokens()
    assert pager.next_page == PageReference(2)
    assert not pager.forget_tokens()


def test_same_pages_give_the_same_state() -> None:
    """That is how a listing is gone on with after a kill."""
    shelf, dice = ChangingList(range(70)), random.Random(3)
    pager: Pager = Pager(SIZE, max_by_page_number=ChangingList.TOKEN_FROM, max_items=10_000)
    taken = []
    for _ in range(9):
        taken.append(shelf.page(pager.next_page))
        pager.add_page(taken[-1])
        shelf.change(dice, 1, 2)
    again: Pager = Pager(SIZE, max_by_page_number=ChangingList.TOKEN_FROM, max_items=10_000)
    for page in taken:
        again.add_page(page)
    assert (again.next_page, again.phase, again.total) == (pager.next_page, pager.phase, pager.total)


def test_list_longer_than_the_limit_has_a_problem() -> None:
    pager: Pager = Pager(SIZE, max_by_page_number=None, max_items=10)
    pager.add_page(ListPage((1, 2, 3, 4, 5), 1, 100, None))
    pager.add_page(ListPage((6, 7, 8, 9, 10), 2, 100, None))
    assert pager.problem == "no more than 10 can be listed"


def test_list_without_totals_is_read_until_a_page_is_not_full() -> None:
    pager: Pager = Pager(SIZE, max_by_page_number=None, max_items=1_000)
    pager.add_page(ListPage((1, 2, 3, 4, 5), 1, None, None))
    assert pager.next_page == PageReference(2)
    pager.add_page(ListPage((6,), 2, None, None))
    assert pager.phase == "newest"


def test_reach_grows_with_pages_and_decreases_with_removals() -> None:
    pager = Pager(50, max_by_page_number=None, max_items=1_000)
    known = []
    for first, total in ((0, 180), (50, 180), (100, 120), (0, 120), (50, 120), (100, 120), (0, 120)):
        assert pager.next_page.page == first // 50 + 1
        pager.add_page(ListPage(tuple(range(first, min(first + 50, total))), None, total, None))
        known.append(pager.reached)
    assert (known, pager.phase) == ([50, 100, 40, 50, 100, 120, 120], "ended")


def test_a_list_whose_pages_are_all_the_same_ends_soon() -> None:
    for token in (None, "next"):
        pager: Pager = Pager(SIZE, max_by_page_number=None, max_items=1_000_000)
        pages = 0
        while pager.phase != "ended":
            pager.add_page(ListPage(tuple(range(SIZE)), None, 900_000, token))
            pages += 1
        assert (pages, pager.problem) == (MAX_EQUAL_PAGES, "its pages are identical")
