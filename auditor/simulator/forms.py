"""Forms of a response where documents, typed models and public samples of the platform differ.

By default they are those that the vendor's typed Python models declare (``alibabacloud_iot20180120``), with the
documented sample of ``LastOnlineTime``, ``2020-01-17 16:19:11``. No zone is documented for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Literal

TimeForm = Literal[
    "text", "iso", "offset", "milliseconds", "digits", "seconds", "unreadable", "empty", "null", "absent", "mixed"
]
"""How a time is written:

- ``text``: ``2020-01-17 16:19:11`` in the platform's zone, which is not named.
- ``offset``: ``2020-01-17T16:19:11+08:00``, in the platform's zone. ``iso``: ``2020-01-17T08:19:11.250Z``.
- ``milliseconds``, ``seconds``: a number since 1970. ``digits``: the milliseconds as a string.
- ``unreadable``: ``17 January, afternoon``. ``empty``: an empty string. ``null``: null. ``absent``: no member at all.
- ``mixed``: ``text``, ``milliseconds``, ``iso`` and ``digits`` in turn, by the index of the device.
"""

ScalarForm = Literal["typed", "text"]
"""Whether numbers and truth values are JSON's own, or strings."""

ArrayForm = Literal["documented", "bare", "wrapped"]
"""How an array is wrapped, such as that of ``data: {deviceInfo: […]}``:

- ``documented``: in an object, except the modules of a product.
- ``bare``: an object that holds nothing but an array is that array.
- ``wrapped``: in an object, the modules of a product too.
"""

EmptyForm = Literal["array", "null", "object", "none"]
"""How an array without items is written: ``[]``; null; left out of its object; or null instead of the object."""

UnusedForm = Literal["absent", "null", "text"]
"""How the error of a success and the token of a last page are written: not at all, null, or an empty string."""

CHINA = timezone(timedelta(hours=8))
"""Zone of the platform's local times, as in the examples of fields that begin with ``gmt``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseForms:
    """Forms of the members of a response.

    Attributes:
        last_online: form of ``LastOnlineTime`` in the states of devices.
        timestamp: form of ``Timestamp`` in the states of devices.
        utc: form of the times of firmware, jobs and tasks.
        zone: zone of local times in these three.
        scalars: form of all numbers and truth values.
        arrays: form of the objects that hold an array.
        empty: form of arrays without items.
        unused: form of members that have no value.
    """

    last_online: TimeForm = "text"
    timestamp: TimeForm = "milliseconds"
    utc: TimeForm = "iso"
    zone: tzinfo = CHINA
    scalars: ScalarForm = "typed"
    arrays: ArrayForm = "documented"
    empty: EmptyForm = "array"
    unused: UnusedForm = "absent"

    @property
    def changes_shape(self) -> bool:
        """Whether ``reshape`` changes any response."""
        return (self.scalars, self.arrays, self.empty, self.unused) != ("typed", "documented", "array", "absent")


MODEL_FORMS = ResponseForms()
"""Forms that the vendor's typed models declare."""


def reshape(document: dict[str, object], forms: ResponseForms) -> dict[str, object]:
    """Return a complete response in the forms that concern all operations; ``wrapped`` concerns only one."""
    if not forms.changes_shape:
        return document
    if forms.unused != "absent":
        # Only lists of devices have the member `page`, and a token.
        names = ("errorMessage", "nextToken") if "page" in document else ("errorMessage",)
        document = {**dict.fromkeys(names, None if forms.unused == "null" else ""), **document}
    return {name: _reshape(member, forms) for name, member in document.items()}


def _reshape(value: object, forms: ResponseForms) -> object:
    if isinstance(value, dict):
        return _reshape_object(value, forms)
    if isinstance(value, list):
        return [_reshape(item, forms) for item in value] if value or forms.empty == "array" else None
    if isinstance(value, int) and forms.scalars == "text":
        return str(value).lower() if isinstance(value, bool) else str(value)
    return value


def _reshape_object(value: dict[str, object], forms: ResponseForms) -> object:
    is_left_out = forms.empty in {"object", "none"}
    members = {name: _reshape(each, forms) for name, each in value.items() if not (is_left_out and each == [])}
    if value and not members and forms.empty == "none":
        return None
    array = next(iter(members.values())) if len(members) == 1 else None
    return array if forms.arrays == "bare" and isinstance(array, list) else members


def time_member(name: str, milliseconds: int, form: TimeForm, zone: tzinfo, index: int) -> dict[str, object]:
    """Return a member with a time, or no member.

    Args:
        name: name of the member.
        milliseconds: the time since 1970.
        form: how it is written.
        zone: zone of local forms.
        index: number of the device, for the form ``mixed``.
    """
    if form == "mixed":
        form = _MIXED[index % len(_MIXED)]
    return {} if form == "absent" else {name: _FORMATS[form](milliseconds, zone)}


def format_utc_field(milliseconds: int) -> str:
    """Return ``2025-10-10T07:00:32.000Z``, the format of fields whose names begin with ``utc``."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment.isoformat()[:19]}.{milliseconds % 1000:03d}Z"


def format_local_time(milliseconds: int, zone: tzinfo = CHINA) -> str:
    """Return ``2025-10-10 15:00:32`` in a zone: by default China's, as in the examples of fields with ``gmt``."""
    return datetime.fromtimestamp(milliseconds // 1000, zone).isoformat(" ")[:19]


_MIXED: tuple[TimeForm, ...] = ("text", "milliseconds", "iso", "digits")

_FORMATS: dict[TimeForm, Callable[[int, tzinfo], str | int | None]] = {
    "text": format_local_time,
    "iso": lambda milliseconds, _: format_utc_field(milliseconds),
    "offset": lambda milliseconds, zone: datetime.fromtimestamp(milliseconds // 1000, zone).isoformat(),
    "milliseconds": lambda milliseconds, _: milliseconds,
    "digits": lambda milliseconds, _: str(milliseconds),
    "seconds": lambda milliseconds, _: milliseconds // 1000,
    "unreadable": lambda milliseconds, zone: f"{datetime.fromtimestamp(milliseconds // 1000, zone):%d %B}, afternoon",
    "empty": lambda *_: "",
    "null": lambda *_: None,
}
