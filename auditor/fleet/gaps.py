"""Result of a discovery: the information for the manifest, its gaps, and its progress."""

from pathlib import Path

from auditor.client.operations import DISCOVERY_OPERATIONS
from auditor.config.settings import FleetSource
from auditor.engine.account_session import AccountSession
from auditor.engine.progress import DiscoveryProgress
from auditor.fleet.discovery_journal import DiscoveryJournal, ProductDiscovery
from auditor.fleet.materialize import MaterializedFleet, ProductCount, materialize
from auditor.runs.manifest import MAX_GAPS, DiscoveryInfo
from auditor.runs.products import ProductInfo
from auditor.runs.selection_info import GapInfo, RequestCounts

_NO_COUNT = ProductCount(0, 0)

_NO_TOTAL = "the platform reported no total, so it cannot be proven that nothing is missing"


def discovery_info(
    session: AccountSession,
    journal: DiscoveryJournal,
    found: MaterializedFleet,
    before: RequestCounts,
    *,
    limited: bool = False,
) -> DiscoveryInfo:
    """Return the result of a discovery after the requests ``before``; it may have ended early because it was
    ``limited``.
    """
    stats, gaps = session.request_stats(*DISCOVERY_OPERATIONS), [] if limited else find_gaps(journal, found)
    of_products = [gap for gap in gaps if gap.product_key is not None]
    complete = limited or (journal.complete and not gaps)
    return DiscoveryInfo(
        account=session.name,
        state="complete" if complete else "partial" if journal.finished else "pending",
        products=len(journal.products),
        devices=found.devices,
        duplicates=found.duplicates,
        excluded=found.excluded,
        statuses=dict(found.statuses),
        requests=RequestCounts(
            max(before.sent, journal.pages_before, session.sent_before(*DISCOVERY_OPERATIONS)) + stats.sent,
            before.retried + stats.retried,
            before.throttled + stats.throttled,
        ),
        missing=sum(max(gap.total or 0, gap.device_count or 0, gap.listed) - gap.listed for gap in of_products),
        gaps_of_unknown_size=sum(gap.product_key is None or gap.reason is not None for gap in gaps),
        gap_count=len(gaps),
        gaps=tuple(gaps[:MAX_GAPS]),
        shared_iot_ids=found.shared_iot_ids,
    )


def find_gaps(journal: DiscoveryJournal, found: MaterializedFleet) -> list[GapInfo]:
    """Return what is missing in a discovery: products, and devices of products."""
    gaps = [gap for each in journal.products.values() if (gap := _product_gap(each, found)) is not None]
    problem = journal.pager.problem
    if problem is None and journal.pager.least_total is None and not journal.has_configured_products:
        problem = _NO_TOTAL
    if journal.products_complete and (journal.products_missing or problem):
        gaps.insert(0, GapInfo(None, len(journal.keys), journal.pager.total, None, problem))
    return gaps


def retry_gaps(journal: DiscoveryJournal, account: str, source: FleetSource, scratch: Path) -> None:
    """Restart the products of an open journal that have gaps; the file ``scratch`` is written meanwhile."""
    for gap in find_gaps(journal, materialize(journal.path, scratch, account, source)):
        journal.restart(gap.product_key)


def product_infos(account: str, journal: DiscoveryJournal, found: MaterializedFleet) -> list[ProductInfo]:
    """Return the products of an account; the modules that they define are fetched later."""
    products = ((found.products.get(key, _NO_COUNT), each.product) for key, each in journal.products.items())
    return [
        ProductInfo(account, each.product_key, each.product_name, each.device_count, count.devices)
        for count, each in products
    ]


def discovery_progress(journal: DiscoveryJournal | None) -> DiscoveryProgress:
    """Return the progress of a discovery; None: it has not started."""
    if journal is None:
        return DiscoveryProgress(1, 0, 0, 0, None, 0)
    counts = [each.product.device_count for each in journal.products.values()]
    return DiscoveryProgress(
        accounts=1,
        products=len(journal.products),
        products_done=journal.done,
        devices=sum(each.reached for each in journal.products.values()),
        devices_reported=None if None in counts or not counts else sum(count for count in counts if count is not None),
        pages=journal.pages - journal.pages_before,
    )


def _product_gap(discovery: ProductDiscovery, found: MaterializedFleet) -> GapInfo | None:
    """Return what is missing of a product, if something is."""
    product, pager = discovery.product, discovery.pager
    listed = found.products.get(product.product_key, _NO_COUNT).listed
    reason = ": ".join(filter(None, discovery.failure)) if discovery.failure is not None else pager.problem
    if reason is None and listed >= discovery.least_devices:
        if pager.least_total is not None or product.device_count is not None or discovery.final_count is not None:
            return None
        reason = _NO_TOTAL
    count = product.device_count if discovery.final_count is None else discovery.final_count
    return GapInfo(product.product_key, listed, pager.total, count, reason)
