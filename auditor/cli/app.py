"""Command-line application: the commands by task, and errors as one sentence and an exit code."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, UnknownOptionError
from cyclopts.help import DefaultFormatter, PanelSpec, format_usage
from rich.box import SIMPLE

from auditor.__about__ import VERSION
from auditor.cli.commands.audit import check, plan, prune, resume, run
from auditor.cli.commands.cluster import cut, shard, stop
from auditor.cli.commands.config import config
from auditor.cli.commands.count import count
from auditor.cli.commands.demo import demo
from auditor.cli.commands.devices import device, devices, inventory
from auditor.cli.commands.fleet import fleet
from auditor.cli.commands.init import init
from auditor.cli.commands.notify import notify
from auditor.cli.commands.publish import fetch, publish
from auditor.cli.commands.query import diff, history, sql, verify
from auditor.cli.commands.report import metrics, policy, report
from auditor.cli.commands.runs import runs, status
from auditor.cli.commands.simulate import simulate
from auditor.cli.console import (
    LOG_STYLE,
    open_standard_streams,
    print_error,
    print_path,
    redirect_to_devnull,
)
from auditor.cli.execution import trace_command
from auditor.config.resolution import expand_home
from auditor.errors import AuditInterruptedError, AuditorError, RunNotWritableError, SettingsError, UsageError
from auditor.text.formatting import safe

EXIT_CODES = """\
Exit codes:
  0    success
  1    more devices failed or are pending than max_failed allows, an account is
       silent, a product could not be listed, a run does not verify, or a plan
       does not fit
  2    the usage, the settings or the fleet file is wrong
  3    the platform refuses an account or gives it no answer, or the run
       cannot be written
  4    --fail-on matched, or a policy is violated
  75   another process has taken over this shard; do not start it again
  130  interrupted by SIGINT; run, resume, fleet and demo also by SIGTERM or
       SIGHUP
  129, 143
       another command was ended by SIGHUP or SIGTERM; or one of these, before
       it handles signals"""


AUDIT = Group("Audit", sort_key=1)
CLUSTER = Group("Audit on several machines", sort_key=2)
READ = Group("Read", sort_key=3)
PUBLISH = Group("Publish", sort_key=4)
PRACTISE = Group("Practise", sort_key=5)
OTHER = Group("Other", sort_key=6)

RENAMED_FLAGS = {"--calls": "--max-calls", "--since-rule": "--change-detection"}
"""Flags of versions before 0.1.0, and their names today."""

app = App(
    name="auditor",
    help="Report which version of which OTA module every device of an IoT fleet runs.",
    help_epilogue=EXIT_CODES,
    version=VERSION,
    help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=SIMPLE, padding=(0, 0))),
    help_format="plaintext",
    group_commands=OTHER,
    group_parameters=Group("Options"),
    result_action="return_value",
)


def completion(
    shell: Literal["bash", "zsh", "fish"],
    /,
    *,
    install: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Print a completion script, or install it for this user.

    Parameters
    ----------
    shell:
        The shell to complete in.
    install:
        Write the script to where the shell finds it, and print the path. For bash and zsh, also add the lines that
        load it to ~/.bashrc or ~/.zshrc.
    """
    if not install:
        sys.stdout.write(app.generate_completion(shell=shell))
        return 0
    print_path(app.install_completion(shell=shell))
    if shell == "zsh":
        _start_zsh_completions(Path.home() / ".zshrc")
    return 0


def _start_zsh_completions(startup: Path) -> None:
    """Let zsh load completions from the directory that its startup file adds, unless the file does that already."""
    text = startup.read_text(encoding="utf-8", errors="surrogateescape") if startup.exists() else ""
    if "compinit" not in text and "oh-my-zsh" not in text and "fpath=" in text:
        line = "" if text.endswith("\n") else "\n"
        with startup.open("a", encoding="utf-8") as file:
            file.write(f"{line}autoload -Uz compinit && compinit\n")


_COMMANDS: dict[Group, tuple[tuple[Callable[..., int] | App, str], ...]] = {
    AUDIT: (
        (init, "auditor init nightly.toml --platform tuya --fleet all"),
        (config, "auditor config show nightly.toml"),
        (check, "auditor check nightly.toml"),
        (plan, "auditor plan nightly.toml --window 6h"),
        (run, "auditor run nightly.toml --for 6h"),
        (resume, "auditor resume audits"),
        (fleet, "auditor fleet nightly.toml --account eu -o fleet.csv"),
        (notify, "auditor notify nightly.toml --test"),
        (prune, "auditor prune audits --keep-days 30"),
    ),
    CLUSTER: (
        (cut, "auditor cut nightly.toml"),
        (shard, "auditor shard /mnt/audits/20261129T020000Z-nightly --settings nightly.toml --index 0"),
        (stop, "auditor stop /mnt/audits/20261129T020000Z-nightly"),
    ),
    READ: (
        (status, "auditor status audits"),
        (runs, "auditor runs audits"),
        (inventory, "auditor inventory audits -o inventory.csv"),
        (devices, "auditor devices audits --module ble --below 1.2.0"),
        (device, "auditor device meter-17 audits"),
        (count, "auditor count nightly.toml --module ble --version 1.0.3"),
        (sql, 'auditor sql audits "SELECT status, count(*) FROM devices GROUP BY status"'),
        (diff, "auditor diff audits --since monday"),
        (history, "auditor history audits --module ble"),
        (policy, "auditor policy audits rules.toml -o policy.xml"),
        (verify, "auditor verify audits"),
    ),
    PUBLISH: (
        (report, "auditor report audits --rules rules.toml -o fleet.html"),
        (metrics, "auditor metrics audits -o /var/lib/node_exporter/textfile/auditor.prom"),
        (publish, "auditor publish audits --to lake"),
        (fetch, "auditor fetch s3://lake/auditor fetched"),
    ),
    PRACTISE: (
        (demo, "auditor demo --devices 500"),
        (simulate, "auditor simulate --devices 1000 --write simulated"),
    ),
    OTHER: ((completion, "auditor completion bash > /etc/bash_completion.d/auditor"),),
}
"""Each command with an example, in the order of the help."""


def _description(command: Callable[..., int]) -> str:
    """Return a command's docstring without its parameters, and with each paragraph in one line."""
    text = cleandoc(command.__doc__ or "").partition("\n\nParameters\n")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


for _group, _commands in _COMMANDS.items():
    for _order, (_command, _example) in enumerate(_commands):
        if isinstance(_command, App):
            _command.group, _command.sort_key, _command.help_epilogue = _group, _order, f"Example: {_example}"
            app.command(_command)
            continue
        app.command(
            _command, group=_group, sort_key=_order, help=_description(_command), help_epilogue=f"Example: {_example}"
        )


def _expand_home(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{flag}={expand_home(value)}" if equals and flag.startswith("--") else expand_home(argument)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors become one sentence on standard error.

    Args:
        arguments: command-line arguments; None: those of the process.
    """
    open_standard_streams()
    # A shell does not expand the home directory in --flag=~/path.
    given = [_expand_home(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    # Also usage errors, which come before the command, have its format.
    flags = " ".join(given).replace("=", " ")
    LOG_STYLE.format = "json" if "--log-format json" in flags or "--progress json" in flags else "text"
    try:
        with trace_command(given[0] if given else "") as traced:
            code = _run_command(given)
            traced.set({"process.exit.code": code})
            if code:
                traced.fail(str(code))
            return code
    except AuditInterruptedError as error:
        # A thread that still seals must not delay the exit; it loses nothing.
        _print_failure(str(error), error.exit_code)
        os._exit(error.exit_code)


def _run_command(given: Sequence[str]) -> int:
    """Run one command and return its exit code; raise AuditInterruptedError if threads may still run."""
    try:
        code = app(given, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        _print_failure(_describe_usage_error(error), UsageError.exit_code)
        return UsageError.exit_code
    except AuditInterruptedError:
        raise
    except AuditorError as error:
        for sentence in error.sentences if isinstance(error, SettingsError) else (str(error),):
            _print_failure(safe(sentence), error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        return AuditInterruptedError.exit_code
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != 1:  # Rich exits with 1 on a broken pipe
            raise
        # The reader has closed the pipe (`auditor inventory RUN | head`); do not complain again at exit.
        redirect_to_devnull(1)
        return 0
    except OSError as error:
        _print_failure(f"{safe(error.filename or 'output')}: {error.strerror}", RunNotWritableError.exit_code)
        redirect_to_devnull(1)
        return RunNotWritableError.exit_code
    return code if isinstance(code, int) else 0


def print_unexpected(error: Exception) -> int:
    """Print an error that is a fault of this program, with where it happened; return the exit code.

    A program that reads the lines of ``--log-format json`` gets one line of JSON; a person a traceback.
    """
    lines = traceback.format_exception(error)
    if LOG_STYLE.format == "json":
        sentence = f"auditor: unexpected {type(error).__name__}: {safe(str(error))}"
        print_error(sentence, "error", event="command_failed", exit_code=1, traceback="".join(lines))
    else:
        print_error("".join(lines).rstrip("\n"), "error", event="command_failed", exit_code=1)
    return 1


def _print_failure(sentence: str, exit_code: int) -> None:
    print_error(f"auditor: {sentence}", "error", event="command_failed", exit_code=exit_code)


def _describe_usage_error(error: CycloptsError) -> str:
    """Return a sentence for wrong arguments, with the help to read."""
    command = " ".join(("auditor", *(error.command_chain or ())))
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.keyword or error.argument.name
        if error.keyword is not None or error.argument.tokens:
            return f"{name} needs a value ({command} --help)"
        usage = str(format_usage(app, error.command_chain or ())).strip()
        return f"Missing {name}. Usage: {usage} ({command} --help)"
    sentence = " ".join(str(error).split())
    if isinstance(error, UnknownOptionError):
        flag = (error.token.keyword or error.token.value).partition("=")[0]
        if flag in RENAMED_FLAGS:
            sentence = f"{flag} is now called {RENAMED_FLAGS[flag]}"
    return f"{sentence} ({command} --help)"
