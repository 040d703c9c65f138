"""Read where the address of a dead man's switch is stored, from settings that may have any other fault."""

import contextlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from auditor.config.resolution import resolve_path, resolve_secret_source
from auditor.config.settings import SecretSource, Settings
from auditor.config.validation import check_secret_source
from auditor.errors import SettingsError
from auditor.storage.files import read_regular_file

_LINE = r"""^[ \t]*["']?{key}["']?[ \t]*(?:\.[ \t]*["']?\w+["']?[ \t]*)?=[^\r\n]*"""

_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PingSettings:
    """What a settings file says about its dead man's switch.

    Attributes:
        ping: where the address of the switch is stored; None: nowhere that can be read.
        directory: where run folders are created.
    """

    ping: SecretSource | None
    directory: Path


def read_ping(path: Path) -> PingSettings:
    """Return what a settings file says about its switch. What it cannot say is left to ``load_settings`` to refuse.

    A file that is no TOML is searched for lines with these keys.
    """
    table: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        text = read_regular_file(path).decode("utf-8-sig", "replace")
        table = _parse(text) or _search(text)
    directory = table.get("directory")
    ping = None
    with contextlib.suppress(msgspec.ValidationError, SettingsError):
        source = msgspec.convert(table.get("ping"), SecretSource)
        check_secret_source(source, "ping")
        ping = resolve_secret_source(source, path.parent)
    default = msgspec.structs.asdict(Settings(account=()))["directory"]
    named = directory if isinstance(directory, str) and "\0" not in directory else default
    return PingSettings(ping, Path(resolve_path(path.parent, named)))


def _search(text: str) -> dict[str, Any]:
    """Return the keys in their first lines; a table such as ``[quota_sharing]`` has another ``directory``."""
    found: dict[str, Any] = {}
    for key, part in (("ping", text), ("directory", _TABLE.split(text, maxsplit=1)[0])):
        lines = re.finditer(_LINE.format(key=key), part, re.MULTILINE)
        found |= next(filter(None, (_parse(line[0]) for line in lines)), {})
    return found


def _parse(text: str) -> dict[str, Any]:
    """Return a table; empty if the text is no TOML, or has too large a number or too deep a nesting."""
    with contextlib.suppress(ValueError, RecursionError):
        return tomllib.loads(text)
    return {}
