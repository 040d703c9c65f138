"""What a listing came to, in the facts that a manifest keeps and a watcher is told."""

from pathlib import Path

from auditor.config.settings import FleetSource
from auditor.engine.account_session import AskedAccount
from auditor.engine.progress import ListingProgress
from auditor.fleet.crawler import LISTING
from auditor.fleet.discovery_journal import Listing, ProductListing
from auditor.fleet.materialize import ListedFleet, ProductCount, write_listed
from auditor.runs.manifest import GAPS_SHOWN, GapFacts, ListingFacts, RequestCounts
from auditor.runs.products import ProductFacts

_NONE = ProductCount(0, 0)


def facts_of(
    asked: AskedAccount, listing: Listing, found: ListedFleet, before: RequestCounts, *, cut: bool = False
) -> ListingFacts:
    """What listing an account's fleet came to.

    Args:
        asked: the account.
        listing: its journal.
        found: what the journal holds.
        before: requests of an earlier stretch.
        cut: whether it was ended because no more devices were wanted.
    """
    tally, gaps = asked.requests_of(*LISTING), [] if cut else gaps_of(listing, found)
    whole = cut or (listing.whole and not gaps)
    return ListingFacts(
        account=asked.name,
        state="complete" if whole else "partial" if listing.over else "pending",
        products=len(listing.products),
        devices=found.devices,
        repeats=found.repeats,
        excluded=found.excluded,
        statuses=dict(found.statuses),
        requests=RequestCounts(
            max(before.sent, listing.pages_before) + tally.sent,
            before.retried + tally.retried,
            before.throttled + tally.throttled,
        ),
        missing=sum(_missing(gap) for gap in gaps if gap.product_key is not None),
        unlisted=sum(gap.product_key is None or gap.reason is not None for gap in gaps),
        gap_count=len(gaps),
        gaps=tuple(gaps[:GAPS_SHOWN]),
    )


def _missing(gap: GapFacts) -> int:
    return max(0, max(gap.total or 0, gap.device_count or 0) - gap.listed)


def gaps_of(listing: Listing, found: ListedFleet) -> list[GapFacts]:
    """What is missing in a listing: products, and devices of products."""
    gaps = [gap for each in listing.products.values() if (gap := _gap(each, found)) is not None]
    if listing.told and (listing.products_missing or listing.pager.doubt):
        gaps.insert(0, GapFacts(None, len(listing.keys), listing.pager.total, None, listing.pager.doubt))
    return gaps


def list_gaps_anew(listing: Listing, account: str, source: FleetSource, scratch: Path) -> None:
    """What was listed with a gap is to be listed once more.

    Args:
        listing: its journal, open.
        account: whose.
        source: which devices are wanted.
        scratch: a file that is written meanwhile.

    Raises:
        RunNotWritableError: it or the journal cannot be written.
    """
    for gap in gaps_of(listing, write_listed(listing.path, scratch, account, source)):
        listing.list_anew(gap.product_key)


def products_of(account: str, listing: Listing, found: ListedFleet) -> list[ProductFacts]:
    """The products of an account's fleet; which modules they define is asked later."""
    products = ((found.products.get(key, _NONE), each.product) for key, each in listing.products.items())
    return [
        ProductFacts(account, each.product_key, each.product_name, each.device_count, count.devices)
        for count, each in products
    ]


def progress_of(listing: Listing | None) -> ListingProgress:
    """How far a listing is; None: it has not begun."""
    if listing is None:
        return ListingProgress(1, 0, 0, 0, None, 0)
    told = [each.product.device_count for each in listing.products.values()]
    return ListingProgress(
        accounts=1,
        products=len(listing.products),
        done=listing.done,
        devices=sum(each.pager.reached for each in listing.products.values()),
        told=None if None in told or not told else sum(count for count in told if count is not None),
        pages=listing.pages - listing.pages_before,
    )


def _gap(product: ProductListing, found: ListedFleet) -> GapFacts | None:
    """What is missing of a product, if something is."""
    facts, pager = product.product, product.pager
    listed = found.products.get(facts.product_key, _NONE).listed
    reason = ": ".join(filter(None, product.failure)) if product.failure is not None else pager.doubt
    if reason is None and listed >= product.told:
        return None
    count = facts.device_count if product.count_again is None else product.count_again
    return GapFacts(facts.product_key, listed, pager.total, count, reason)
