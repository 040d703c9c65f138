"""Whom the report's numbers are of, as plain values: devices by state, how many were drawn, and how old answers are."""

from dataclasses import asdict, dataclass
from datetime import datetime

from auditor.inventory.ages import Ages
from auditor.inventory.folder import DeviceCounts
from auditor.inventory.samples import Sample


def parts_of(counts: DeviceCounts, unsampled: int) -> dict[str, int]:
    """Devices by what became of them: those that were not drawn into a sample are none that are pending."""
    return asdict(counts) | {"pending": counts.pending - unsampled, "unsampled": unsampled}


@dataclass(frozen=True, slots=True)
class Product:
    """A product's devices by state; ``unsampled`` of those that are pending were not drawn into the sample."""

    account: str
    product_key: str | None
    counts: DeviceCounts
    unsampled: int = 0

    @property
    def devices(self) -> int:
        """All of them."""
        return fleet_of(self.counts)

    @property
    def parts(self) -> dict[str, int]:
        """By what became of them."""
        return parts_of(self.counts, self.unsampled)

    @property
    def answered(self) -> float | None:
        """The part that has a conclusive answer, of those that were to have one; None where none was."""
        return _answered(self.counts, self.unsampled)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whom the numbers are of.

    Attributes:
        counts: devices by state.
        products: those with the greatest part unanswered, the worst first.
        all_products: how many there are.
        lacking: how many of them have a device without an answer.
        ages: how old the answers are.
        unsampled: devices that were not drawn into the sample.
        sample: what the sample tells of the fleet; None where the run is none.
    """

    counts: DeviceCounts
    products: tuple[Product, ...]
    all_products: int
    lacking: int
    ages: Ages
    unsampled: int = 0
    sample: Sample | None = None

    @property
    def fleet(self) -> int:
        """Devices that were asked for."""
        return fleet_of(self.counts)

    @property
    def wanted(self) -> int:
        """Devices that were to be answered: all, or those that were drawn."""
        return self.fleet - self.unsampled

    @property
    def parts(self) -> dict[str, int]:
        """Devices by what became of them."""
        return parts_of(self.counts, self.unsampled)

    @property
    def answered(self) -> float:
        """The part of the fleet, or of what was drawn of it, that has a conclusive answer."""
        return _answered(self.counts, self.unsampled) or 0.0

    @property
    def first(self) -> datetime | None:
        """When the oldest answer was given, None without any."""
        return self.ages.first

    @property
    def last(self) -> datetime | None:
        """When the newest was."""
        return self.ages.last


def fleet_of(counts: DeviceCounts) -> int:
    """All devices of a fleet."""
    return counts.ok + counts.empty + counts.not_found + counts.unanswered


def _answered(counts: DeviceCounts, unsampled: int) -> float | None:
    wanted = fleet_of(counts) - unsampled
    return 1 - (counts.unanswered - unsampled) / wanted if wanted else None
