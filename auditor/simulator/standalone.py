"""The simulated platform put to use: the demonstration, and a server to practise on."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio

from auditor.errors import StoppedError, UsageError
from auditor.models import Dialect, Secret
from auditor.simulator.faults import Faults
from auditor.simulator.lifecycle import ORDINARY_LIFE, Life
from auditor.simulator.quotas import SimulatedAccount, WindowKind
from auditor.simulator.registry import Churn
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World

_LAST_PORT = 65_535


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
