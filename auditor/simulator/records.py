"""What the simulated platform keeps about a device beside its versions: its secret, its status and its dates.

All of it is a function of the device, so nothing is stored. Devices are registered one after another, and have been
online once more on each simulated day: a device reports new versions while it is connected.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import blake2b
from struct import Struct
from typing import Literal

from auditor.simulator.world import SimulatedDevice

DEVICE_SECRET_PREFIX = "device-secret-"  # noqa: S105  a mark to look for, no secret
"""Every device's secret begins with this, so that a search tells whether any was kept."""

DeviceStatus = Literal["ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"]
"""As the platform spells them."""

FIRST_REGISTERED = round(datetime(2025, 3, 1, tzinfo=UTC).timestamp() * 1000)
"""When the first device of every world was registered, in milliseconds since 1970."""

_APART = 211
"""Milliseconds from a device's registration to the next: the largest possible world ends before the year 9999."""

_DAY = 86_400_000
_MONTH = 30 * _DAY
_CHINA = timezone(timedelta(hours=8))
_DRAWS = Struct("<H3I4B8s")
_SHARE_SCALE = 1 << 16
_DISABLED, _OFFLINE = _SHARE_SCALE // 100, _SHARE_SCALE * 3 // 10


@dataclass(frozen=True, slots=True)
class Record:
    """One device as the platform keeps it; times are milliseconds since 1970.

    Attributes:
        created: when it was registered.
        modified: when its record was changed.
        changed: when it came to be in this status.
        online: when it was online last; None if never.
        address: where it was online from.
        secret: what it shows to the platform; clients of the API get it and must not keep it.
    """

    status: DeviceStatus
    created: int
    modified: int
    changed: int
    online: int | None
    address: str
    secret: str


def record_of(device: SimulatedDevice, day: int) -> Record:
    """What the platform keeps about a device on a simulated day."""
    dice = blake2b(device.iot_id.encode(), digest_size=_DRAWS.size).digest()
    drawn, modified, online, offline, *host, secret = _DRAWS.unpack(dice)
    created = FIRST_REGISTERED + device.index * _APART
    status: DeviceStatus = "ONLINE"
    changed = seen = created + online % _MONTH + day * _DAY
    if not device.activated:
        status, changed = "UNACTIVE", created
    elif drawn < _OFFLINE:
        status = "DISABLE" if drawn < _DISABLED else "OFFLINE"
        changed = seen + offline % _DAY
    return Record(
        status=status,
        created=created,
        modified=created + modified % _MONTH,
        changed=changed,
        online=seen if device.activated else None,
        address=f"10.{host[0]}.{host[1]}.{host[2]}:{40_000 + host[3]}" if device.activated else "",
        secret=DEVICE_SECRET_PREFIX + secret.hex(),
    )


def utc_text(milliseconds: int) -> str:
    """``2025-10-10T07:00:32.000Z``, as the platform writes fields whose names begin with ``utc``."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment.isoformat()[:19]}.{milliseconds % 1000:03d}Z"


def gmt_text(milliseconds: int) -> str:
    """``2025-10-10 15:00:32``: what begins with ``gmt`` is China's time in the documents' examples, so it is here."""
    return datetime.fromtimestamp(milliseconds // 1000, _CHINA).isoformat(" ")[:19]
