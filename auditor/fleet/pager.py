"""Reads a list that changes while it is read, without missing an item that is in it throughout. Pure.

The platform sorts devices newest first and counts ``total`` for each page. A device that is registered meanwhile shifts
the others down: they are listed twice, which is harmless. A device that is removed shifts the others up, before the
page that is requested next: they would be missed. But no item can shift up further than the total has decreased. So the
pager tracks the reach, the number of first items that are complete. A page extends the reach if it starts within
it, and each decrease of the total reduces it. The next page is the one with the first item that may be missing. At the
end the newest items are read once more.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from auditor.models import ListPage

MAX_TOKENS = 256
"""Number of tokens that are kept, for pages to which reading may go back by token only."""

MAX_EQUAL_PAGES = 20
"""Pages in a row with the same items after which a list ends: the platform ignores which page is requested.

A few can be equal by chance, if as many devices are added meanwhile as a page has.
"""

MIN_PAGE_BUDGET, PAGE_BUDGET_FACTOR = 100, 3
"""Pages that may be read while reading goes back: a minimum, and a multiple of the list's pages."""


@dataclass(frozen=True, slots=True)
class PageReference:
    """A page to request: its number from 1, and its token if one was received."""

    page: int = 1
    token: str | None = None


Phase = Literal["forward", "newest", "ended"]
"""Reading to the end; reading the newest items once more; done."""


class Pager:
    """Determines the next page of a list to request. The same pages in the same order give the same state.

    Items after the first ``max_by_page_number`` (None: all) are requested by token, and none after ``max_items``.

    Attributes:
        next_page: the page to request.
        phase: its purpose; ``ended``: no page is left.
        total: number of items by the last page.
        least_total: lowest total of all pages: no more items can have been there throughout; None: no page had one.
        problem: why the list may be incomplete although it was read to its end.
    """

    def __init__(self, size: int, *, max_by_page_number: int | None, max_items: int) -> None:
        self.next_page = PageReference()
        self.phase: Phase = "forward"
        self.total: int | None = None
        self.least_total: int | None = None
        self.problem: str | None = None
        self._size, self._max_by_page_number, self._max_items = size, max_by_page_number, max_items
        self._tokens: OrderedDict[int, str] = OrderedDict()
        self._newest: frozenset[Hashable] | None = None
        self._previous: tuple[int, frozenset[Hashable]] = (0, frozenset())
        self._reach = self._pages_read = self._equal_pages = 0

    @property
    def reached(self) -> int:
        """Number of first items that are complete."""
        return self._reach if self.total is None else min(self._reach, self.total)

    def add_page(self, page: ListPage[Hashable]) -> None:
        """Add the response to ``next_page``, with a key for each item, and determine the next one."""
        at, fallen = self.next_page.page, self._total_decrease(page.total)
        if page.next_token is not None:
            self._tokens[at + 1] = page.next_token
            if len(self._tokens) > MAX_TOKENS:
                self._tokens.popitem(last=False)
        keys = frozenset(page.items)
        self._newest = keys if self._newest is None else self._newest
        self._pages_read += 1
        if self.phase == "newest":
            if not keys & self._newest and self._has_more(at * self._size, page) and self._can_request(at + 1):
                self._go_to(at + 1)
            else:
                self.phase = "ended"
            return
        if self._is_repeated(at, keys):
            self.end("its pages are identical")
            return
        if self._within_budget():
            self._reach = max(0, self._reach - fallen)
        if (at - 1) * self._size <= self._reach:
            self._reach = max(self._reach, at * self._size)
        if self._has_more(self._reach, page) and self._can_request(self._reach // self._size + 1):
            self._go_to(self._reach // self._size + 1)
        elif at > 1:
            self.phase, self.next_page = "newest", PageReference()
        else:
            self.phase = "ended"

    def end(self, problem: str) -> None:
        """End the list before its end."""
        self.phase, self.problem = "ended", problem

    def forget_tokens(self) -> bool:
        """Go back to where no token is needed, after one was rejected; return False if none was sent."""
        if self.next_page.token is None:
            return False
        self._tokens.clear()
        self._go_to(self.next_page.page)
        return True

    def _total_decrease(self, total: int | None) -> int:
        """Return by how many items the total has decreased since the previous page."""
        before, self.total = self.total, total
        if total is not None:
            self.least_total = total if self.least_total is None else min(self.least_total, total)
        return 0 if before is None or total is None else max(0, before - total)

    def _is_repeated(self, at: int, keys: frozenset[Hashable]) -> bool:
        """Return whether this page has the same items as each of the previous ones."""
        page, before = self._previous
        self._previous = at, keys
        if page != at:
            self._equal_pages = self._equal_pages + 1 if keys and keys == before else 1
        return self._equal_pages >= MAX_EQUAL_PAGES

    def _within_budget(self) -> bool:
        """Return whether reading still goes back; otherwise it continues to the end with a problem."""
        if self._pages_read <= MIN_PAGE_BUDGET + PAGE_BUDGET_FACTOR * (self.total or 0) // self._size:
            return True
        self.problem = "it changed faster than it could be read"
        return False

    def _has_more(self, reach: int, page: ListPage[Hashable]) -> bool:
        """Return whether there are more than the first ``reach`` items."""
        if reach >= self._max_items:
            if page.total is None or page.total > self._max_items:
                self.problem = f"no more than {self._max_items:,} can be listed"
            return False
        if page.items and page.next_token is not None:
            return True  # a token may refer to an item instead of a position, and is then better than the total
        if page.total is None:
            return len(page.items) >= self._size
        return reach < page.total and bool(page.items or reach < self.next_page.page * self._size)

    def _can_request(self, page: int) -> bool:
        """Return whether a page can be requested."""
        if not self._needs_token(page) or page in self._tokens or page <= self.next_page.page:
            return True
        if not self._tokens:  # if earlier pages had a token, none means that the list ends here
            self.problem = f"the platform returned no NextToken beyond the first {self._max_by_page_number:,}"
        return False

    def _needs_token(self, page: int) -> bool:
        return self._max_by_page_number is not None and page * self._size > self._max_by_page_number

    def _go_to(self, page: int) -> None:
        if self._needs_token(page) and page not in self._tokens:
            page = (self._max_by_page_number or 0) // self._size  # the last page without a token
            self._reach = min(self._reach, (page - 1) * self._size)
        self.next_page = PageReference(page, self._tokens.get(page))
