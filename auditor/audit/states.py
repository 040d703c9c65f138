"""Asking what devices are doing, fifty at a time: it tells which of them can have reported anything new."""

import contextlib
import time
from functools import partial
from pathlib import Path

import anyio
import structlog

from auditor.audit.account import AskedAccount
from auditor.audit.scheduler import Stop, fan_out
from auditor.errors import NotFoundError, PlatformError
from auditor.fleet.states import StatesJournal, read_questions, write_states, write_untold
from auditor.model import Device
from auditor.platform.listings import states_of
from auditor.platform.operations import BATCH_GET_DEVICE_STATE, states_of_devices

log = structlog.get_logger()

STALE = 3_600
"""Seconds after which a state that was told is asked again, when an audit is resumed."""

REFUSALS = 3
"""Questions that may be refused before any was answered: then no more are asked, for all will be refused."""


async def ask_states(
    asked: AskedAccount, questions: Path, journal: Path, out: Path, *, devices: int, stop: Stop
) -> int:
    """Asks for the states of devices, and writes what was told; of what was not, whoever plans thinks the worst.

    Returns:
        how many questions earlier stretches had an answer to.

    Args:
        asked: the account.
        questions: the devices, as ``Choosing.write_questions`` writes them.
        journal: a file that is appended to; what it holds already is not asked again.
        out: the states, Parquet.
        devices: how many there are in ``questions``.
        stop: a wish to end early.

    Raises:
        AccountStoppedError: the account is refused, or was never reached.
        RunNotWritableError: a file cannot be written.
    """
    left = out.with_suffix(".left.parquet")
    before = await anyio.to_thread.run_sync(_questions_before, journal)
    if known := await anyio.to_thread.run_sync(write_states, journal, out):
        await anyio.to_thread.run_sync(write_untold, questions, out, left)
        questions = left
    refused: list[PlatformError] = []
    answered = 0

    with StatesJournal(journal) as told:

        async def ask(some: list[Device]) -> None:
            nonlocal answered, known
            if len(refused) >= REFUSALS and not answered:
                return
            sent = await asked.call_aside(BATCH_GET_DEVICE_STATE, states_of_devices(some))
            if isinstance(sent.result, NotFoundError):  # their product is gone, and they with it
                told.write(some, ())
            elif isinstance(sent.result, PlatformError):
                refused.append(sent.result)
            else:
                told.write(some, states_of(sent.result))
                answered += 1
            known += len(some)
            asked.states = known, devices

        asked.states = known, devices
        try:
            await fan_out(read_questions(questions), ask, _written, at_once=asked.workers, stop=stop)
        finally:
            asked.states = None
    if refused:
        log.warning(
            "states of devices are not known, so these are asked", account=asked.name, questions=len(refused),
            reason=str(refused[0]),
        )  # fmt: skip
    await anyio.to_thread.run_sync(partial(write_states, journal, out))
    left.unlink(missing_ok=True)
    return before


async def _written(_: None) -> None:
    """What was told is written as it comes."""


def _questions_before(journal: Path) -> int:
    """How many questions a journal has an answer to; one that is too old is removed."""
    with contextlib.suppress(OSError):
        if time.time() - journal.stat().st_mtime > STALE:
            journal.unlink()
        else:
            with journal.open("rb") as file:
                return sum(1 for _ in file)
    return 0
