"""What an audit tells: where it stands, to a watcher, and what it came to, to its caller."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from auditor.runs.manifest import DeviceCounts, Manifest, RequestCounts

INTERRUPTED = 130
"""Exit code of an audit that was asked to end before it was done."""


@dataclass(frozen=True, slots=True)
class ListingProgress:
    """How far the platform's listing is, of an account, or of ``accounts`` whose fleets are not known yet.

    ``done`` of ``products`` are listed, and ``devices`` came of those that the products have by their own number:
    ``told``, None where one told none. ``pages`` were answered in this stretch.
    """

    accounts: int
    products: int
    done: int
    devices: int
    told: int | None
    pages: int


@dataclass(frozen=True, slots=True)
class AccountProgress:
    """Where one account of an audit stands, since this stretch of it began.

    Attributes:
        name: the account's.
        sent: requests.
        done: devices whose outcome is known, ``failed`` ones among them.
        in_flight: requests without an answer yet.
        per_second: requests a second that its quota bears as far as was learned; None without one.
        ended: whether nothing more is asked of it.
        stopped: why, if it was stopped.
        trouble: why nothing comes of it now, if so.
        listing: how far its fleet is listed; None once it is, and where it is a file.
    """

    name: str
    sent: int
    done: int
    failed: int
    in_flight: int
    per_second: float | None
    ended: bool
    stopped: str | None
    trouble: str | None
    listing: ListingProgress | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an audit stands.

    ``devices`` and ``requests`` are of the whole run, ``before`` of them (requests sent, devices done) from before it
    was ``resumed``. ``per_second`` is what the quotas allow in all, None without one, and ``allowed`` what they bear as
    far as was learned; ``others`` are the audits that share one of them now. ``trouble`` names an account that gives no
    usable answer, and says why. ``accounts`` are in the settings' order. ``listing``: of fleets that are being listed;
    ``fleet`` has the others. ``states``: of how many devices it is known what they are doing, and of how many that is
    being asked; None: that is not asked now. Devices that were not drawn into a sample are none of the fleet here.
    """

    folder: Path
    fleet: int
    devices: DeviceCounts
    requests: RequestCounts
    in_flight: int
    per_second: float | None
    elapsed: float
    allowed: float | None = None
    others: int = 0
    trouble: str | None = None
    sealing: bool = False
    before: tuple[int, int] = (0, 0)
    resumed: bool = False
    listing: ListingProgress | None = None
    states: tuple[int, int] | None = None
    accounts: tuple[AccountProgress, ...] = ()


Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What an audit came to. The folder is valid whatever happened.

    Attributes:
        folder: the run folder.
        manifest: as it stands in ``run.json``.
        exit_code: 0 done; 1 more devices failed or pending than ``max_failed`` allows; 3 an account was stopped, or the
            folder cannot be written; 130 interrupted.
    """

    folder: Path
    manifest: Manifest
    exit_code: int


def together(listings: Collection[ListingProgress]) -> ListingProgress | None:
    """How far some listings are together; None where there is none."""
    if not listings:
        return None
    told = [each.told for each in listings]
    return ListingProgress(
        accounts=sum(each.accounts for each in listings),
        products=sum(each.products for each in listings),
        done=sum(each.done for each in listings),
        devices=sum(each.devices for each in listings),
        told=None if None in told else sum(count for count in told if count is not None),
        pages=sum(each.pages for each in listings),
    )
