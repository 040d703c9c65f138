"""The index that answers QueryDeviceBySQL: devices by conditions, with the versions of some time ago.

Source: Alibaba's page on the operation. How far the index lags is not documented, so it is an option; the lag concerns
the versions of modules. Rows without ORDER BY are in an order that is different for each statement.
"""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from auditor.simulator.gateway import Parameters
from auditor.simulator.registry import ACTIVATION_MS, Registry, device_record
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.search.language import Condition, Statement, StatementRefused, parse_statement
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.world import SimulatedDevice

REGIONS = ("cn-shanghai", "cn-beijing", "cn-shenzhen", "ap-northeast-1")
"""Regions whose instances can be searched (Alibaba's pages in several languages name two to four of them)."""

_REFUSED = "iot.system.IllegalRequest"

_MEMBERS = {
    "product_key": "productKey", "iot_id": "iotId", "name": "deviceName", "nickname": "nickname", "status": "status",
    "gmt_create": "gmtCreate", "gmt_modified": "gmtModified", "active_time": "activeTime", "group": "groups",
    "tag": "tags", "ota_module": "OTAModules",
}  # fmt: skip


class DeviceIndex:
    """QueryDeviceBySQL for the devices of a registry."""

    def __init__(self, registry: Registry, options: IndexOptions) -> None:
        self._registry, self._options = registry, options

    def answer(self, parameters: Parameters) -> Document:
        """Return the requested rows, or their number; raise RequestRejected."""
        region = parameters.get("RegionId")
        if self._options.is_refused or (region is not None and region not in REGIONS):
            raise RequestRejected(_REFUSED, "The instance does not support the search of devices.")
        try:
            statement = parse_statement(parameters.get("SQL", ""))
        except StatementRefused as error:
            raise RequestRejected(_REFUSED, str(error)) from error
        if statement.counts:
            return {"totalCount": self._count(statement)}
        rows = self._rows(statement, parameters.get("SQL", ""))
        return {"data": [self._entry(device, statement.fields) for device in rows]}

    def _count(self, statement: Statement) -> int:
        if len(statement.any_of) == 1:
            selected, others = self._select_range(statement.any_of[0])
            if not others:
                return sum(self._registry.count_created(*each) for each in selected)
        return sum(1 for _ in self._matching(statement))

    def _rows(self, statement: Statement, seed: str) -> list[SimulatedDevice]:
        found = self._matching(statement)
        end = statement.first + statement.rows
        is_sorted = statement.order == "gmt_create" and len(statement.any_of) == 1
        if is_sorted and self._has_one_product(statement.any_of[0]):
            return list(islice(found, statement.first, end))
        devices = list(found)
        if statement.order is None:
            random.Random(seed).shuffle(devices)  # noqa: S311  reproducible, no secret
        else:
            order = statement.order
            devices.sort(key=lambda device: self._value(device, order)[0])
        return devices[statement.first : end]

    def _matching(self, statement: Statement) -> Iterator[SimulatedDevice]:
        """Yield the devices that match a statement, those of a product in the order of their registration."""
        seen = set[int]()
        for conditions in statement.any_of:
            selected, others = self._select_range(conditions)
            for each in selected:
                for device in self._created(each, others):
                    if self._match(device, others) and device.index not in seen:
                        if len(statement.any_of) > 1:
                            seen.add(device.index)
                        yield device

    def _created(
        self, places: tuple[int, int | None, int | None], conditions: tuple[Condition, ...]
    ) -> Iterator[SimulatedDevice]:
        """Yield the devices of a range, if a condition is a prefix of names only those that have it."""
        prefix = next((str(each.value) for each in conditions if (each.field, each.operator) == ("name", "LIKE")), None)
        if prefix is None:
            return self._registry.created(*places)
        return self._registry.created_with_prefix(*places, prefix, ignores_case=self._options.ignores_case)

    def _has_one_product(self, conditions: tuple[Condition, ...]) -> bool:
        return any(each.field == "product_key" and each.operator == "=" for each in conditions)

    def _select_range(
        self, conditions: tuple[Condition, ...]
    ) -> tuple[list[tuple[int, int | None, int | None]], tuple[Condition, ...]]:
        """Return products with times of registration, without both ends, and the conditions that remain."""
        products, after, before = set(range(len(self._registry.world.products))), -1, 1 << 62
        others = []
        for each in conditions:
            if each.field == "product_key" and each.operator == "=":
                number = self._registry.world.product_number(str(each.value))
                products &= set() if number is None else {number}
            elif each.field == "gmt_create":
                value = int(each.value)
                after = max(after, value if each.operator == ">" else value - 1 if each.operator == "=" else -1)
                before = min(before, value if each.operator == "<" else value + 1 if each.operator == "=" else 1 << 62)
            else:
                others.append(each)
        ends = (None if after < 0 else after, None if before == 1 << 62 else before)
        return [(product, *ends) for product in sorted(products)], tuple(others)

    def _match(self, device: SimulatedDevice, conditions: tuple[Condition, ...]) -> bool:
        nested = [each for each in conditions if "." in each.field]
        if not all(self._match_one(self._value(device, each.field), each) for each in conditions if each not in nested):
            return False
        # Conditions about one kind of parts of a device must match the same part.
        return all(self._match_part(device, stem, nested) for stem in {each.field.partition(".")[0] for each in nested})

    def _match_part(self, device: SimulatedDevice, stem: str, conditions: list[Condition]) -> bool:
        own = [each for each in conditions if each.field.partition(".")[0] == stem]
        return any(
            all(self._match_one((part[each.field],), each) for each in own) for part in self._parts(device, stem)
        )

    def _match_one(self, values: tuple[Any, ...], condition: Condition) -> bool:
        wanted = condition.value
        match condition.operator:
            case "=":
                return wanted in values
            case ">":
                return any(value is not None and value > wanted for value in values)
            case "<":
                return any(value is not None and value < wanted for value in values)
        fold: Callable[[str], str] = str.casefold if self._options.ignores_case else str
        return any(fold(value).startswith(fold(str(wanted))) for value in values)

    def _value(self, device: SimulatedDevice, field: str) -> tuple[Any, ...]:
        record = device_record(device, self._registry.world.began)
        values = {
            "product_key": device.product_key,
            "iot_id": device.iot_id,
            "name": device.device_name,
            "nickname": device.nickname,
            "status": record.status,
            "gmt_create": record.created,
            "gmt_modified": record.modified,
            "active_time": record.created + ACTIVATION_MS if device.activated else None,
        }
        return (values[field],)

    def _parts(self, device: SimulatedDevice, stem: str) -> list[dict[str, str]]:
        match stem:
            case "tag":
                return [{"tag.tag_name": name, "tag.tag_value": value} for name, value in device.tags.items()]
            case "group":
                return [{"group.group_id": group} for group in device.groups]
        modules = self._registry.modules(device, self._options.lag)
        return [{"ota_module.name": each.module_name, "ota_module.version": each.module_version} for each in modules]

    def _entry(self, device: SimulatedDevice, fields: tuple[str, ...] | None) -> dict[str, object]:
        record = device_record(device, self._registry.world.began)
        modules = self._registry.modules(device, self._options.lag)
        entry: dict[str, object] = {
            "deviceName": device.device_name,
            "gmtCreate": format_date(record.created),
            "gmtModified": format_date(record.modified),
            "groups": [{"groupId": group} for group in device.groups],
            "iotId": device.iot_id,
            "nickname": device.nickname,
            "OTAModules": [
                {"firmwareVersion": each.module_version, "moduleName": each.module_name} for each in modules
            ],
            "productKey": device.product_key,
            "status": record.status,
            "tags": [{"tagName": name, "tagValue": value} for name, value in device.tags.items()],
        }
        if device.activated:
            entry["activeTime"] = format_date(record.created + ACTIVATION_MS)
        if fields is None:
            return entry
        kept = {"iotId", *(_MEMBERS[field.partition(".")[0]] for field in fields)}
        return {name: member for name, member in entry.items() if name in kept}


def format_date(milliseconds: int) -> str:
    """Return ``2020-04-04 16:38:17.000``, in UTC: the format of times in rows and conditions."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment.isoformat(' ')[:19]}.{milliseconds % 1000:03d}"
