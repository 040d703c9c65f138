"""The commands: flags in, one library call, an exit code out. Each loads only what it needs."""

import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import SIMPLE

from auditor.__about__ import VERSION
from auditor.errors import AuditorError, RunNotWritableError, StoppedAtOnceError, UsageError
from auditor.terminal import open_standard_streams, safe, say, tell, to_nowhere

if TYPE_CHECKING:
    from auditor.audit.run import Result, Watch
    from auditor.audit.scheduler import Stop

# A lone hyphen, for standard input or output, is a value.
FleetFile = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
LogLevel = Literal["debug", "info", "warning", "error"]

app = App(
    name="auditor",
    help="Which version of which OTA module does every device of an IoT fleet run?",
    help_epilogue=(
        "Exit codes: 0 done; 1 devices failed or pending beyond max_failed, or a run that does not verify; "
        "2 usage, settings or fleet file; 3 the platform refuses or was never reached, or the run cannot be written; "
        "130 interrupted."
    ),
    version=VERSION,
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=SIMPLE, padding=(0, 0))),
    help_format="plaintext",
    result_action="return_value",
)


@app.command
def run(
    config: Path,
    /,
    *,
    fleet: FleetFile = None,
    out: Path | None = None,
    limit: int | None = None,
    log_level: LogLevel = "warning",
) -> int:
    """Audit a fleet: ask about every device, leave a sealed run folder.

    The folder's path goes to standard output, progress to standard error.

    Parameters
    ----------
    config:
        The settings, a TOML file; see configs/ for examples.
    fleet:
        A fleet file instead of the one in the settings, for one account; - is standard input.
    out:
        Make the run folder in this directory instead of the settings' one.
    limit:
        Ask only about the first so many devices, of all accounts together.
    log_level:
        What is logged to standard error.
    """
    from auditor.config import load_settings

    settings, first = load_settings(config), _at_least_one("--limit", limit)

    def start(watch: "Watch", stop: "Stop") -> "Awaitable[Result]":
        from auditor.audit.run import run_audit

        return run_audit(settings, fleet=fleet, directory=out, limit=first, watch=watch, stop=stop)

    result = _audit(start, log_level)
    tell(str(result.folder))
    return result.exit_code


@app.command
def check(config: Path, /, *, fleet: FleetFile = None, log_level: LogLevel = "warning") -> int:
    """Look before an audit: settings, keys, the whole fleet file, and one signed call per account.

    Parameters
    ----------
    config:
        The settings, a TOML file.
    fleet:
        A fleet file instead of the one in the settings.
    log_level:
        What is logged to standard error.
    """
    from auditor.audit.check import check as look
    from auditor.config import load_settings
    from auditor.display import print_checks
    from auditor.process import in_loop, log_to_stderr

    log_to_stderr(log_level)
    settings = load_settings(config)
    checks = in_loop(lambda: look(settings, fleet=fleet))
    print_checks(checks)
    return 3 if any(each.problem is not None for each in checks) else 0


@app.command
def inventory(
    run: Path,
    /,
    *,
    format: Literal["table", "csv", "json", "jsonl", "parquet"] = "table",  # noqa: A002  the flag's name
    out: Annotated[Path | None, Parameter(alias="-o", allow_leading_hyphen=True)] = None,
) -> int:
    """Who runs what: every version of every module, how many devices run it, and their share.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    format:
        How to write it.
    out:
        The file to write, instead of standard output.
    """
    from auditor.inventory.queries import Run

    with Run(run) as opened:
        if format == "table" and str(out or "-") == "-":
            from auditor.display import print_inventory

            print_inventory(opened.manifest, opened.devices, opened.inventory())
            return 0
        if format == "table":
            raise UsageError("a table goes to standard output; choose --format csv, json, jsonl or parquet for a file")
        if opened.manifest.state != "complete":
            say(f"note: {opened.folder} is {opened.manifest.state}, so the inventory is not of the whole fleet")
        if out is not None and str(out) != "-":
            opened.write_inventory(out, format)
            return 0
        with TemporaryDirectory(prefix="auditor-") as temporary:
            whole = Path(temporary, "inventory")
            opened.write_inventory(whole, format)
            with whole.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


@app.command
def verify(run: Path, /) -> int:
    """Recompute a run from its files and compare: states, counts, digests, Parquet, inventory.

    Prints what does not hold, a line each, and then exits with 1.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant.
    """
    from auditor.inventory.folder import find_run, read_manifest
    from auditor.inventory.verify import verify as prove

    folder = find_run(run)
    problems = prove(folder)
    for problem in problems:
        tell(safe(problem))
    if not problems:
        say(f"{folder}: every number follows from the files; the run is {read_manifest(folder).state}")
    return 1 if problems else 0


@app.command
def demo(*, devices: int = 4000, out: Path = Path("audits"), log_level: LogLevel = "error") -> int:
    """Show all of it without an account: a simulated platform with a few faults, an audit, the inventory.

    Parameters
    ----------
    devices:
        Devices of the simulated fleet.
    out:
        Make the run folder in this directory.
    log_level:
        What is logged to standard error.
    """
    from auditor.display import print_inventory
    from auditor.inventory.queries import Run
    from auditor.practice import demonstrate

    _at_least_one("--devices", devices)
    result = _audit(lambda watch, stop: demonstrate(devices, out, watch, stop), log_level)
    with Run(result.folder) as opened:
        print_inventory(opened.manifest, opened.devices, opened.inventory())
    tell(f"\nThe run lies in {result.folder}: inventory.csv, modules.parquet, run.json and more.")
    return result.exit_code


@app.command
def simulate(
    *,
    port: int = 8686,
    devices: int = 10_000,
    products: int = 4,
    seed: int = 0,
    dialect: Literal["tuya", "alibaba"] = "tuya",
    per_second: float | None = 10.0,
    window: Literal["fixed", "sliding", "bucket"] = "sliding",
    latency: Annotated[tuple[float, float], Parameter(negative=())] = (20.0, 80.0),
    faults: float = 0.0,
    write: Path | None = None,
) -> int:
    """A platform to practise on, as a server: as strict as the real one, until interrupted.

    Prints its endpoint, access key id and secret.

    Parameters
    ----------
    port:
        Where it listens, on this machine only; 0 takes a free port.
    devices:
        Devices of its fleet; some are missing, silent, or have more than 200 modules.
    products:
        Products that the devices belong to.
    seed:
        Of the fleet, the faults and the latency.
    dialect:
        How it spells its answers.
    per_second:
        The account's quota in calls a second; 0 for none.
    window:
        How it counts the quota: in calendar seconds, in the last second, or by a token bucket.
    latency:
        The least and the most milliseconds that an answer takes.
    faults:
        The part of the requests that meet a fault: resets, 5xx, HTML, cut bodies, silence and more.
    write:
        Write simulated.toml, its secret and its fleet file into this folder, ready for auditor run.
    """
    from auditor.practice import Practice, serve
    from auditor.process import in_loop

    practice = Practice(devices, products, seed, dialect, per_second or None, window, latency, faults)
    in_loop(lambda: serve(practice, port, write, tell))
    return 0


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print a completion script, such as for: auditor completion bash > /etc/bash_completion.d/auditor

    Parameters
    ----------
    shell:
        The shell to complete in.
    """
    sys.stdout.write(app.generate_completion(shell=shell))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code; what goes wrong is one sentence on standard error."""
    open_standard_streams()
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        say(f"auditor: {' '.join(str(error).split())}\nTry: auditor --help")
        return UsageError.exit_code
    except StoppedAtOnceError as error:
        # A thread that still seals must not hold the process back; nothing is lost with it.
        say(f"auditor: {error}")
        os._exit(error.exit_code)
    except AuditorError as error:
        say(f"auditor: {safe(error)}")
        return error.exit_code
    except KeyboardInterrupt:
        return StoppedAtOnceError.exit_code
    except BrokenPipeError:
        # The reader has gone (`auditor inventory RUN | head`); a second complaint at exit helps nobody.
        to_nowhere(1)
        return 0
    except OSError as error:
        say(f"auditor: {safe(error.filename or 'output')}: {error.strerror}")
        to_nowhere(1)
        return RunNotWritableError.exit_code
    return code if isinstance(code, int) else 0


def _audit(start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str) -> "Result":
    """Runs an audit with progress and signals, and says what it came to."""
    from auditor.display import summary, watching
    from auditor.process import log_to_stderr, until_signal

    log_to_stderr(log_level)
    began = time.monotonic()
    with watching() as watch:
        result = until_signal(lambda stop: start(watch, stop))
    for line in summary(result.manifest, time.monotonic() - began):
        say(line)
    return result


def _at_least_one(flag: str, number: int | None) -> int | None:
    if number is not None and number < 1:
        raise UsageError(f"{flag} {number}: give a number of devices from 1 up")
    return number
