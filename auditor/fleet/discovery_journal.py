"""Journal of one account's discovery: the pages that the platform returned, from which a discovery is resumed.

A page counts once its line is written. A resume replays the pages in their order and requests the next one. A product
that could not be listed is requested again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import orjson

from auditor.client.operations import QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.config.settings import FleetSource
from auditor.errors import RunNotWritableError
from auditor.fleet.pager import Pager
from auditor.models import ListedDevice, ListPage, Product
from auditor.storage.append_only import AppendOnlyFile, cut_torn_line
from auditor.text.globs import MATCH_ALL, matches_any

PRODUCTS_PER_PAGE, DEVICES_PER_PAGE = QUERY_PRODUCT_LIST.page_size, QUERY_DEVICE.page_size
"""Page sizes: the largest that the platform allows (Alibaba's pages on these operations)."""

MAX_PRODUCTS = 100_000
"""Number of products of an account that are listed at most; each takes a kilobyte of memory."""

MAX_DEVICES_BY_PAGE_NUMBER, MAX_DEVICES = 10_000, 1_000_000
"""Devices of a product that are listed by page number, and by token after these (Alibaba's page)."""

Record = Mapping[str, Any]

products_pager = partial(Pager, PRODUCTS_PER_PAGE, max_by_page_number=None, max_items=MAX_PRODUCTS)
_devices_pager = partial(Pager, DEVICES_PER_PAGE, max_by_page_number=MAX_DEVICES_BY_PAGE_NUMBER, max_items=MAX_DEVICES)


@dataclass(slots=True)
class ProductDiscovery:
    """How far the discovery of one product is.

    Attributes:
        product: as the platform lists it.
        pager: determines the next page.
        rows: devices that were listed, including duplicates.
        failure: code and message of the error that ended it, if there was one.
        reading: number of restarts.
        last_page: the highest page that was read.
        rejected_tokens: tokens that were rejected since then.
        final_count: the product's own device count at the end, where it was read again.
        indexed: devices that the search index returned; None: the product is listed.
    """

    product: Product
    pager: Pager = field(default_factory=_devices_pager)
    rows: int = 0
    failure: tuple[str, str] | None = None
    reading: int = 0
    last_page: int = 0
    rejected_tokens: int = 0
    final_count: int | None = None
    indexed: int | None = None

    @property
    def least_devices(self) -> int:
        """Least number of devices that were in the list throughout, by its totals and the product's counts."""
        counts = [number for number in (self.product.device_count, self.final_count) if number is not None]
        return max(self.pager.least_total or 0, min(counts, default=0))

    @property
    def reached(self) -> int:
        """Number of the product's devices that were read completely."""
        return self.pager.reached if self.indexed is None else self.indexed

    @property
    def shrunk(self) -> bool:
        """Whether its list has become shorter than the product's own count."""
        return self.pager.total is not None and self.pager.total < (self.product.device_count or 0)


class DiscoveryJournal:
    """The journal of one account's discovery. Use as a context manager; entering it replays the file ``path``.

    Attributes:
        has_configured_products: whether the settings name the products; else all are discovered.
        pager: determines the next page of the list of products.
        products: products to discover, by key.
        pages: pages in the journal; ``pages_before``: those that it had on opening.
        products_complete: whether no further page of the list of products is needed.
        keys: keys of all listed products, including excluded ones.
    """

    def __init__(self, path: Path, fleet: FleetSource) -> None:
        self.path, self.has_configured_products = path, fleet.products != "all"
        self.pager = products_pager()
        self.products: dict[str, ProductDiscovery] = {}
        self.products_complete = False
        self.keys: set[str] = set()
        self.pages = self.pages_before = 0
        self._fleet = fleet
        self._lines: AppendOnlyFile | None = None

    def __enter__(self) -> Self:
        try:
            self.path.touch()
            cut_torn_line(self.path)
            self._replay()
            self.pages_before = self.pages
        except OSError as error:
            raise RunNotWritableError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._lines = AppendOnlyFile(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    @property
    def rows(self) -> int:
        """Number of devices listed so far, including duplicates."""
        return sum(each.rows for each in self.products.values())

    @property
    def done(self) -> int:
        """Number of products that are completely listed, or failed."""
        return sum(each.pager.phase == "ended" or each.failure is not None for each in self.products.values())

    @property
    def finished(self) -> bool:
        """Whether all products are completely listed, or failed."""
        return self.products_complete and self.done == len(self.products)

    @property
    def complete(self) -> bool:
        """Whether all products are completely listed."""
        return self.products_complete and all(each.pager.phase == "ended" for each in self.products.values())

    @property
    def products_missing(self) -> int:
        """Number of products that the list counted and did not contain."""
        return max(0, (self.pager.least_total or 0) - len(self.keys))

    def remaining(self) -> list[ProductDiscovery]:
        """Return the incomplete products, the largest first, since the pages of a product are read sequentially."""
        incomplete = [each for each in self.products.values() if each.pager.phase != "ended" and each.failure is None]
        return sorted(incomplete, key=lambda each: -(each.product.device_count or 0))

    def record_products(self, page: ListPage[Product]) -> None:
        """Record a page of the list of products."""
        self._record({"kind": "products", "total": page.total, "products": [asdict(each) for each in page.items]})

    def record_final_counts(self, counts: Mapping[str, int | None]) -> None:
        """Record products' own device counts that were read again at the end."""
        self._record({"kind": "final_counts", "counts": counts})

    def record_products_denied(self, code: str, message: str) -> None:
        """Record that the list of products is denied; the configured products are used instead."""
        self._record({"kind": "products_denied", "code": code, "message": message})

    def record_devices(self, product_key: str, page: ListPage[ListedDevice]) -> None:
        """Record a page of a product's devices."""
        devices = [asdict(each) for each in page.items]
        product = self.products[product_key]
        origin = {"reading": product.reading, "reread": product.pager.phase == "newest"}
        numbers = {"total": page.total, "next_token": page.next_token, **origin}
        self._record({"kind": "devices", "product_key": product_key, **numbers, "devices": devices})

    def record_rejected_token(self, product_key: str) -> None:
        """Record that the platform rejected the token of a product's next page."""
        self._record({"kind": "token_rejected", "product_key": product_key})

    def restart(self, product_key: str | None) -> None:
        """Restart a completely listed product, or the list of products (None); incomplete products continue anyway."""
        product = self.products.get(product_key) if product_key is not None else None
        if product_key is None or (product is not None and product.pager.phase == "ended"):
            self._record({"kind": "restart", "product_key": product_key})

    def fail(self, product_key: str, code: str, message: str) -> None:
        """Note that a product cannot be listed further."""
        self.products[product_key].failure = (code, message)

    def _record(self, record: Record) -> None:
        if self._lines is None:
            raise RuntimeError("the journal is not open: use it as `with DiscoveryJournal(…) as journal`")
        self._lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self._apply(record)

    def _replay(self) -> None:
        """Replay the file; truncate it at an invalid line or incomplete page, which a power failure may leave."""
        kept = end = 0
        with self.path.open("r+b") as file:
            for line in file:
                end += len(line)
                try:
                    is_complete = self._apply(orjson.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
                if is_complete:
                    kept = end
            if kept < end:
                file.truncate(kept)

    def _apply(self, record: Record) -> bool:
        """Apply a line; return whether it is the last one of its page."""
        match record["kind"]:
            case "products":
                self._apply_products([Product(**each) for each in record["products"]], record["total"])
            case "products_denied":
                self._add_configured_products()
            case "final_counts":
                for key, count in record["counts"].items():
                    if key in self.products:
                        self.products[key].final_count = count
            case "devices":
                self._apply_devices(self.products[record["product_key"]], record)
            case "restart":
                self._restart(record["product_key"])
            case "token_rejected":
                refused = self.products[record["product_key"]]
                refused.pager.forget_tokens()
                refused.rejected_tokens += 1
        self.pages += 1
        return True

    def _apply_products(self, listed: Sequence[Product], total: int | None) -> None:
        keys = tuple(each.product_key for each in listed)
        self.pager.add_page(ListPage(keys, None, total, None))
        self.keys.update(keys[: MAX_PRODUCTS - len(self.keys)])
        self._add_products(each for each in listed if each.product_key in self.keys)
        if not self.keys.issuperset(keys):  # pages that were read again may have other products each time
            self.pager.end(f"no more than {MAX_PRODUCTS:,} can be listed")
        if self.pager.phase == "ended":
            self._add_configured_products()

    def _apply_devices(self, product: ProductDiscovery, record: Record) -> None:
        names, reread = tuple(each["device_name"] for each in record["devices"]), record["reread"]
        if product.pager.next_page.page > product.last_page:
            product.last_page, product.rejected_tokens = product.pager.next_page.page, 0
        product.pager.add_page(ListPage(names, None, record["total"], record["next_token"]))
        product.rows += 0 if reread else len(names)

    def _restart(self, product_key: str | None) -> None:
        if product_key is None:
            self.pager, self.products_complete, self.keys = products_pager(), False, set()
        else:
            before = self.products[product_key]
            self.products[product_key] = ProductDiscovery(before.product, rows=before.rows, reading=before.reading + 1)

    def _add_configured_products(self) -> None:
        """End the list of products: configured products are discovered even if they were not listed."""
        self.products_complete = True
        if isinstance(self._fleet.products, tuple):
            self._add_products(Product(key, None, None) for key in self._fleet.products)

    def _add_products(self, products: Iterable[Product]) -> None:
        include, exclude = self._fleet.include.product_key or (MATCH_ALL,), self._fleet.exclude.product_key
        for product in products:
            key, named = product.product_key, self._fleet.products
            wanted = (named == "all" or key in (named or ())) and matches_any(key, include)
            if wanted and not (exclude and matches_any(key, exclude)):
                self.products.setdefault(key, ProductDiscovery(product))
