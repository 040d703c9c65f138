"""The command line: every command by its name, and what goes wrong as one sentence and an exit code."""

import os
import sys
from collections.abc import Sequence
from typing import Literal

from cyclopts import App, CycloptsError
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import SIMPLE

from auditor.__about__ import VERSION
from auditor.cli.commands.audit import check, plan, prune, resume, run
from auditor.cli.commands.demo import demo
from auditor.cli.commands.fleet import fleet
from auditor.cli.commands.query import devices, diff, history, inventory, sql, verify
from auditor.cli.commands.report import metrics, policy, report
from auditor.cli.commands.simulate import simulate
from auditor.cli.console import open_standard_streams, say, to_nowhere
from auditor.errors import AuditorError, RunNotWritableError, StoppedAtOnceError, UsageError
from auditor.text.formatting import safe

app = App(
    name="auditor",
    help="Which version of which OTA module does every device of an IoT fleet run?",
    help_epilogue=(
        "Exit codes: 0 done; 1 devices failed or pending beyond max_failed, a product that could not be listed, a run "
        "that does not verify, or a plan that does not fit its window; 2 usage, settings or fleet file; 3 the platform "
        "refuses or was never reached, or the run cannot be written; 4 drift or differences that --fail-on names, or a "
        "violated policy; 130 interrupted."
    ),
    version=VERSION,
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=SIMPLE, padding=(0, 0))),
    help_format="plaintext",
    result_action="return_value",
)


for command in (
    run, resume, check, plan, fleet, inventory, devices, sql, diff, history, policy, report, metrics, verify, prune,
    demo, simulate,
):  # fmt: skip
    app.command(command)


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
    given = sys.argv[1:] if arguments is None else arguments
    if not {"--help", "-h", "--version"}.intersection(given):
        _log_to_standard_error()
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
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != 1:  # with 1 Rich takes a broken pipe
            raise
        # The reader has gone (`auditor inventory RUN | head`); a second complaint at exit helps nobody.
        to_nowhere(1)
        return 0
    except OSError as error:
        say(f"auditor: {safe(error.filename or 'output')}: {error.strerror}")
        to_nowhere(1)
        return RunNotWritableError.exit_code
    return code if isinstance(code, int) else 0


def _log_to_standard_error() -> None:
    """Logs are talk: structlog itself would write them between the data. Commands that ask set more."""
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.stderr))
