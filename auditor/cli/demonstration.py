"""The demonstration: a simulated fleet, audited in this process."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from auditor.audit.runner import run_audit
from auditor.config.loader import settings_from
from auditor.engine.progress import Result, Watch
from auditor.engine.worker_pool import Stop
from auditor.simulator.faults import Faults
from auditor.simulator.lifecycle import Life
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.standalone import _account_table, _write_secret
from auditor.simulator.world import World

DEMO_PER_SECOND = 500.0
"""The demonstration's quota; a real account's 10 a second would take minutes to watch."""


DEMO_SHARE = 0.95
"""A part of the quota is left to others, as an account's other users would have it."""


DEMO_FAULTS = Faults(
    reset=0.004, cut=0.004, unavailable=0.004, internal=0.004, html=0.004, garbage=0.004, business=0.004, nonce=0.004,
    throttle=0.0002, silence=0.0003,
)  # fmt: skip
"""A few of each; a throttled answer holds the account back for a second and silence lasts a whole timeout."""


DEMO_LIFE = Life(connecting=0.4, always_online=0.4)
"""Most devices report each night, so that three nights show updates on their way, and some are met offline."""


DEMO_RULES = """\
# What the demonstration asks of its fleet; see also configs/rules.toml.
[[rule]]
name = "the rollout is done"
severity = "warning"
module = "default"
newest = "95%"

[[rule]]
name = "few versions alive"
severity = "warning"
max_versions = 6

[[rule]]
name = "a fresh audit"
max_age = "36h"
"""


async def demonstrate(
    devices: int, day: int, directory: Path, watch: Watch, stop: Stop, *, since: str | None = None
) -> Result:
    """Audits a simulated fleet, as a simulated platform in this process lists it.

    Args:
        devices: of the fleet.
        day: of the fleet; see ``World``.
        directory: where to make the run folder.
        watch: told where the audit stands.
        stop: a wish to end early.
        since: ``last`` asks only devices that can have changed since the night before; None: all.
    """
    world = World(devices, large=0, day=day, life=DEMO_LIFE, today=time.time())
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, DEMO_PER_SECOND)
    with TemporaryDirectory(prefix="auditor-demo-") as temporary:
        folder = Path(temporary)
        async with Simulator(world, accounts=[account], latency=(0.02, 0.08), faults=DEMO_FAULTS) as platform:
            _write_secret(folder, account)
            own = _account_table(platform.endpoint, account, "tuya")
            own |= {"share": DEMO_SHARE, "fleet": {"products": "all"}}
            table = {"name": "demo", "timeout": 2.0, "account": [own]} | ({} if since is None else {"since": since})
            settings = settings_from(table, where="demo", folder=folder)
            return await run_audit(settings, directory=directory, watch=watch, stop=stop)
