"""Commands about files of settings and rules: config show, validate and schema."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from auditor.cli.console import print_line
from auditor.cli.options import OUTPUT, Config, OutputPath
from auditor.cli.output import emit_file
from auditor.errors import SettingsError, UsageError
from auditor.text.formatting import safe

config = App(name="config", help="Show every setting in effect, check files, or print their JSON Schema.")


@config.command(help_epilogue="Example: auditor config show nightly.toml")
def show(
    path: Config,
    /,
    *,
    format: Annotated[Literal["toml", "json"], Parameter(group=OUTPUT)] = "toml",  # noqa: A002  the flag's name
) -> int:
    """Print every setting in effect: those of the file, and the defaults of all others.

    Paths are absolute. Secrets are not read, and never printed.

    Parameters
    ----------
    format:
        Print TOML, which is a settings file again, or JSON.
    """
    from auditor.config.loader import load_settings
    from auditor.config.serialization import settings_to_dict
    from auditor.scaffold.settings_file import format_tables

    table = settings_to_dict(load_settings(path))
    if format == "json":
        import orjson

        print_line(orjson.dumps(table, option=orjson.OPT_INDENT_2).decode())
    else:
        print_line(format_tables(table).rstrip("\n"))
    return 0


@config.command(help_epilogue="Example: auditor config validate nightly.toml rules.toml")
def validate(*paths: Path) -> int:
    """Check files of settings or rules, and print all faults of each.

    The file of rules that settings name is checked with them. Nothing is sent, and no secret is read.

    Parameters
    ----------
    paths:
        Files of settings or rules.
    """
    if not paths:
        raise UsageError("give the files to check")
    return max(_validate(path) for path in paths)


def _validate(path: Path) -> int:
    """Print a line for each fault of a file, or that it has none; return the exit code."""
    from auditor.config.loader import parse_settings
    from auditor.config.toml_tables import FaultList, read_toml

    faults = FaultList()
    table: dict[str, object] = {}
    with faults.collect():
        table = read_toml(path)
    if faults.sentences:
        return _print_faults(faults.sentences)
    if "rule" in table:
        return _validate_rules(path, table)
    accounts = 0
    with faults.collect():
        accounts = len(parse_settings(table, where=str(path), folder=path.parent).account)
    rules = _rules_file(table, path.parent)
    rules_table: dict[str, object] | None = None
    try:
        rules_table = None if rules is None else read_toml(rules)
    except SettingsError as error:
        faults.sentences += [f"{path}: policy: file: {sentence}" for sentence in error.sentences]
    exit_code = _print_faults(faults.sentences)
    if exit_code == 0:
        print_line(f"ok   {safe(path)}: {_count(accounts, 'account')}")
    return exit_code if rules is None or rules_table is None else max(exit_code, _validate_rules(rules, rules_table))


def _validate_rules(path: Path, table: Mapping[str, object]) -> int:
    from auditor.policy.loader import parse_policy

    try:
        rules = parse_policy(table, str(path))
    except SettingsError as error:
        return _print_faults(error.sentences)
    print_line(f"ok   {safe(path)}: {_count(len(rules), 'rule')}")
    return 0


def _rules_file(table: Mapping[str, object], folder: Path) -> Path | None:
    """Return the file of rules that a table of settings names, also if other settings are wrong."""
    from auditor.config.resolution import resolve_path

    policy = table.get("policy")
    file = policy.get("file") if isinstance(policy, Mapping) else None
    return Path(resolve_path(folder, file)) if isinstance(file, str) and file and "\0" not in file else None


def _print_faults(sentences: Sequence[str]) -> int:
    for sentence in sentences:
        print_line(f"FAIL {safe(sentence)}")
    return SettingsError.exit_code if sentences else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@config.command(help_epilogue="Example: auditor config schema rules -o rules.schema.json")
def schema(kind: Literal["settings", "rules"] = "settings", /, *, out: OutputPath = None) -> int:
    """Print the JSON Schema of settings or rules, which editors of TOML check a file with.

    Parameters
    ----------
    kind:
        What the schema describes.
    """
    from auditor.scaffold.settings_file import schema_path

    def write(path: Path) -> None:
        path.write_bytes(schema_path(kind).read_bytes())

    emit_file(out, write)
    return 0
