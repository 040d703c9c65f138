"""The simulated platform as a server: for ``auditor simulate`` and the demonstration."""

import errno
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio

from auditor.errors import AuditStoppedError, UsageError
from auditor.models import Dialect, Secret
from auditor.simulator.faults import Faults
from auditor.simulator.forms import MODEL_FORMS, ResponseForms
from auditor.simulator.lifecycle import ORDINARY_LIFECYCLE, Lifecycle
from auditor.simulator.quotas import SimulatedAccount, WindowKind
from auditor.simulator.registry import Churn
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from auditor.storage.files import PRIVATE_FILE, atomic_replace, replace_file

_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """What to simulate. ``latency`` is in milliseconds; ``per_second`` None is no quota.

    Attributes:
        accounts: number of accounts, each with ``devices`` of its own.
        register, remove: devices a second that are registered and removed during discovery.
        changes: fraction of the devices whose version changes in an hour.
        fleet: fleet of the written settings: a file, or all products.
        index: how devices are indexed; None: they cannot be searched.
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
    changes: float = 0.0
    fleet: Literal["file", "products"] = "file"
    lifecycle: Lifecycle = ORDINARY_LIFECYCLE
    forms: ResponseForms = MODEL_FORMS
    index: IndexOptions | None = None


async def serve(config: SimulationConfig, port: int, write: Path | None, print_line: Callable[[str], None]) -> None:
    """Serve on a port of this machine until SIGINT or SIGTERM.

    Args:
        config: what to simulate.
        port: 0 selects a free one.
        write: folder for matching settings, secret and fleet file; None writes none.
        print_line: prints a line.

    Raises:
        UsageError: the options do not fit together.
        AuditStoppedError: the port is in use, or ``write`` cannot be written.
    """
    minimum, maximum = config.latency
    if not 0 <= minimum <= maximum:
        raise UsageError(f"--latency {minimum:g} {maximum:g}: give the minimum and the maximum in milliseconds")
    if config.per_second is not None and config.per_second < 0:
        raise UsageError(f"--per-second {config.per_second:g}: give calls a second, or 0 for no quota")
    if not 0 <= port <= _MAX_PORT:
        raise UsageError(f"--port {port}: give a port up to {_MAX_PORT}, or 0 for a free one")
    try:
        accounts = _accounts(config)
        simulator = _simulator(config, accounts, port)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with simulator as platform:
                print_line(f"endpoint           {platform.endpoint}")
                for account in accounts:
                    print_line(f"access_key_id      {account.access_key_id}")
                    print_line(f"access_key_secret  {account.secret.reveal()}")
                if write is not None:
                    print_line(f"settings           {_write_settings(write, accounts, config, platform.endpoint)}")
                async for _ in signals:
                    return
    except OSError as error:
        advice = "; give another --port; 0 is any that is free" if error.errno == errno.EADDRINUSE else ""
        raise AuditStoppedError(f"the simulated platform cannot start: {error.strerror or error}{advice}") from error


def _accounts(config: SimulationConfig) -> dict[SimulatedAccount, World]:
    """Return the accounts and their worlds; keys and secrets are numbered from the second account on."""
    accounts: dict[SimulatedAccount, World] = {}
    today = time.time()
    for number in range(config.accounts):
        world = World(
            config.devices,
            seed=config.seed + number,
            products=config.products,
            day=config.day,
            lifecycle=config.lifecycle,
            today=today,
        )
        suffix = f"-{number + 1}" if number else ""
        key, secret = DEFAULT_ACCOUNT.access_key_id + suffix, Secret(DEFAULT_ACCOUNT.secret.reveal() + suffix)
        accounts[SimulatedAccount(key, secret, config.per_second, world)] = world
    return accounts


def _simulator(config: SimulationConfig, accounts: dict[SimulatedAccount, World], port: int) -> Simulator:
    minimum, maximum = config.latency
    return Simulator(
        next(iter(accounts.values())),
        accounts=list(accounts),
        dialect=config.dialect,
        window=config.window,
        latency=(minimum / 1000, maximum / 1000),
        faults=Faults.evenly(config.faults),
        forms=config.forms,
        churn=Churn(config.register, config.remove, config.seed, config.changes),
        index=config.index,
        seed=config.seed,
        port=port,
        send_retry_after=True,
    )


def _write_settings(
    folder: Path, accounts: dict[SimulatedAccount, World], config: SimulationConfig, endpoint: str
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ['name = "simulated"']
    for account, world in accounts.items():
        table = account_table(endpoint, account, config.dialect)
        if config.fleet == "products":
            table["fleet"] = {"products": "all"}
        else:
            with atomic_replace(folder / table["fleet"]["file"]) as new:
                world.write_fleet(new)
        write_secret(folder / table["access_key_secret"]["file"], account)
        lines += ["", "[[account]]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path = folder / "simulated.toml"
    replace_file(path, ("\n".join(lines) + "\n").encode())
    return path


def write_secret(file: Path, account: SimulatedAccount) -> None:
    """Write an account's secret into a file that only this user can read."""
    with atomic_replace(file, mode=PRIVATE_FILE) as new:
        new.write_text(account.secret.reveal(), encoding="utf-8")


def account_table(endpoint: str, account: SimulatedAccount, dialect: Dialect) -> dict[str, Any]:
    """Return the table of an account in the settings of an audit of the simulated platform."""
    region = {"region_id": "cn-shanghai"} if dialect == "alibaba" else {}
    suffix = account.access_key_id.removeprefix(DEFAULT_ACCOUNT.access_key_id)
    return {
        "name": f"simulated{suffix}",
        "endpoint": endpoint,
        "dialect": dialect,
        **region,
        "access_key_id": account.access_key_id,
        "access_key_secret": {"file": f"simulated-secret{suffix}"},
        "calls_per_second": account.calls_per_second or "unlimited",
        "fleet": {"file": f"simulated-fleet{suffix}.csv"},
    }


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value)
