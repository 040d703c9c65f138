"""What the platform has listed of one account's fleet so far: a journal of pages, from which a listing is gone on with.

A page counts once its line is written. Who goes on after a kill takes the pages that stand there in their order, and
asks for the next one. A product that could not be listed is asked for again then.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from auditor.config.settings import FleetSource
from auditor.errors import RunNotWritableError
from auditor.fleet.pager import Pager
from auditor.models import Listed, ListedDevice, Product
from auditor.storage.files import Appender, cut_torn_line
from auditor.text.globs import EVERYTHING, _fits

PRODUCTS_A_PAGE, DEVICES_A_PAGE = 200, 50
"""Products and devices that are asked for in one request: the most that the platform gives (Alibaba's pages)."""


TOKEN_FROM, MOST = 10_000, 1_000_000
"""Devices of a product past which a page is asked for by token, and that are listed at most (Alibaba's page)."""


Record = Mapping[str, Any]


@dataclass(slots=True)
class ProductListing:
    """How far the listing of one product is.

    Attributes:
        product: as the platform lists it.
        pager: says which page comes next.
        rows: devices that came, those that came twice among them.
        failure: code and message of what ended it; None while nothing has.
        reading: how often it was begun anew.
        furthest: the last page that was read.
        refusals: tokens that were refused since it was.
        count_again: the product's own number at the end, where it was asked for again.
    """

    product: Product
    pager: Pager = field(default_factory=lambda: Pager(DEVICES_A_PAGE, token_from=TOKEN_FROM, most=MOST))
    rows: int = 0
    failure: tuple[str, str] | None = None
    reading: int = 0
    furthest: int = 0
    refusals: int = 0
    count_again: int | None = None

    @property
    def told(self) -> int:
        """How many devices there are at the least: by the list's own numbers, or by the product's before and after."""
        counts = [number for number in (self.product.device_count, self.count_again) if number is not None]
        return max(self.pager.least or 0, min(counts, default=0))

    @property
    def shrunk(self) -> bool:
        """Whether its list has fewer devices by now than its own number said before."""
        return self.pager.total is not None and self.pager.total < (self.product.device_count or 0)


def _products_pager() -> Pager:
    return Pager(PRODUCTS_A_PAGE, token_from=None, most=MOST)


class Listing:
    """The journal of one account's listing. Use as a context manager; entering it takes what stands there already.

    Args:
        path: the file, appended to.
        fleet: which products and devices are wanted.

    Attributes:
        named: whether the settings name the products; else all are wanted.
        pager: of the list of products.
        products: those that are wanted, by their key.
        pages: that were answered, those of before among them; ``pages_before`` is how many that were on opening.
        told: whether the list of products is known, or was given up: then ``products`` is what the settings name.
        keys: of all products that were listed, wanted or not.
    """

    def __init__(self, path: Path, fleet: FleetSource) -> None:
        self.path, self.named = path, fleet.products != "all"
        self.pager = _products_pager()
        self.products: dict[str, ProductListing] = {}
        self.told = False
        self.keys: set[str] = set()
        self.pages = self.pages_before = 0
        self._fleet = fleet
        self._lines: Appender | None = None

    def __enter__(self) -> Self:
        try:
            self.path.touch()
            cut_torn_line(self.path)
            self._replay()
            self.pages_before = self.pages
        except OSError as error:
            raise RunNotWritableError(f"{self.path} cannot be written: {error.strerror}") from error
        self._lines = Appender(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    @property
    def rows(self) -> int:
        """Devices that came so far, those that came twice among them."""
        return sum(each.rows for each in self.products.values())

    @property
    def done(self) -> int:
        """Products that are listed to their end, or could not be."""
        return sum(each.pager.phase == "ended" or each.failure is not None for each in self.products.values())

    @property
    def over(self) -> bool:
        """Whether nothing is left to ask: every wanted product is listed, or could not be."""
        return self.told and self.done == len(self.products)

    @property
    def whole(self) -> bool:
        """Whether every wanted product is listed to its end."""
        return self.told and all(each.pager.phase == "ended" for each in self.products.values())

    @property
    def products_missing(self) -> int:
        """How many products the list told of and did not name."""
        return max(0, (self.pager.least or 0) - len(self.keys))

    def left(self) -> list[ProductListing]:
        """Products that are not listed to their end, the largest first: one product is read page after page."""
        left = [each for each in self.products.values() if each.pager.phase != "ended" and each.failure is None]
        return sorted(left, key=lambda each: -(each.product.device_count or 0))

    def take_products(self, page: Listed[Product]) -> None:
        """A page of the list of products came."""
        self._keep({"what": "products", "total": page.total, "products": [asdict(each) for each in page.items]})

    def count_again(self, page: Listed[Product]) -> None:
        """A page of the list of products came once more, at the end, for the numbers in it."""
        self._keep({"what": "counted", "counts": {each.product_key: each.device_count for each in page.items}})

    def count_rest(self, product_keys: Collection[str]) -> None:
        """Those are all products that there are at the end: what is left of the others is nothing."""
        self._keep({"what": "counted", "counts": {key: 0 for key in self.products if key not in product_keys}})

    def no_products(self, code: str, message: str) -> None:
        """The list of products is refused; those that the settings name are listed without it."""
        self._keep({"what": "no_products", "code": code, "message": message})

    def take_devices(self, product_key: str, page: Listed[ListedDevice]) -> None:
        """A page of a product's devices came."""
        devices = [asdict(each) for each in page.items]
        product = self.products[product_key]
        place = {"reading": product.reading, "again": product.pager.phase == "newest"}
        numbers = {"total": page.total, "next_token": page.next_token, **place}
        self._keep({"what": "devices", "product_key": product_key, **numbers, "devices": devices})

    def refuse_token(self, product_key: str) -> None:
        """The platform refused the token that led to a product's next page."""
        self._keep({"what": "token_refused", "product_key": product_key})

    def list_anew(self, product_key: str | None) -> None:
        """Lists a product that was listed to its end, or None: the list of products, from its beginning once more.

        What was not listed to its end is gone on with anyway.
        """
        listed = self.products.get(product_key) if product_key is not None else None
        if product_key is None or (listed is not None and listed.pager.phase == "ended"):
            self._keep({"what": "anew", "product_key": product_key})

    def fail(self, product_key: str, code: str, message: str) -> None:
        """A product could not be listed further."""
        self.products[product_key].failure = (code, message)

    def _keep(self, record: Record) -> None:
        if self._lines is None:
            raise RuntimeError("the journal is not open: use it as `with Listing(…) as listing`")
        self._lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self._apply(record)

    def _replay(self) -> None:
        """Takes what stands in the file; cuts it at the first line that is none of ours, as a power cut may leave."""
        kept = 0
        with self.path.open("r+b") as file:
            for line in file:
                try:
                    self._apply(orjson.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    file.truncate(kept)
                    return
                kept += len(line)

    def _apply(self, record: Record) -> None:
        match record["what"]:
            case "products":
                self._apply_products([Product(**each) for each in record["products"]], record["total"])
            case "no_products":
                self._want_named()
            case "counted":
                for key, count in record["counts"].items():
                    if key in self.products:
                        self.products[key].count_again = count
            case "devices":
                self._apply_devices(self.products[record["product_key"]], record)
            case "anew":
                self._begin_anew(record["product_key"])
            case "token_refused":
                refused = self.products[record["product_key"]]
                refused.pager.forget_tokens()
                refused.refusals += 1
        self.pages += 1

    def _apply_products(self, listed: Sequence[Product], total: int | None) -> None:
        keys = tuple(each.product_key for each in listed)
        self.pager.take(Listed(keys, None, total, None))
        self.keys.update(keys)
        self._want(listed)
        if self.pager.phase == "ended":
            self._want_named()

    def _apply_devices(self, listing: ProductListing, record: Record) -> None:
        names, again = tuple(each["device_name"] for each in record["devices"]), record["again"]
        if listing.pager.place.page > listing.furthest:
            listing.furthest, listing.refusals = listing.pager.place.page, 0
        listing.pager.take(Listed(names, None, record["total"], record["next_token"]))
        listing.rows += 0 if again else len(names)

    def _begin_anew(self, product_key: str | None) -> None:
        if product_key is None:
            self.pager, self.told, self.keys = _products_pager(), False, set()
        else:
            before = self.products[product_key]
            self.products[product_key] = ProductListing(before.product, rows=before.rows, reading=before.reading + 1)

    def _want_named(self) -> None:
        """The list of products is at its end: one that is named and did not come is asked for all the same."""
        self.told = True
        if isinstance(self._fleet.products, tuple):
            self._want(Product(key, None, None) for key in self._fleet.products)

    def _want(self, products: Iterable[Product]) -> None:
        include, exclude = self._fleet.include.product_key or (EVERYTHING,), self._fleet.exclude.product_key
        for product in products:
            key, named = product.product_key, self._fleet.products
            wanted = (named == "all" or key in (named or ())) and _fits(key, include)
            if wanted and not (exclude and _fits(key, exclude)):
                self.products.setdefault(key, ProductListing(product))
