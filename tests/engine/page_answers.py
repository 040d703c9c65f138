"""A platform that answers from a script: pages and errors in the order they are asked for, without a network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from auditor.client.operations import Operation
from auditor.client.responses import Answer
from auditor.errors import PlatformError
from auditor.models import Device, Sent

NAMED = Device("demo", "p1", "device001", None)
BY_ID = Device("demo", None, None, "iot001")

Reply = Answer | PlatformError


def entry(name: str, version: str = "1.0", **told: str) -> dict[str, object]:
    return {"moduleName": name, "moduleVersion": version, **told}


def entries(count: int, start: int = 0) -> list[dict[str, object]]:
    return [entry(f"m{number}", f"1.{number}") for number in range(start, start + count)]


def page(data: object, total: object, number: object = None, **fields: object) -> Answer:
    """An answer whose data holds the entries as the example does; other data stands as it is given."""
    if isinstance(data, list):
        data = {"simpleOTAModuleInfo": data}
    return Answer({"data": data, "total": total, "currentpage": number, **fields}, "r-1")


class Script:
    """A ``call`` that gives its replies in turn, the last one forever, and keeps what it was asked."""

    def __init__(self, *replies: Reply, attempts: int = 1) -> None:
        self.replies: Sequence[Reply] = replies
        self.asked: list[dict[str, str]] = []
        self._attempts = attempts

    async def __call__(self, operation: Operation, parameters: Mapping[str, str], /) -> Sent[Answer]:
        assert operation.name == "ListOTAModuleVersionsByDevice"
        reply = self.replies[min(len(self.asked), len(self.replies) - 1)]
        self.asked.append(dict(parameters))
        return Sent(reply, self._attempts)

    @property
    def pages(self) -> list[int]:
        return [int(asked["CurrentPage"]) for asked in self.asked]


class Catalogue:
    """A ``call`` that pages honestly through a number of modules."""

    def __init__(
        self, modules: int, lie: Callable[[int, dict[str, Any]], None] = lambda _number, _fields: None
    ) -> None:
        self.modules = modules
        self.asked: list[int] = []
        self._lie = lie

    async def __call__(self, operation: Operation, parameters: Mapping[str, str], /) -> Sent[Answer]:
        number, size = int(parameters["CurrentPage"]), int(parameters["PageSize"])
        self.asked.append(number)
        rest = entries(self.modules)[(number - 1) * size : number * size]
        fields: dict[str, Any] = {
            "data": {"simpleOTAModuleInfo": rest},
            "total": self.modules,
            "currentpage": number,
            "pagesize": size,
            "pagecount": -(-self.modules // size),
        }
        self._lie(len(self.asked), fields)
        return Sent(Answer(fields, f"r-{len(self.asked)}"), 1)
