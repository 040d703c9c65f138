"""What a run tells of how its fleets were listed, and of their products, ``products.jsonl``."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import orjson

from auditor.errors import RunFolderError

GAPS_SHOWN = 100
"""Products with a gap that the manifest names."""


ListingState = Literal["pending", "partial", "complete"]


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests sent, those of them that were repeats, and answers that said the quota was used up."""

    sent: int = 0
    retried: int = 0
    throttled: int = 0


@dataclass(frozen=True, slots=True)
class GapFacts:
    """A product of which fewer devices were listed than the platform told of; None: products were.

    ``total`` is what the list itself told last, ``device_count`` the product's own number; None where it told none.
    ``reason``: why it could not be listed, or may have been listed in part; None: only the numbers differ.
    """

    product_key: str | None
    listed: int
    total: int | None
    device_count: int | None
    reason: str | None = None

    def __str__(self) -> str:
        told = max((number for number in (self.total, self.device_count) if number is not None), default=0)
        of, why = f" of {told:,}" if told > self.listed else "", f" ({self.reason})" if self.reason else ""
        if self.product_key is None:
            return f"a gap: {self.listed:,}{of} products listed{why}"
        return f"a gap: product {self.product_key}: {self.listed:,}{of} devices listed{why}"


@dataclass(frozen=True, slots=True)
class ListingFacts:
    """How the platform's listing of an account's fleet went.

    Attributes:
        account: its name.
        state: ``complete``: every wanted product was listed to its end; ``partial``: there are gaps; ``pending``: not
            listed yet, or not to the end. What is not complete a resume goes on with.
        products: that are wanted.
        devices: in the fleet.
        repeats: rows that named a device again, because others were registered or removed meanwhile.
        excluded: devices that the settings leave out.
        statuses: devices of the fleet by what the listing told of them, such as ``ONLINE``; ``""``: nothing.
        requests: that listing took.
        missing: devices that the platform told of and did not list.
        unlisted: gaps of which it is not known how many devices are missing.
        gap_count, gaps: products with a gap, and the first of them.
    """

    account: str
    state: ListingState = "pending"
    products: int = 0
    devices: int = 0
    repeats: int = 0
    excluded: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    requests: RequestCounts = RequestCounts()
    missing: int = 0
    unlisted: int = 0
    gap_count: int = 0
    gaps: tuple[GapFacts, ...] = ()

    def doubts(self) -> Iterator[str]:
        """Why the fleet may not be whole, a sentence each."""
        if self.state == "pending":
            yield f'the fleet of account "{self.account}" was not listed to its end'
        yield from (f'account "{self.account}": {gap}' for gap in self.gaps[:3])
        if self.gap_count > 3:  # noqa: PLR2004  examples in a sentence
            yield f'account "{self.account}": {self.gap_count - 3:,} products more of which devices are missing'


@dataclass(frozen=True, slots=True)
class ProductFacts:
    """A line of ``products.jsonl``: a product of the fleet.

    Attributes:
        account, product_key, product_name, device_count: as the platform lists it; None where it told nothing.
        devices: of the fleet.
        modules: the OTA modules that it defines; None: not known.
    """

    account: str
    product_key: str
    product_name: str | None
    device_count: int | None
    devices: int
    modules: tuple[str, ...] | None = None


def read_products(path: Path) -> list[ProductFacts]:
    """The products that a run tells of; none if the file is not there.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [msgspec.convert(orjson.loads(line), ProductFacts) for line in lines]
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
