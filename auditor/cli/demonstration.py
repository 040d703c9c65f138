"""Demonstration: audit a simulated fleet in this process."""

import time
from pathlib import Path

from auditor.audit.runner import run_audit
from auditor.concurrency import StopToken
from auditor.config.loader import parse_settings
from auditor.engine.progress import AuditResult, ProgressCallback
from auditor.simulator.faults import Faults
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.standalone import account_table, write_secret
from auditor.simulator.world import World
from auditor.storage.files import private_folder

DEMO_QUOTA = 500.0
"""Calls a second. A real quota of 10 would make the demonstration take minutes."""

DEMO_QUOTA_SHARE = 0.95
"""Fraction of the quota to use, as if the account had other users."""

DEMO_FAULTS = Faults(
    reset=0.004, cut=0.004, unavailable=0.004, internal=0.004, html=0.004, garbage=0.004, business=0.004, nonce=0.004,
    throttle=0.0002, silence=0.0003,
)  # fmt: skip
"""A few faults of each kind. A throttled call pauses the account for a second, and silence lasts a complete timeout."""

DEMO_LIFECYCLE = Lifecycle(connecting=0.4, always_online=0.4)
"""Most devices report each day, so that three runs show updates in progress, and some devices are offline."""

DEMO_RULES = """\
# Policy of the demonstration; see also configs/rules.toml.
[[rule]]
name = "rollout done"
severity = "warning"
module = "default"
newest = "95%"

[[rule]]
name = "few versions in use"
severity = "warning"
max_versions = 6

[[rule]]
name = "results are recent"
max_age = "36h"
"""


async def run_demonstration(
    devices: int, day: int, directory: Path, watch: ProgressCallback, stop: StopToken, *, since: str | None = None
) -> AuditResult:
    """Audit a simulated fleet of this age in days, see ``World``, on a simulated platform in this process.

    The run is incremental if ``since`` is ``last``, and otherwise queries every device.
    """
    world = World(devices, large=0, day=day, lifecycle=DEMO_LIFECYCLE, today=time.time())
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, DEMO_QUOTA)
    with private_folder("demo") as folder:
        async with Simulator(world, accounts=[account], latency=(0.02, 0.08), faults=DEMO_FAULTS) as platform:
            account_settings = account_table(platform.endpoint, account, "tuya")
            write_secret(folder / account_settings["access_key_secret"]["file"], account)
            account_settings |= {"quota_share": DEMO_QUOTA_SHARE, "fleet": {"products": "all"}}
            table = {"name": "demo", "timeout": 2.0, "account": [account_settings], "since": since}
            settings = parse_settings(table, where="demo", folder=folder)
            return await run_audit(settings, directory=directory, on_progress=watch, stop=stop)
