"""The limit of open files: raised to what the configured concurrency needs, or an error before anything is sent."""

import contextlib
import math
import os
import resource

from auditor.config.settings import Settings
from auditor.engine.allocation import concurrency_per_account
from auditor.errors import SettingsError

RESERVED_FILES, FILES_PER_ACCOUNT = 80, 4
"""Files that are opened besides connections: those of the run and of DuckDB; for an account, those of its quota, its
discovery and its Redis server.
"""

OPEN_FILES_STEP = 32
"""Open files are rounded up to a multiple of this, so that all commands require the same number."""


def reserve_open_files(settings: Settings) -> None:
    """Raise the soft limit of open files to what the concurrency needs; raise SettingsError if the hard limit is lower.

    Each request in flight has a connection, through a proxy, too. Twice as many are reserved where the hard limit
    allows it: a host with several addresses is tried on several sockets, and answers that are not believed are
    requested again on connections of their own.
    """
    connections = sum(concurrency_per_account(settings))
    others = _open_files() + RESERVED_FILES + FILES_PER_ACCOUNT * len(settings.account)
    needed = others + connections
    limit = _raise_limit(others + 2 * connections, needed)
    if limit < needed:
        fits = int(limit) - others
        lower = f"set concurrency to {fits:,} or less, or " if fits >= len(settings.account) else ""
        raise SettingsError(
            f"settings: concurrency = {connections:,} needs {needed:,} open files, but this process may open "
            f"{limit:,.0f}; {lower}raise the hard limit (ulimit -Hn {needed}, or LimitNOFILE={needed} in systemd)"
        )


def _raise_limit(*wanted: int) -> float:
    """Raise the soft limit to the first wanted number that the system allows; return the limit. Never lower it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in wanted:
        if soft == resource.RLIM_INFINITY or soft >= number:
            break
        limit = number if hard == resource.RLIM_INFINITY else min(number, hard)
        # macOS refuses numbers below the hard limit that are above a limit of the kernel.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft = limit
            break
    return math.inf if soft == resource.RLIM_INFINITY else soft


def _open_files() -> int:
    """Return how many files this process has open, rounded up."""
    found = 0
    with contextlib.suppress(OSError):
        found = sum(1 for _ in os.scandir("/dev/fd"))
    return math.ceil(found / OPEN_FILES_STEP) * OPEN_FILES_STEP
