"""A simulated platform: a world of devices, and a server that answers for them as strictly as the real one.

World(1_000_000)  ──►  Simulator(world)  ──►  http://127.0.0.1:PORT/
a function of          signature, nonce,      for demonstrations, tests and measurements
an index               quota, faults
"""

from auditor.simulator.faults import Corruption, FaultKind, Faults
from auditor.simulator.forms import ResponseForms, TimeForm
from auditor.simulator.lifecycle import ORDINARY_LIFECYCLE, Lifecycle
from auditor.simulator.quotas import SimulatedAccount, WindowKind
from auditor.simulator.registry import DEVICE_SECRET_PREFIX, Churn
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator, SimulatorCounts
from auditor.simulator.world import FLEET_COLUMNS, SimulatedDevice, World

__all__ = [
    "DEFAULT_ACCOUNT", "DEVICE_SECRET_PREFIX", "FLEET_COLUMNS", "ORDINARY_LIFECYCLE", "Churn", "Corruption",
    "FaultKind", "Faults", "IndexOptions", "Lifecycle", "ResponseForms", "SimulatedAccount", "SimulatedDevice",
    "Simulator", "SimulatorCounts", "TimeForm", "WindowKind", "World",
]  # fmt: skip
