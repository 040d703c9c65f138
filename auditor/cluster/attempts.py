"""Attempts at a shard: which of them owns it, and which of their parts count. Pure: no clock, file or network.

An attempt is one process that queries the devices of a shard. It appends *parts*, numbered from 1, each with the lines
that it wrote since the part before. No object is written a second time with other content. Three rules decide
everything, from a listing alone:

1. The greatest name owns the shard. An attempt first puts its marker, then lists: so of two attempts that start
   together, at least one finds the other.
2. An attempt continues the greatest one before it that has a *base*: it takes the parts of that base, then the parts
   that the other attempt has stored until now. It puts this as its own base before it queries a device. A part that
   arrives later is in no base, and never counts. Therefore no device comes twice, whatever was suspended or delayed.
3. The first done marker counts. It names parts with a line for each device that was queried; each marker does.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

MARKERS, ATTEMPTS, PARTS = "markers", "attempts", "parts"
"""Folders of a shard: an object for each attempt; its other objects; its parts."""

BASE, STATE, DONE, SNAPSHOTS = "base.json", "state.json", "done.json", "snapshots"
"""Objects of an attempt: what it continues, its progress, what counts at its end, and files other than lines."""

_NAME = re.compile(r"\d{6}-[0-9a-f]{16}")
_PART = re.compile(r"parts/(\d{6})\.jsonl\.gz")
_SNAPSHOT = re.compile(r"snapshots/(\d{6})/run\.json")

_MAX_ATTEMPTS = 999_999


AttemptName = Annotated[str, msgspec.Meta(pattern=r"^\d{6}-[0-9a-f]{16}$")]
"""Name of an attempt; a record of a storage that has another one is refused."""

SnapshotPath = Annotated[str, msgspec.Meta(pattern=r"^\d{6}-[0-9a-f]{16}/snapshots/\d{6}$")]


class PartRange(msgspec.Struct, frozen=True, array_like=True):
    """The parts 1 to ``count`` of an attempt."""

    attempt: AttemptName
    count: Annotated[int, msgspec.Meta(ge=1, le=999_999)]


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt continues, or what counts at its end.

    Attributes:
        parts: the parts that count, in their order.
        snapshot: the files that belong to them, as ``ATTEMPT/snapshots/NUMBER``; None: those of the plan.
    """

    parts: tuple[PartRange, ...] = ()
    snapshot: SnapshotPath | None = None

    def extended(self, attempt: str, parts: int, snapshot: int) -> "Base":
        """Return a base with the parts of an attempt that continues this one, and its last snapshot."""
        added = (PartRange(attempt, parts),) if parts else ()
        own = f"{attempt}/{SNAPSHOTS}/{snapshot:06d}" if snapshot else self.snapshot
        return Base(parts=(*self.parts, *added), snapshot=own)

    def part_keys(self) -> Iterable[str]:
        """Yield the keys of the parts, below the folder of attempts."""
        for each in self.parts:
            yield from (part_key(each.attempt, number) for number in range(1, each.count + 1))


def part_key(attempt: str, number: int) -> str:
    """Return the key of a part, below the folder of attempts."""
    return f"{attempt}/{PARTS}/{number:06d}.jsonl.gz"


def is_attempt_name(text: str) -> bool:
    """Return whether a text is a name as ``next_name`` returns it."""
    return _NAME.fullmatch(text) is not None


def next_name(names: Iterable[str], token: str) -> str:
    """Return a name greater than all ``names``; no clock decides, since clocks differ. ``token`` makes it unique.

    Raises:
        ValueError: there are too many attempts.
    """
    number = 1 + max((int(name.partition("-")[0]) for name in names if is_attempt_name(name)), default=0)
    if number > _MAX_ATTEMPTS:
        raise ValueError(f"{_MAX_ATTEMPTS:,} attempts")
    return f"{number:06d}-{token}"


def owner(names: Iterable[str]) -> str | None:
    """Return the attempt that owns a shard; None: it has none."""
    return max(filter(is_attempt_name, names), default=None)


@dataclass(frozen=True, slots=True)
class AttemptObjects:
    """What a listing shows of an attempt.

    Attributes:
        name: its name.
        has_base: whether it may have queried devices.
        is_done: whether it has a done marker.
        parts: number of its parts, up to the first one that is missing.
        snapshot: number of its last complete snapshot; 0: it has none.
    """

    name: str
    has_base: bool
    is_done: bool
    parts: int
    snapshot: int


def read_listing(keys: Iterable[str]) -> dict[str, AttemptObjects]:
    """Return the attempts of a shard by name, from the keys below its folder of attempts. Other keys are ignored."""
    found: dict[str, set[str]] = {}
    for key in keys:
        name, _, rest = key.partition("/")
        if is_attempt_name(name):
            found.setdefault(name, set()).add(rest)
    return {name: _describe(name, rests) for name, rests in sorted(found.items())}


def _describe(name: str, rests: set[str]) -> AttemptObjects:
    numbers = {int(match[1]) for rest in rests if (match := _PART.fullmatch(rest)) is not None}
    snapshots = [int(match[1]) for rest in rests if (match := _SNAPSHOT.fullmatch(rest)) is not None]
    parts = 0
    while parts + 1 in numbers:
        parts += 1
    return AttemptObjects(name, BASE in rests, DONE in rests, parts, max(snapshots, default=0))


def find_continued(attempts: Mapping[str, AttemptObjects], name: str) -> AttemptObjects | None:
    """Return the attempt that the attempt ``name`` continues; None: it starts from the plan."""
    earlier = [each for each in attempts.values() if each.has_base and each.name < name]
    return max(earlier, key=lambda each: each.name, default=None)


def find_done(attempts: Mapping[str, AttemptObjects]) -> str | None:
    """Return the attempt whose done marker counts; None: the shard is not done."""
    return min((each.name for each in attempts.values() if each.is_done), default=None)
