"""The commands that write, show and check settings: init, config and completion. And how faults are printed."""

import json
import os
import pty
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest

from auditor.policy.loader import CONDITIONS
from tests.cli.conftest import SECRET, Auditor, Platform, command

ROOT = Path(__file__).parents[2]

TWO_FAULTS = """
concurrency = 0
[[account]]
name = "eu"
endpoint = "si.tuyacloud.com"
access_key_id = "LTAI"
access_key_secret = { env = "SECRET" }
"""
SENTENCES = [
    "nightly.toml: concurrency: give a whole number from 1 to 10,000",
    'nightly.toml: account 1 ("eu"): endpoint: is not an address such as https://HOST:PORT/',
]

TUYA = ("--platform", "tuya", "--endpoint", "https://si.tuyacloud.com/", "--key-id", "LTAI")
ALIBABA = ("--platform", "alibaba", "--region", "cn-shanghai", "--key-id", "env:KEY_ID")
REST = ("--key-secret", "file:secret", "--fleet", "all", "--no-check")


def test_every_command_prints_all_faults_of_its_settings_a_line_each(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "nightly.toml").write_text(TWO_FAULTS)
    for name in ("run", "check", "plan"):
        ended = auditor(name, "nightly.toml")
        assert ended.returncode == 2
        assert ended.stderr.splitlines() == [f"auditor: {sentence}" for sentence in SENTENCES]


def test_faults_are_json_lines_in_a_log_of_json_lines(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "nightly.toml").write_text(TWO_FAULTS)
    lines = [json.loads(line) for line in auditor("run", "nightly.toml", "--log-format", "json").stderr.splitlines()]
    assert [each["level"] for each in lines] == ["error", "error"]


@pytest.mark.parametrize("flags", [TUYA, ALIBABA], ids=["tuya", "alibaba"])
def test_init_writes_settings_and_rules_that_are_valid(
    auditor: Auditor, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    ended = auditor("init", "new.toml", *flags, *REST)
    assert (ended.returncode, ended.stdout) == (0, "wrote new.toml\nwrote rules.toml\n")
    validated = auditor("config", "validate", "new.toml")
    assert (validated.returncode, validated.stdout) == (0, "ok   new.toml: 1 account\nok   rules.toml: 3 rules\n")
    for name, kind in (("new.toml", "settings"), ("rules.toml", "rules")):
        text = (tmp_path / name).read_text()
        assert text.startswith("#:schema file:///")
        schema = json.loads(auditor("config", "schema", kind).stdout)
        jsonschema.validate(tomllib.loads(text), schema)


def test_the_examples_name_the_schema_that_they_follow_for_editors() -> None:
    for path in sorted((ROOT / "configs").glob("*.toml")):
        directive, _, rest = path.read_text().partition("\n")
        schema = path.parent / directive.removeprefix("#:schema ")
        assert schema.name == ("rules.schema.json" if path.stem == "rules" else "settings.schema.json")
        jsonschema.validate(json.loads(json.dumps(tomllib.loads(rest), default=str)), json.loads(schema.read_text()))


def test_init_runs_check_with_the_new_settings(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    flags = ("--platform", "tuya", "--endpoint", platform.endpoint, "--key-id", "simulated-key")
    ended = auditor("init", *flags, "--key-secret", "file:secret", "--fleet", "all")
    assert ended.returncode == 0, ended.stderr
    assert "ok   " in ended.stdout
    assert auditor("run", "nightly.toml", "--limit", "10").returncode in {0, 4}


def test_init_names_the_flags_that_are_missing_without_a_terminal(auditor: Auditor, tmp_path: Path) -> None:
    ended = auditor("init", "--platform", "alibaba", "--key-id", "x")
    assert ended.returncode == 2
    assert "--region, --key-secret, --fleet: give these flags" in ended.stderr
    ended = auditor("init", "--key-id", "x")
    flags = "--platform, --key-secret, --fleet, and --endpoint for tuya or --region for alibaba"
    assert f"{flags}: give these flags" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_init_replaces_no_file_without_force(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "nightly.toml").write_text("mine")
    ended = auditor("init")  # before it asks for anything
    assert ended.returncode == 2
    assert "nightly.toml: exists already" in ended.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["nightly.toml"]
    assert auditor("init", *TUYA, *REST, "--force").returncode == 0
    assert "[[account]]" in (tmp_path / "nightly.toml").read_text()


def test_init_refuses_a_directory_and_a_missing_one(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for words, sentence in (
        (("own",), "own: is a directory; give a file in it, such as own/nightly.toml"),
        (("own", "--force"), "own: is a directory; give a file in it, such as own/nightly.toml"),
        (("missing/nightly.toml",), "missing: is no directory; create it first"),
    ):
        ended = auditor("init", *words)
        assert (ended.returncode, list((tmp_path / "own").iterdir())) == (2, [])
        assert sentence in ended.stderr


def test_init_never_replaces_rules(auditor: Auditor, tmp_path: Path) -> None:
    mine = '[[rule]]\nname = "mine"\nminimum = "1"\n'
    (tmp_path / "rules.toml").write_text(mine)
    ended = auditor("init", *TUYA, *REST)
    assert (ended.returncode, ended.stdout) == (0, "wrote nightly.toml\nkept rules.toml\n")
    assert auditor("init", *TUYA, *REST, "--force").returncode == 0
    assert (tmp_path / "rules.toml").read_text() == mine
    (tmp_path / "rules.toml").write_text("mine")
    ended = auditor("init", "other.toml", *TUYA, *REST)
    assert (ended.returncode, (tmp_path / "other.toml").exists()) == (2, False)
    assert "rules.toml: is not TOML" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("rules.toml",), "rules.toml: is the name of the rules"),
        (("--calls-per-second=-5",), "calls_per_second: give calls a second"),
        (("--calls-per-second", "nan"), "calls_per_second: give calls a second"),
        (("--endpoint", "si.tuyacloud.com"), "endpoint: is not an address"),
        (("--account", ""), "name: "),
        (("--key-id", "file:"), "--key-id: the place is empty"),
        (("--platform", "alibaba", "--endpoint", "", "--region", 'cn"/@x'), "--region: "),
        (("my set%.toml", "--schedule", "systemd"), "my set%.toml: what starts the audit is named after it"),
        (("--schedule", "systemd", "--directory", "/"), "the directory of runs / contains "),
        (("--schedule", "systemd", "--directory", "."), "the directory of runs . contains "),
        (("--schedule", "cron", "--directory", "link"), "the directory of runs link contains "),
        (("--schedule", "cron", "--directory", "a\nb"), "use printable characters"),
    ],
)
def test_init_writes_nothing_that_cannot_be_used(
    auditor: Auditor, tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "link").symlink_to(".")
    path = () if flags[0].startswith("--") else flags[:1]
    given = dict(zip(TUYA[::2], TUYA[1::2], strict=True))
    rest = flags[len(path) :]
    overridden = {flag: word for flag, word in given.items() if flag not in rest}
    ended = auditor("init", *path, *(word for pair in overridden.items() for word in pair), *rest, *REST)
    assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["link"]


def test_init_never_quotes_or_writes_a_secret(auditor: Auditor, tmp_path: Path) -> None:
    ended = auditor("init", *TUYA, "--key-secret", SECRET, "--fleet", "all", "--no-check")
    assert ended.returncode == 2
    assert "and not the secret itself" in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_init_writes_texts_that_toml_would_take_for_syntax(auditor: Auditor, tmp_path: Path) -> None:
    odd = 'a"b\\c {x} # é'
    assert auditor("init", *TUYA, *REST, "--account", odd, "--directory", odd).returncode == 0
    table = tomllib.loads((tmp_path / "nightly.toml").read_text())
    assert (table["directory"], table["account"][0]["name"]) == (odd, odd)


def test_init_asks_on_a_terminal_for_what_no_flag_gives(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = command(("init", "--no-check"))
    with subprocess.Popen(
        words, cwd=tmp_path, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wrong_and_right = (
            b"",  # the platform in brackets
            b"si.tuyacloud.com",
            b"https://si.tuyacloud.com/",
            b"file:",
            b"env:KEY_ID",
            b"the-secret",
            b"env:KEY",
        )
        os.write(ours, b"\n".join((*wrong_and_right, b"", b"")))
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "assumed: a quota of 10 calls a second, and audits use 80% of it; edit the settings" in said
    for sentence in ("endpoint: is not an address", "--key-id: the place is empty", "give the place of the secret"):
        assert sentence in said
    (account,) = tomllib.loads((tmp_path / "nightly.toml").read_text())["account"]
    assert account["access_key_secret"] == {"env": "KEY"}
    assert (account["dialect"], account["fleet"]) == ("tuya", {"products": "all"})


@pytest.mark.parametrize("flags", [("--time", "25:00"), ("--time", "2"), ("--for", "soon")])
def test_init_refuses_times_that_are_none(auditor: Auditor, tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert auditor("init", *TUYA, *REST, *flags).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_init_prints_lines_for_cron_and_writes_units_for_systemd(auditor: Auditor, tmp_path: Path) -> None:
    ended = auditor("init", "eu.toml", *ALIBABA, *REST, "--schedule", "cron", "--time", "03:30")
    line, prune = (line for line in ended.stdout.splitlines() if " * * * " in line)
    assert line.startswith("30 3 * * * ")
    assert f"prune {tmp_path}/audits --keep-days 30; }} >> " in prune
    assert f"run {tmp_path}/eu.toml --resume --for 4h; }} >> {tmp_path}/audits/auditor-eu.log 2>&1" in line
    assert "cron does not set KEY_ID" in ended.stderr
    assert (tmp_path / "audits").is_dir()
    assert auditor("init", "us.toml", *TUYA, *REST, "--no-rules", "--schedule", "systemd").returncode == 0
    assert f"run {tmp_path}/us.toml --resume --for 4h" in (tmp_path / "auditor-us.service").read_text()
    assert f"ReadWritePaths={tmp_path}/audits\n" in (tmp_path / "auditor-us.service").read_text()
    assert "OnCalendar=*-*-* 02:00" in (tmp_path / "auditor-us.timer").read_text()


def test_init_writes_only_a_schedule_for_settings_that_exist(auditor: Auditor, tmp_path: Path) -> None:
    account = '[[account]]\nname = "{0}"\nendpoint = "https://si.tuyacloud.com/"\naccess_key_id = "{0}"\n'
    account += 'access_key_secret = {{ env = "{0}_SECRET" }}\nfleet = {{ products = "all" }}\n'
    mine = 'directory = "nights"  # mine\n' + account.format("eu") + account.format("us")
    (tmp_path / "eu.toml").write_text(mine)
    ended = auditor("init", "eu.toml", "--schedule", "cron", "--no-check")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("kept eu.toml\n")
    assert f"run {tmp_path}/eu.toml --resume --for 4h; }} >> {tmp_path}/nights/auditor-eu.log" in ended.stdout
    assert "cron does not set eu_SECRET and us_SECRET" in ended.stderr
    assert auditor("init", "eu.toml", "--schedule", "systemd", "--no-check").returncode == 0
    assert f"ReadWritePaths={tmp_path}/nights\n" in (tmp_path / "auditor-eu.service").read_text()
    names = {"eu.toml", "nights", "auditor-eu.service", "auditor-eu.timer"}
    for flags, sentence in (
        ((), "auditor-eu.timer: exists already; delete it"),  # units that exist may have been edited
        ((*TUYA, *REST), "exists already; give another path, or --force"),
        (("--directory", "audits2"), "exists already; give another path, or --force"),
    ):
        ended = auditor("init", "eu.toml", "--schedule", "systemd", *flags)
        assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stderr
    assert (tmp_path / "eu.toml").read_text() == mine
    assert {each.name for each in tmp_path.iterdir()} == names
    (tmp_path / "eu.toml").write_text(TWO_FAULTS)
    ended = auditor("init", "eu.toml", "--schedule", "cron", "--no-check")
    assert (ended.returncode, "concurrency: give a whole number" in ended.stderr) == (2, True), ended.stderr


def test_init_says_that_a_service_would_run_as_root(auditor: Auditor) -> None:
    for user in ("root", "auditor"):
        words = ("init", f"{user}.toml", *TUYA, *REST, "--no-rules", "--schedule", "systemd")
        ended = auditor(*words, env={"LOGNAME": user})
        assert ended.returncode == 0
        assert ("the service runs as root: set User= " in ended.stderr) == (user == "root")


def test_config_validate_prints_the_faults_of_all_files(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "nightly.toml").write_text(TWO_FAULTS)
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "a"\nminimun = "1"\n[[rule]]\nname = "b"\n')
    ended = auditor("config", "validate", "nightly.toml", "rules.toml")
    assert ended.returncode == 2
    assert ended.stdout.splitlines() == [
        *(f"FAIL {sentence}" for sentence in SENTENCES),
        'FAIL rules.toml: rule 1 ("a"): minimun is not a key of a rule; did you mean minimum?',
        'FAIL rules.toml: rule 2 ("b"): has no condition; give exactly one of ' + ", ".join(CONDITIONS),
    ]


@pytest.mark.parametrize("concurrency", [0, 1])
def test_config_validate_checks_the_rules_that_settings_name_whatever_else_is_wrong(
    auditor: Auditor, tmp_path: Path, concurrency: int
) -> None:
    settings = TWO_FAULTS.replace("= 0", f"= {concurrency}").replace("si.tuya", "https://si.tuya")
    (tmp_path / "nightly.toml").write_text(f'{settings}[policy]\nfile = "rules.toml"\n')
    wrong = [f"FAIL {SENTENCES[0]}"] if concurrency == 0 else []
    ended = auditor("config", "validate", "nightly.toml")
    missing = "FAIL nightly.toml: policy: file: rules.toml: cannot be read: No such file or directory"
    assert (ended.returncode, ended.stdout.splitlines()) == (2, [*wrong, missing])
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "a"\nminimum = 1\n')
    ended = auditor("config", "validate", "nightly.toml")
    fault = 'FAIL rules.toml: rule 1 ("a"): minimum: give a text, not a whole number'
    assert (ended.returncode, ended.stdout.splitlines()) == (2, [*(wrong or ["ok   nightly.toml: 1 account"]), fault])
    (tmp_path / "rules.toml").write_text(settings)  # settings are no rules
    assert "FAIL rules.toml: has no [[rule]]" in auditor("config", "validate", "nightly.toml").stdout


def test_config_show_prints_a_settings_file_with_every_setting_and_no_secret(auditor: Auditor, tmp_path: Path) -> None:
    auditor("init", *TUYA, *REST)
    with (tmp_path / "nightly.toml").open("a") as file:
        file.write('[[notify]]\nname = "ops"\nwebhook = { env = "HOOK" }\n')
    shown = auditor("config", "show", "nightly.toml", env={"HOOK": f"https://hooks.example/{SECRET}"}).stdout
    assert "concurrency = 64" in shown
    assert SECRET not in shown
    (tmp_path / "shown.toml").write_text(shown)
    assert auditor("config", "show", "shown.toml").stdout == shown
    assert json.loads(auditor("config", "show", "nightly.toml", "--format", "json").stdout) == tomllib.loads(shown)


def test_completion_is_installed_for_the_user(auditor: Auditor, tmp_path: Path) -> None:
    ended = auditor("completion", "bash", "--install", env={"HOME": str(tmp_path)})
    assert ended.returncode == 0, ended.stderr
    installed = Path(ended.stdout.strip())
    assert installed.is_relative_to(tmp_path)
    assert installed.read_text() == auditor("completion", "bash").stdout
    assert str(installed) in (tmp_path / ".bashrc").read_text()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize("startup", [None, "export EDITOR=vi", "autoload -Uz compinit\ncompinit\n"])
def test_zsh_completes_the_command_after_the_installation(
    auditor: Auditor, tmp_path: Path, startup: str | None
) -> None:
    if startup is not None:
        (tmp_path / ".zshrc").write_text(startup)
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    assert auditor("completion", "zsh", "--install", env=home).returncode == 0
    installed = (tmp_path / ".zshrc").read_text()
    assert auditor("completion", "zsh", "--install", env=home).returncode == 0
    assert (tmp_path / ".zshrc").read_text() == installed
    words = ["zsh", "-d", "-i", "-c", "print -r -- $_comps[auditor]"]
    ended = subprocess.run(words, env=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert ended.stdout == "_cyclopts_auditor\n", ended.stderr
