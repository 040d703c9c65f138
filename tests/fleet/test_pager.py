"""Reading a list that changes while it is read: nothing that was in it throughout is missed, whatever comes and goes."""

import random
from collections.abc import Hashable, Iterable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.fleet.pager import Pager, Place
from auditor.models import Listed

SIZE = 5


class Shelf:
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

    def page(self, place: Place) -> Listed[Hashable]:
        self.asked += 1
        if place.page * SIZE > self.TOKEN_FROM:
            assert place.token is not None, "asked past the bound without a token"
        first = (place.page - 1) * SIZE
        if self.cursor and place.token is not None:  # a token may mean an item instead of a position
            last = int(place.token)
            first = next((at for at, item in enumerate(self.items) if item < last), len(self.items))
        items = tuple(self.items[first : first + SIZE])
        more = first + SIZE < len(self.items)
        return Listed(items, place.page, len(self.items), str(items[-1]) if more and items else None)


def read(shelf: Shelf, changes: Iterable[tuple[int, int]], dice: random.Random) -> tuple[set[int], Pager]:
    pager: Pager = Pager(SIZE, token_from=Shelf.TOKEN_FROM, most=10_000)
    seen: set[int] = set()
    waiting = iter(changes)
    while pager.phase != "ended":
        page = shelf.page(pager.place)
        seen |= {item for item in page.items if isinstance(item, int)}
        pager.take(page)
        shelf.change(dice, *next(waiting, (0, 0)))
        assert shelf.asked < 2_000
    return seen, pager


changes = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)


@settings(max_examples=400, deadline=None)
@given(count=st.integers(0, 120), changes=changes, seed=st.integers(0, 9), cursor=st.booleans())
@example(count=12, changes=[(0, 6)], seed=0, cursor=False)
@example(count=60, changes=[(3, 3)] * 30, seed=1, cursor=False)
def test_what_is_there_throughout_is_read_though_others_come_and_go(
    count: int, changes: list[tuple[int, int]], seed: int, *, cursor: bool
) -> None:
    shelf = Shelf(range(count), cursor=cursor)
    seen, pager = read(shelf, changes, random.Random(seed))
    assert shelf.always <= seen <= shelf.ever
    assert pager.doubt is None
    if not changes:
        assert seen == set(range(count))
        assert shelf.asked == max(1, -(-count // SIZE)) + (count > SIZE)


def test_a_reader_that_only_turns_pages_would_miss_some() -> None:
    """That the list of these tests does slide: without this, the test above could not fail."""
    missed = 0
    for seed in range(20):
        shelf, seen, dice = Shelf(range(60)), set[int](), random.Random(seed)
        Shelf.TOKEN_FROM, before = 10_000, Shelf.TOKEN_FROM
        try:
            for page in range(1, 13):
                seen |= {item for item in shelf.page(Place(page)).items if isinstance(item, int)}
                shelf.change(dice, 0, 2)
        finally:
            Shelf.TOKEN_FROM = before
        missed += bool(shelf.always - seen)
    assert missed > 10


def test_what_is_registered_meanwhile_is_read_too() -> None:
    shelf = Shelf(range(30))
    seen, _ = read(shelf, [(8, 0)], random.Random(0))
    assert seen == set(range(38))


def test_a_list_that_changes_faster_than_it_can_be_read_ends_with_a_doubt() -> None:
    shelf = Shelf(range(5_000))

    def forever() -> Iterable[tuple[int, int]]:
        while True:
            yield 0, 9

    _, pager = read(shelf, forever(), random.Random(0))
    assert pager.doubt == "it changed faster than it could be read"


def test_without_a_token_where_one_is_needed_the_list_ends_with_a_doubt() -> None:
    pager: Pager = Pager(SIZE, token_from=10, most=10_000)
    for page in (1, 2):
        assert pager.place == Place(page)
        pager.take(Listed((1, 2, 3, 4, 5), page, 100, None))
    assert pager.doubt == "the platform told no NextToken past the first 10"


def test_a_token_that_is_refused_leads_back_to_the_last_page_that_needs_none() -> None:
    pager: Pager = Pager(SIZE, token_from=10, most=10_000)
    for page in (1, 2, 3):
        pager.take(Listed((1, 2, 3, 4, 5), page, 100, f"to {page + 1}"))
    assert pager.place == Place(4, "to 4")
    assert pager.forget_tokens()
    assert pager.place == Place(2)
    assert not pager.forget_tokens()


def test_the_same_pages_make_the_same_pager() -> None:
    """That is how a listing is gone on with after a kill."""
    shelf, dice = Shelf(range(70)), random.Random(3)
    pager: Pager = Pager(SIZE, token_from=Shelf.TOKEN_FROM, most=10_000)
    taken = []
    for _ in range(9):
        taken.append(shelf.page(pager.place))
        pager.take(taken[-1])
        shelf.change(dice, 1, 2)
    again: Pager = Pager(SIZE, token_from=Shelf.TOKEN_FROM, most=10_000)
    for page in taken:
        again.take(page)
    assert (again.place, again.phase, again.total) == (pager.place, pager.phase, pager.total)


def test_a_list_longer_than_can_be_listed_says_so() -> None:
    pager: Pager = Pager(SIZE, token_from=None, most=10)
    pager.take(Listed((1, 2, 3, 4, 5), 1, 100, None))
    pager.take(Listed((6, 7, 8, 9, 10), 2, 100, None))
    assert pager.doubt == "no more than 10 can be listed"


def test_without_totals_a_list_is_read_until_a_page_is_not_full() -> None:
    pager: Pager = Pager(SIZE, token_from=None, most=1_000)
    pager.take(Listed((1, 2, 3, 4, 5), 1, None, None))
    assert pager.place == Place(2)
    pager.take(Listed((6,), 2, None, None))
    assert pager.phase == "newest"


def test_what_is_known_grows_page_by_page_falls_with_what_was_removed_and_ends_with_the_total() -> None:
    pager = Pager(50, token_from=None, most=1_000)
    known = []
    for first, total in ((0, 180), (50, 180), (100, 120), (0, 120), (50, 120), (100, 120), (0, 120)):
        assert pager.place.page == first // 50 + 1
        pager.take(Listed(tuple(range(first, min(first + 50, total))), None, total, None))
        known.append(pager.reached)
    assert (known, pager.phase) == ([50, 100, 40, 50, 100, 120, 120], "ended")
