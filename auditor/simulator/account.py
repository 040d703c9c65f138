"""Who may call the simulated platform, how often, and whose devices they see."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from auditor.model import Secret
from auditor.platform.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, OTHERS
from auditor.simulator.world import World

DEEP = ".deep"
"""After an operation's name: its requests for pages that begin late, where these have a quota of their own."""

_DOCUMENTED = {operation.name: operation.per_second for operation in OTHERS} | {
    operation.name + DEEP: operation.per_second_deep for operation in OTHERS if operation.per_second_deep is not None
}
_AUDITED = LIST_OTA_MODULE_VERSIONS_BY_DEVICE.name


@dataclass(frozen=True, slots=True)
class SimulatedAccount:
    """One access key of the simulated platform.

    Attributes:
        per_second: the account's quota for ListOTAModuleVersionsByDevice, in calls per second; the other operations
            have the documented ones. None: no quota for any operation.
        world: the account's devices; None: the simulator's.
        quotas: other quotas than these, in calls per second, by the operation's name; ``QueryDevice.deep`` for
            requests whose page begins late. Infinity is no quota.
    """

    access_key_id: str
    secret: Secret
    per_second: float | None = None
    world: World | None = None
    quotas: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        unknown = self.quotas.keys() - _DOCUMENTED.keys() - {_AUDITED}
        if unknown:
            raise ValueError(f"no operation has a quota called {', '.join(sorted(unknown))}")

    def quota(self, name: str) -> float | None:
        """The calls per second that ``quotas`` would have under ``name``; None: as many as there are."""
        documented = None if self.per_second is None else _DOCUMENTED.get(name, self.per_second)
        quota = self.quotas.get(name, documented)
        return None if quota == math.inf else quota
