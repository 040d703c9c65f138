"""A platform that answers from a script: pages and errors in the requested order, without a network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from auditor.client.operations import Operation
from auditor.client.responses import ApiResponse
from auditor.errors import PlatformError
from auditor.models import CallResult, Device

NAMED = Device("demo", "p1", "device001", None)
BY_ID = Device("demo", None, None, "iot001")

Reply = ApiResponse | PlatformError


def entry(name: str, version: str = "1.0", **reported: str) -> dict[str, object]:
    """Return a module of ``NAMED``, or with what else it reports about its device."""
    names = reported or {"productKey": "p1", "deviceName": "device001"}
    return {"moduleName": name, "moduleVersion": version, **names}


def entries(count: int, start: int = 0) -> list[dict[str, object]]:
    return [entry(f"m{number}", f"1.{number}") for number in range(start, start + count)]


def page(data: object, total: object, number: object = None, **fields: object) -> ApiResponse:
    """An answer whose data holds the entries as the example does; other data stands as it is given."""
    if isinstance(data, list):
        data = {"simpleOTAModuleInfo": data}
    return ApiResponse({"data": data, "total": total, "currentpage": number, **fields}, "r-1")


class ScriptedCall:
    """A ``call`` that gives its replies in turn, the last one forever, and records the requests."""

    def __init__(self, *replies: Reply, attempts: int = 1) -> None:
        self.replies: Sequence[Reply] = replies
        self.requests: list[dict[str, str]] = []
        self.fresh_connections: list[bool] = []
        self._attempts = attempts

    async def __call__(
        self, operation: Operation, parameters: Mapping[str, str], /, *, fresh_connection: bool = False
    ) -> CallResult[ApiResponse]:
        assert operation.name == "ListOTAModuleVersionsByDevice"
        reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
        self.requests.append(dict(parameters))
        self.fresh_connections.append(fresh_connection)
        return CallResult(reply, self._attempts)

    @property
    def pages(self) -> list[int]:
        return [int(request["CurrentPage"]) for request in self.requests]


class PagingCall:
    """A ``call`` that pages honestly through a number of modules."""

    def __init__(
        self, modules: int, corrupt: Callable[[int, dict[str, Any]], None] = lambda _number, _fields: None
    ) -> None:
        self.modules = modules
        self.pages: list[int] = []
        self._corrupt = corrupt

    async def __call__(
        self, operation: Operation, parameters: Mapping[str, str], /, *, fresh_connection: bool = False
    ) -> CallResult[ApiResponse]:
        number, size = int(parameters["CurrentPage"]), int(parameters["PageSize"])
        self.pages.append(number)
        rest = entries(self.modules)[(number - 1) * size : number * size]
        fields: dict[str, Any] = {
            "data": {"simpleOTAModuleInfo": rest},
            "total": self.modules,
            "currentpage": number,
            "pagesize": size,
            "pagecount": -(-self.modules // size),
        }
        self._corrupt(len(self.pages), fields)
        return CallResult(ApiResponse(fields, f"r-{len(self.pages)}"), 1)
