"""Command lines to run on mutated files: every command that reads them, with its options in turn."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.mutations.material import HEAD

Arguments = tuple[str, ...]

QUERIES = (
    "FROM fleet", "FROM devices", "FROM modules", "FROM inventory", "FROM products", "FROM missing_modules", "SELECT count(*) FROM devices",
    "SELECT d.status, m.module_version, count(*) FROM devices d LEFT JOIN modules m USING (account, product_key, device_name) GROUP BY ALL",
    "DESCRIBE devices", "SUMMARIZE modules", "FROM firmware", "FROM jobs", "FROM tasks", "FROM device_releases",
)  # fmt: skip

_FILTERS: tuple[Arguments, ...] = (
    (), ("--module", "ble"), ("--module", "ble", "--below", "2.0"), ("--module", "ble", "--above", "0.1"), ("--status", "ok"), ("--status", "pending"),
    ("--source", "carried"), ("--source", "unsampled"), ("--missing",), ("--update", "behind"), ("--limit", "3"), ("--name", "x"), ("--version", "1.0.0"),
)  # fmt: skip


class Runs:
    """A directory of runs, one of which is mutated.

    Attributes:
        folder: the sandbox with settings and rules; ``audits`` is in it, and ``out`` is to write to.
        mutated, other: the mutated run, and another one.
    """

    def __init__(self, folder: Path, mutated: Path, other: Path, random: Random) -> None:
        self.folder, self.audits, self.out = folder, folder / "audits", folder / "out"
        self.mutated, self.other, self.random = mutated, other, random

    @property
    def path(self) -> str:
        """The mutated run, or the directory that it is in."""
        return str(self.random.choice((self.mutated, self.mutated, self.audits)))

    def output(self, *formats: str) -> Arguments:
        """Return the flags of an output format, to standard output or a file."""
        form = self.random.choice(("table", "csv", "json", "jsonl", "parquet", "xlsx", *formats))
        if form in {"parquet", "xlsx"} or not self.random.randrange(3):
            return ("--format", form, "-o", str(self.out / f"file.{form}")) if form != "table" else ()
        return ("--format", form)


def _diff(runs: Runs) -> Arguments:
    pairs = (
        (str(runs.mutated), str(runs.other)),
        (str(runs.other), str(runs.mutated)),
        (str(runs.audits), "--last"),
        (str(runs.audits), "--since", "last~1"),
    )
    flags = runs.random.choice(
        (
            (),
            ("--devices",),
            ("--fail-on", "downgraded,vanished"),
            ("--module", "ble", "--group-by", "product_name,change"),
            ("--account", "demo", "--devices", "--sort", "device_name"),
        )
    )
    return ("diff", *runs.random.choice(pairs), *flags, *runs.output())


def _history(runs: Runs) -> Arguments:
    flags = runs.random.choice(
        (
            (),
            ("--module", "ble"),
            ("--limit", "1"),
            ("--name", "nightly"),
            ("--group-by", "device_status"),
            ("--rollouts",),
        )
    )
    return ("history", str(runs.audits), *flags, *runs.output())


def _policy(runs: Runs) -> Arguments:
    form = runs.random.choice(("junit", "sarif", "markdown", ""))
    output = ("--format", form) if form else (*runs.random.choice(((), ("--devices",))), *runs.output())
    return ("policy", runs.path, str(runs.folder / "rules.toml"), *output)


def _report(runs: Runs) -> Arguments:
    rules = runs.random.choice(((), ("--rules", str(runs.folder / "rules.toml"))))
    return ("report", runs.path, *rules, "-o", str(runs.out / "report.html"))


def _resume(runs: Runs) -> Arguments:
    settings = runs.random.choice(
        (("--settings", str(runs.folder / runs.random.choice(("file.toml", "listed.toml", "released.toml")))), ())
    )
    return ("resume", runs.path, *settings, "--for", "5s")


def _run(runs: Runs) -> Arguments:
    settings = str(runs.folder / runs.random.choice(("file.toml", "listed.toml", "released.toml")))
    flags: tuple[Arguments, ...] = (
        ("--resume",), ("--since", "last"), ("--since", str(runs.mutated)), ("--max-calls", "5", "--since", "last"), ("--max-calls", "4"), ("--sample", "5"),
        ("--precision", "20%"), ("--for", "5s"),
    )  # fmt: skip
    return ("run", settings, *runs.random.choice(flags))


def _plan(runs: Runs) -> Arguments:
    flags = runs.random.choice(((), ("--window", "1h"), ("--format", "json"), ("--sample", "3")))
    return ("plan", str(runs.folder / runs.random.choice(("file.toml", "listed.toml"))), *flags)


def _publish(runs: Runs) -> Arguments:
    settings = runs.folder / "publish.toml"
    table = '\n[[publish]]\nname = "lake"\ntype = "files"\noptions = { to = "out/lake" }\n'
    settings.write_text((runs.folder / "file.toml").read_text(encoding="utf-8") + table, encoding="utf-8")
    return ("publish", runs.path, "--settings", str(settings), *runs.random.choice(((), ("--missing",))))


READING: dict[str, Callable[[Runs], Arguments]] = {
    "inventory": lambda runs: ("inventory", runs.path, *runs.output()),
    "devices": lambda runs: ("devices", runs.path, *runs.random.choice(_FILTERS), *runs.output()),
    "sql": lambda runs: ("sql", runs.path, runs.random.choice(QUERIES), *runs.output()),
    "diff": _diff,
    "history": _history,
    "policy": _policy,
    "verify": lambda runs: ("verify", str(runs.mutated)),
    "report": _report,
    "metrics": lambda runs: ("metrics", runs.path, "-o", str(runs.out / "auditor.prom")),
    "plan": _plan,
    "runs": lambda runs: ("runs", str(runs.audits), *runs.output()),
    "status": lambda runs: ("status", str(runs.audits)),
    "device": lambda runs: ("device", "device1", str(runs.audits), *runs.output()),
    "publish": _publish,
}
"""Commands that change nothing but the file that they write."""

_KEEP = (("--keep", "1"), ("--keep-days", "1"), ("--keep", "1", "--keep-days", "1"))

WRITING: dict[str, Callable[[Runs], Arguments]] = {
    "resume": _resume,
    "run": _run,
    "prune": lambda runs: (
        "prune",
        str(runs.audits),
        *runs.random.choice(_KEEP),
        *runs.random.choice(((), ("--dry-run",))),
    ),
}
"""Commands that change the directory of runs."""

OTHER_INPUT = frozenset({"config", "check", "notify", "count", "fetch", "fleet"})
"""Commands that need no run; they are run on mutated settings, fleets and answers."""

SHARED_STORAGE = frozenset({"cut", "shard", "stop"})
"""Commands whose input is the storage of a run on several machines; ``tests/cluster`` damages that."""

WITHOUT_INPUT = frozenset({"demo", "simulate", "completion", "init"})
"""Commands that read no file."""


def settings_commands(folder: Path, random: Random, name: str) -> Arguments:
    """Return a command that reads settings, rules or a fleet named in them."""
    path = str(folder / name)
    commands: tuple[Arguments, ...] = (
        ("plan", path, "--account", "us"), ("plan", path, "--account", "us", "--format", "json"), ("check", path), ("fleet", path), ("notify", path),
        ("count", path, "--module", "ble"), ("count", path, "--module", "ble", "--below", "2.0"),
        ("fetch", "lake", str(folder / "out" / "copy"), "--settings", path),
        ("config", "validate", path, str(folder / "rules.toml")),
        ("config", "show", path, "--format", random.choice(("toml", "json"))),
        ("run", path, "--for", "2s"), ("run", path, "--limit", "2", "--account", "us", "--for", "2s"),
    )  # fmt: skip
    return random.choice(commands)


def fleet_commands(folder: Path, random: Random, fleet: str) -> Arguments:
    """Return a command that reads a fleet file."""
    path, file = str(folder / "file.toml"), str(folder / fleet)
    commands: tuple[Arguments, ...] = (
        ("plan", path, "--fleet", file), ("plan", path, "--fleet", file, "--limit", "3", "--format", "json"), ("check", path, "--fleet", file),
        ("run", path, "--fleet", file, "--for", "5s"), ("fleet", str(folder / "listed.toml"), "--against", file),
        ("fleet", str(folder / "listed.toml"), "--against", file, "--format", "json"),
    )  # fmt: skip
    return random.choice(commands)


def answered_commands(folder: Path, random: Random) -> Arguments:
    """Return a command that sends requests."""
    listed, file = str(folder / "listed.toml"), str(folder / "file.toml")
    commands: tuple[Arguments, ...] = (
        ("run", file, "--for", "5s"), ("run", listed, "--for", "5s"), ("run", listed, "--since", "last", "--for", "5s"), ("check", listed), ("check", file),
        ("run", listed, "--max-calls", "5", "--for", "5s"), ("fleet", listed), ("fleet", listed, "-o", str(folder / "out" / "fleet.csv")),
        ("fleet", listed, "--against", str(folder / "fleet.csv")), ("count", listed, "--module", "ble"),
    )  # fmt: skip
    return random.choice(commands)


FULL_SETTINGS = (
    HEAD
    + """\
page_size = 100
concurrency = 8
fsync_interval = 0.5
retry_budget = 0.2
group_readable = false
since = "last"
change_detection = "reconnected"
max_age = "30d"
recheck = "10%"
max_calls = 1000
fair_share = "50%"
seed = 7
policy = { file = "rules.toml" }
report = { html = "out/report.html", excel = "out/inventory.xlsx", metrics = "out/auditor.prom" }
metrics = { interval = "1m", modules = ["mcu"], max_series = 50, pushgateway = { address = "http://127.0.0.1:9" } }
notify = [{ name = "ops", webhook = { env = "AUDITOR_TEST_WEBHOOK" }, secret = { env = "AUDITOR_TEST_SIGNING" }, when = "problems" }]
publish = [{ name = "lake", type = "files", timeout = "1m", options = { to = "out/lake" } }]
"""
)

FULL_ACCOUNT = """
[[account]]
name = "eu"
endpoint = "http://127.0.0.1:{port}/"
dialect = "tuya"
region_id = "cn-shanghai"
instance_id = "iot-1"
access_key_id = "{key}"
access_key_secret = {{ file = "secret" }}
calls_per_second = 500
quota_share = 0.8
fetch_product_modules = true
quotas = {{ QueryProductList = 400, QueryDevice = 400, ListOTAModuleByProduct = 100, BatchGetDeviceState = 100 }}
fleet = {{ products = "all", include = {{ device_name = ["*"] }}, exclude = {{ status = ["UNACTIVE"], device_name = ["lab-*"] }}, query_never_activated = true }}

[[account]]
name = "us"
endpoint = "http://127.0.0.1:{port}/"
access_key_id = {{ env = "AUDITOR_TEST_KEY" }}
access_key_secret = {{ command = ["printenv", "AUDITOR_TEST_SECRET"] }}
proxy = "environment"
calls_per_second = "auto"
fleet = {{ file = "fleet.csv" }}
"""
"""Settings with every key that a single file can have."""
