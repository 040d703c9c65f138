"""Types of JSON values with the limits that their JSON Schema states. Readers do not check most of them."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
PositiveCount = Annotated[int, Meta(extra_json_schema={"minimum": 1})]
Seconds = Annotated[float, Meta(extra_json_schema={"minimum": 0})]
CallsPerSecond = Annotated[float, Meta(extra_json_schema={"minimum": 0})]
PositiveCallsPerSecond = Annotated[float, Meta(extra_json_schema={"exclusiveMinimum": 0})]
Share = Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": 1})]
Timestamp = Annotated[str, Meta(extra_json_schema={"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"})]
Sha256 = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9a-f]{64}$"})]
NonEmptyText = Annotated[str, Meta(extra_json_schema={"minLength": 1})]

MaxFailed = Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern=r"^\d{1,300}(\.\d{1,300})?%$")]
"""Devices that may have no answer: a number, or a percentage such as ``0.1%``. Readers check it: they count with it."""
