"""Reading a list that changes while it is read, so that nothing that was in it throughout is missed. Pure.

The platform keeps devices newest first and counts ``total`` anew for every page. What is registered meanwhile pushes
the rest down: that comes twice, which does no harm. What is removed pulls the rest up, past the page that is asked for
next: those would be missed. But nothing can have slid up by more than the total has fallen. So it is known up to where
everything that was there throughout has come: each page reaches on if it begins there or before, each fall takes that
much back, and what is asked for next is the page with the first item that may be missing. At the end the newest are
looked at once more.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from auditor.models import Listed

TOKENS = 256
"""Pages to which reading can go back where only the token of the page before leads."""


PATIENCE, TIMES = 100, 3
"""So many pages are asked for, and so many for each page of a list, while it goes back: one may change too fast."""


@dataclass(frozen=True, slots=True)
class Place:
    """A page to ask for: its number from 1, and the token that leads to it where one is known."""

    page: int = 1
    token: str | None = None


Phase = Literal["forward", "newest", "ended"]
"""Reading to the end; looking at the newest once more; done."""


class Pager:
    """Says which page of a list to ask for next. The same pages, taken in the same order, make the same pager.

    Args:
        size: items a page.
        token_from: items past which a page is asked for by token; None: never.
        most: items that are read at most.

    Attributes:
        place: the page to ask for.
        phase: what for; ``ended``: nothing is left to ask.
        total: items, by the last page that was taken.
        least: items by the page that told the fewest: no more can have been there throughout; None: none told it.
        doubt: why the list may not be whole although it was read to its end; None if it is.
    """

    def __init__(self, size: int, *, token_from: int | None, most: int) -> None:
        self.place = Place()
        self.phase: Phase = "forward"
        self.total: int | None = None
        self.least: int | None = None
        self.doubt: str | None = None
        self._size, self._token_from, self._most = size, token_from, most
        self._tokens: OrderedDict[int, str] = OrderedDict()
        self._newest: frozenset[Hashable] | None = None
        self._reach = self._taken = 0

    @property
    def reached(self) -> int:
        """Up to where it is known: of the first so many items none is missing."""
        return self._reach if self.total is None else min(self._reach, self.total)

    def take(self, page: Listed[Hashable]) -> None:
        """Takes the answer to ``place``, of each item what tells it from others, and finds the next place."""
        at, fallen = self.place.page, self._fallen(page.total)
        if page.next_token is not None:
            self._tokens[at + 1] = page.next_token
            if len(self._tokens) > TOKENS:
                self._tokens.popitem(last=False)
        keys = frozenset(page.items)
        self._newest = keys if self._newest is None else self._newest
        self._taken += 1
        if self.phase == "newest":
            if not keys & self._newest and self._more(at * self._size, page) and self._leads_to(at + 1):
                self._go_to(at + 1)
            else:
                self.phase = "ended"
            return
        if self._patient():
            self._reach = max(0, self._reach - fallen)
        if (at - 1) * self._size <= self._reach:
            self._reach = max(self._reach, at * self._size)
        if self._more(self._reach, page) and self._leads_to(self._reach // self._size + 1):
            self._go_to(self._reach // self._size + 1)
        elif at > 1:
            self.phase, self.place = "newest", Place()
        else:
            self.phase = "ended"

    def forget_tokens(self) -> bool:
        """The platform refused the token: goes back to where none is needed; False if none was sent."""
        if self.place.token is None:
            return False
        self._tokens.clear()
        self._go_to(self.place.page)
        return True

    def _fallen(self, total: int | None) -> int:
        """How many items fewer there are than when the page before was read."""
        before, self.total = self.total, total
        if total is not None:
            self.least = total if self.least is None else min(self.least, total)
        return 0 if before is None or total is None else max(0, before - total)

    def _patient(self) -> bool:
        """Whether reading still goes back; else it goes on to the end, with a doubt."""
        if self._taken <= PATIENCE + TIMES * (self.total or 0) // self._size:
            return True
        self.doubt = "it changed faster than it could be read"
        return False

    def _more(self, reach: int, page: Listed[Hashable]) -> bool:
        """Whether there is more than the first ``reach`` items."""
        if reach >= self._most:
            if page.total is None or page.total > self._most:
                self.doubt = f"no more than {self._most:,} can be listed"
            return False
        if page.items and page.next_token is not None:
            return True  # a token may lead on from an item instead of a position, and then tells more than the total
        if page.total is None:
            return len(page.items) >= self._size
        return reach < page.total and bool(page.items or reach < self.place.page * self._size)

    def _leads_to(self, page: int) -> bool:
        """Whether a page can be asked for."""
        if not self._by_token(page) or page in self._tokens or page <= self.place.page:
            return True
        if not self._tokens:  # where others had one, none means that the list ends here
            self.doubt = f"the platform told no NextToken past the first {self._token_from:,}"
        return False

    def _by_token(self, page: int) -> bool:
        return self._token_from is not None and page * self._size > self._token_from

    def _go_to(self, page: int) -> None:
        if self._by_token(page) and page not in self._tokens:
            page = (self._token_from or 0) // self._size  # the last that needs none; from there on page after page
            self._reach = min(self._reach, (page - 1) * self._size)
        self.place = Place(page, self._tokens.get(page))
