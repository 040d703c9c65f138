"""What the simulated platform keeps about a device beside its versions: its secret, its status and its dates.

All of it is a function of the device and of when its world began, so nothing is stored. Devices are registered one
after another, and were online before the world's first day.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import blake2b
from struct import Struct

from auditor.simulator.life import DeviceStatus
from auditor.simulator.world import DAY, FIRST_REGISTERED, SimulatedDevice

DEVICE_SECRET_PREFIX = "device-secret-"  # noqa: S105  a mark to look for, no secret
"""Every device's secret begins with this, so that a search tells whether any was kept."""

_APART = 211
"""Milliseconds from a device's registration to the next."""

_MONTH = 30 * DAY
_CHINA = timezone(timedelta(hours=8))
_DRAWS = Struct("<2x3I4B8s")

_MOMENT = 500
"""Milliseconds within which the devices of a day come online, and within which they go offline then: an audit of that
day, which takes longer, ends after all that happened on it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One device as the platform keeps it; times are milliseconds since 1970.

    Attributes:
        created: when it was registered.
        modified: when its record was changed.
        changed: when it came to be in this status.
        online: when it came online last; None if never.
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


def record_of(device: SimulatedDevice, began: int) -> Record:
    """What the platform keeps about a device of a world whose day 0 is ``began``, in milliseconds since 1970."""
    dice = blake2b(device.iot_id.encode(), digest_size=_DRAWS.size).digest()
    modified, online, offline, *host, secret = _DRAWS.unpack(dice)
    created = min(FIRST_REGISTERED + device.index * _APART, began - _MONTH - 2 * DAY)
    if device.connected:
        seen = began + device.connected * DAY + online % _MOMENT
        left = seen + 1 + offline % _MOMENT
    else:
        seen = began - 2 * DAY - online % _MONTH
        left = seen + offline % DAY
    changed = {"ONLINE": seen, "UNACTIVE": created}.get(device.status, left)
    return Record(
        status=device.status,
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
