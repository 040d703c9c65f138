"""Text of a new settings file and of new rules, with comments for those who change them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from auditor.models import Dialect


def schema_path(kind: Literal["settings", "rules"]) -> Path:
    """Return the file of the JSON Schema of settings or rules, which is a part of the program."""
    return Path(str(files("auditor") / "schemas" / f"{kind}.schema.json"))


def format_toml(value: object) -> str:
    """Return a value as TOML, in one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_format_key(key)} = {format_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_toml, value)) + "]"
    # A string of JSON is one of TOML, which also requires that DEL is escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")


def _format_key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else format_toml(key)


def format_tables(table: Mapping[str, object]) -> str:
    """Return a table as a document of TOML: values first, then tables, and a table for each item of a list of them."""
    lines = [f"{_format_key(key)} = {format_toml(value)}" for key, value in table.items() if not _has_tables(value)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{_format_key(key)}]", format_values(value)]
        elif isinstance(value, list | tuple) and _has_tables(value):
            lines += [line for each in value for line in ("", f"[[{_format_key(key)}]]", format_values(each))]
    return "\n".join(lines).strip("\n") + "\n"


def format_values(table: Mapping[str, object]) -> str:
    """Return a table as lines of TOML; tables in it are in one line each."""
    return "\n".join(f"{_format_key(key)} = {format_toml(value)}" for key, value in table.items())


def _has_tables(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value)
    )


@dataclass(frozen=True, slots=True)
class NewSettings:
    """What a new settings file is about.

    Attributes:
        dialect: the platform.
        account: name of the account.
        endpoint: address of the platform.
        region_id, instance_id: of Alibaba.
        access_key_id: the id, or the table of the place that it is stored in.
        access_key_secret: the table of the place that the secret is stored in.
        fleet: source of the devices.
        calls_per_second: the account's quota.
        directory: where run folders are created.
        rules: whether a file of rules is named.
        report: whether a report is written after each run, which needs the extra report.
        schema: address of the JSON Schema, for editors.
    """

    dialect: Dialect
    account: str
    endpoint: str
    region_id: str | None
    instance_id: str | None
    access_key_id: str | Mapping[str, str]
    access_key_secret: Mapping[str, str]
    fleet: Mapping[str, str]
    calls_per_second: float
    directory: str
    rules: bool
    report: bool
    schema: str

    def text(self) -> str:
        """Return the content of the file."""
        value = format_toml
        alibaba = [f"region_id = {value(self.region_id)}"] if self.dialect == "alibaba" else []
        if self.dialect == "alibaba":
            alibaba += [f"instance_id = {value(self.instance_id)}"] if self.instance_id else [_NO_INSTANCE]
        listed = "products" in self.fleet
        return _SETTINGS.format(
            schema=self.schema,
            directory=value(self.directory),
            account=value(self.account),
            endpoint=value(self.endpoint),
            dialect=value(self.dialect),
            alibaba="".join(f"{line}\n" for line in alibaba),
            access_key_id=value(self.access_key_id),
            access_key_secret=value(self.access_key_secret),
            calls_per_second=f"{self.calls_per_second:.15g}",
            fleet=value(self.fleet),
            other_fleet=_FLEET_FILE if listed else _FLEET_LISTED,
            report=_REPORT if self.report else "\n".join(f"# {line}" for line in _REPORT.splitlines()),
            policy='[policy]\nfile = "rules.toml"' if self.rules else '# [policy]\n# file = "rules.toml"',
        )


_NO_INSTANCE = '# instance_id = "iot-060a0xxx"           # if you have an enterprise instance'
_FLEET_FILE = '# fleet = { file = "fleet.csv" }          # or a list of devices: product_key and device_name, or iot_id'
_FLEET_LISTED = '# fleet = { products = "all" }            # or every device that the platform lists'

_REPORT = "[report]\nhtml = true                               # report.html in each run folder"

_SETTINGS = """\
#:schema {schema}
# Settings of an audit. Check them with: auditor check THIS-FILE
# Paths are relative to this file. `auditor config show THIS-FILE` prints every setting in effect.

name = "nightly"                          # part of each run folder's name
directory = {directory}
max_failed = "0.1%"                       # devices that may fail before the exit code is 1
# since = "last"                          # query only devices that may have changed since the previous run

[[account]]
name = {account}
endpoint = {endpoint}
dialect = {dialect}
{alibaba}access_key_id = {access_key_id}
# Where the secret is stored, never the secret itself:
# {{ env = "NAME" }}, {{ file = "/run/secrets/eu" }} or the output of {{ command = ["pass", "show", "iot/eu"] }}
access_key_secret = {access_key_secret}
calls_per_second = {calls_per_second}                     # the account's quota; "auto" finds it, without quota_share
quota_share = 0.8                         # fraction of the quota to use; the rest is for the account's other users
fleet = {fleet}
{other_fleet}

# More accounts are more [[account]] tables, which are audited concurrently.

{policy}

{report}

# [[notify]]                              # post a summary of each run
# name = "operators"
# webhook = {{ file = "/run/secrets/webhook" }}
# when = "problems"
"""

RULES = """\
#:schema {schema}
# Rules for a fleet: auditor policy RUN rules.toml
# Patterns: * matches any text, ? one character. A rule without product, account or module applies to all.
# severity: "error" makes the exit code 4; "warning" and "note" are reported only.

[[rule]]
name = "rollouts are done"
severity = "note"                         # "warning", once no rollout is under way
newest = "95%"                            # of a product's devices with a module run its newest version

[[rule]]
name = "few versions in use"
severity = "note"
max_versions = 5                          # per module and product

[[rule]]
name = "results are recent"
max_age = "36h"

# [[rule]]
# name = "no recalled firmware"
# module = "ble"
# deny = ["1.0.3"]
#
# [[rule]]
# name = "at least 1.2"
# product = "k1*"
# module = "ble"
# minimum = "1.2.0"
"""
"""Text of new rules; ``schema`` is the address of their JSON Schema."""
