"""The simulated platform put to use: the demonstration, and a server to practise on."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import anyio

from auditor.audit.progress import Result, Watch
from auditor.audit.run import run_audit
from auditor.audit.scheduler import Stop
from auditor.config import settings_from
from auditor.errors import StoppedError, UsageError
from auditor.model import Dialect, Secret
from auditor.simulator import (
    DEFAULT_ACCOUNT,
    ORDINARY_LIFE,
    Churn,
    Faults,
    Life,
    SimulatedAccount,
    Simulator,
    WindowKind,
    World,
)

DEMO_PER_SECOND = 500.0
"""The demonstration's quota; a real account's 10 a second would take minutes to watch."""

_LAST_PORT = 65_535

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


@dataclass(frozen=True, slots=True)
class Practice:
    """What to simulate; ``latency`` is in milliseconds, ``per_second`` None is no quota.

    Attributes:
        accounts: how many, each with so many devices of its own.
        register: devices a second that are registered while a fleet is listed.
        remove: devices a second that are removed meanwhile.
        fleet: what the written settings say of the devices: a fleet file, or all products.
        life: of the devices.
    """

    devices: int
    products: int
    seed: int
    dialect: Dialect
    per_second: float | None
    window: WindowKind
    latency: tuple[float, float]
    faults: float
    day: int = 0
    accounts: int = 1
    register: float = 0.0
    remove: float = 0.0
    fleet: Literal["file", "products"] = "file"
    life: Life = ORDINARY_LIFE


async def serve(practice: Practice, port: int, write: Path | None, tell: Callable[[str], None]) -> None:
    """Answers on a port of this machine until SIGINT or SIGTERM.

    Args:
        practice: what to simulate.
        port: 0 takes a free one.
        write: a folder for settings, secret and fleet file that fit; None writes none.
        tell: given each line to print.

    Raises:
        UsageError: the options do not fit together.
        StoppedError: the port is taken, or ``write`` cannot be written.
    """
    least, most = practice.latency
    if not 0 <= least <= most:
        raise UsageError(f"--latency {least:g} {most:g}: give the least and the most milliseconds, from 0 up")
    if practice.per_second is not None and practice.per_second < 0:
        raise UsageError(f"--per-second {practice.per_second:g}: give calls a second, or 0 for no quota")
    if not 0 <= port <= _LAST_PORT:
        raise UsageError(f"--port {port}: give a port up to {_LAST_PORT}, or 0 for a free one")
    try:
        accounts = _accounts(practice)
        simulator = _simulator(practice, accounts, port)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with simulator as platform:
                tell(f"endpoint           {platform.endpoint}")
                for account in accounts:
                    tell(f"access_key_id      {account.access_key_id}")
                    tell(f"access_key_secret  {account.secret.reveal()}")
                if write is not None:
                    tell(f"settings           {_write_settings(write, accounts, practice, platform.endpoint)}")
                async for _ in signals:
                    return
    except OSError as error:
        raise StoppedError(f"the simulated platform cannot start: {error.strerror or error}") from error


def _accounts(practice: Practice) -> dict[SimulatedAccount, World]:
    """The accounts and their worlds; the keys and secrets of all but the first are numbered."""
    accounts: dict[SimulatedAccount, World] = {}
    today = time.time()
    for number in range(practice.accounts):
        world = World(
            practice.devices,
            seed=practice.seed + number,
            products=practice.products,
            day=practice.day,
            life=practice.life,
            today=today,
        )
        suffix = f"-{number + 1}" if number else ""
        key, secret = DEFAULT_ACCOUNT.access_key_id + suffix, Secret(DEFAULT_ACCOUNT.secret.reveal() + suffix)
        accounts[SimulatedAccount(key, secret, practice.per_second, world)] = world
    return accounts


def _simulator(practice: Practice, accounts: dict[SimulatedAccount, World], port: int) -> Simulator:
    least, most = practice.latency
    return Simulator(
        next(iter(accounts.values())),
        accounts=list(accounts),
        dialect=practice.dialect,
        window=practice.window,
        latency=(least / 1000, most / 1000),
        faults=Faults.evenly(practice.faults),
        churn=Churn(practice.register, practice.remove, practice.seed),
        seed=practice.seed,
        port=port,
        tells_retry_after=True,
    )


def _write_settings(folder: Path, accounts: dict[SimulatedAccount, World], practice: Practice, endpoint: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ['name = "simulated"']
    for account, world in accounts.items():
        table = _account_table(endpoint, account, practice.dialect)
        if practice.fleet == "products":
            table["fleet"] = {"products": "all"}
        else:
            world.write_fleet(folder / table["fleet"]["file"])
        _write_secret(folder, account)
        lines += ["", "[[account]]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path = folder / "simulated.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_secret(folder: Path, account: SimulatedAccount) -> None:
    secret = folder / f"simulated-secret{_suffix(account)}"
    secret.touch(mode=0o600)
    secret.write_text(account.secret.reveal(), encoding="utf-8")


def _account_table(endpoint: str, account: SimulatedAccount, dialect: Dialect) -> dict[str, Any]:
    region = {"region_id": "cn-shanghai"} if dialect == "alibaba" else {}
    suffix = _suffix(account)
    return {
        "name": f"simulated{suffix}",
        "endpoint": endpoint,
        "dialect": dialect,
        **region,
        "access_key_id": account.access_key_id,
        "access_key_secret": {"file": f"simulated-secret{suffix}"},
        "per_second": account.per_second or "unlimited",
        "fleet": {"file": f"simulated-fleet{suffix}.csv"},
    }


def _suffix(account: SimulatedAccount) -> str:
    """What an account's name and files end in, as its key does."""
    return account.access_key_id.removeprefix(DEFAULT_ACCOUNT.access_key_id)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value)
