"""How the simulated platform indexes devices: apart from the index, whose parser is an optional dependency."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How devices are indexed; without these, the platform does not have the operation.

    Attributes:
        lag: seconds by which the versions in the index are older than those of the devices.
        ignores_case: whether LIKE does.
        is_refused: whether the account's instance is one that cannot be searched.
    """

    lag: float = 0.0
    ignores_case: bool = False
    is_refused: bool = False
