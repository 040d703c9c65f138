"""[policy], [report] and [notify]: parsed, refused in one sentence, and stored in run.json without secrets."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from auditor.config.loader import load_settings, parse_settings
from auditor.config.serialization import RUN_INDEPENDENT_KEYS, diff_settings, settings_to_dict
from auditor.config.settings import NotifySettings, PolicySettings, ReportSettings, SecretSource, Settings
from auditor.errors import SettingsError

HIDDEN = "T0KEN-in-the-address"

ACCOUNT = """
[[account]]
name = "eu"
endpoint = "https://si.tuyacloud.com:8686/"
access_key_id = "LTAI"
access_key_secret = { env = "EU_SECRET" }
"""

OPS = '[[notify]]\nname = "ops"\n'
HOOK = 'webhook = { env = "A" }\n'

ALL = """
[policy]
file = "rules.toml"
[report]
html = "out/fleet.html"
excel = true
metrics = "/var/lib/node_exporter/textfile/auditor.prom"
[[notify]]
name = "ops"
webhook = { file = "hook" }
secret = { env = "WEBHOOK_SECRET" }
when = "problems"
[[notify]]
name = "chat"
address = { command = ["./address"] }
message = "{verdict}"
link = "https://reports.example.com/{run}/"
"""


def read(folder: Path, text: str) -> Settings:
    path = folder / "nightly.toml"
    path.write_text(ACCOUNT + text if text.startswith("[") or not text else text + ACCOUNT)
    return load_settings(path)


def test_all_keys_are_read_and_paths_are_relative_to_the_settings(tmp_path: Path) -> None:
    settings = read(tmp_path, ALL)
    assert settings.policy == PolicySettings(file=str(tmp_path / "rules.toml"))
    assert settings.report == ReportSettings(
        html=str(tmp_path / "out/fleet.html"), excel=True, metrics="/var/lib/node_exporter/textfile/auditor.prom"
    )
    assert settings.notify == (
        NotifySettings(
            name="ops",
            webhook=SecretSource(file=str(tmp_path / "hook")),
            secret=SecretSource(env="WEBHOOK_SECRET"),
            when="problems",
        ),
        NotifySettings(
            name="chat",
            address=SecretSource(command=(str(tmp_path / "address"),)),
            message="{verdict}",
            link="https://reports.example.com/{run}/",
        ),
    )


def test_no_hook_is_configured_by_default(tmp_path: Path) -> None:
    settings = read(tmp_path, "")
    assert (settings.policy, settings.report, settings.notify) == (None, ReportSettings(), ())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[policy]\nfiles = 1", "policy: files is not a setting; did you mean file?"),
        ("[policy]", "policy: has no file"),
        ('[policy]\nfile = ""', 'policy: file: is empty; give a file of rules such as "rules.toml"'),
        ("policy = 3", 'policy: give { file = "rules.toml" }'),
        ("[report]\nhmtl = true", "report: hmtl is not a setting; did you mean html?"),
        ("[report]\nhtml = 1", 'report: html: give true, or a path such as "fleet.html"'),
        ("[report]\nexcel = []", 'report: excel: give true, or a path such as "fleet.xlsx"'),
        ("[report]\nmetrics = true", "report: metrics: give a path such as"),
        ('[report]\nmetrics = ""', "report: metrics: is empty; give a path, or leave it out"),
        (
            '[notify]\nwebhook = { env = "A" }',
            "notify: this table is now called [[notify]]; give it a name, and an address",
        ),
        ("notify = 3", "notify: give it a name, and an address or a webhook; there may be several of these tables"),
        (
            f"{OPS}url = 1",
            "notify 1: url is not a setting; the keys are name, address, webhook, secret, when, message, link",
        ),
        (f'{OPS}when = "never"', 'notify 1: when: give "always", "problems" or "changes"'),
        ("[[notify]]\nwebhook = {}", "notify 1: has no name"),
        ('[[notify]]\nname = "a b"', "notify: name: use up to 64 letters, digits, '.', '-' and '_'"),
        (OPS, 'notify "ops": give one of address, for a chat or a mailbox, and webhook, for a program'),
        (
            f"{OPS}{HOOK}address = {{ env = 'A' }}",
            'notify "ops": give one of address, for a chat or a mailbox, and webhook',
        ),
        (f"{OPS}{HOOK}{OPS}{HOOK}", 'notify "ops": two tables have this name; names must be unique'),
        (
            f"{OPS}address = {{ env = 'A' }}\nsecret = {{ env = 'B' }}",
            'notify "ops": secret: only a webhook is signed with it; leave it out',
        ),
        (
            f"{OPS}webhook = {{}}",
            'notify "ops": webhook: give one of { env = "NAME" }, { file = "/path" } or { command =',
        ),
        (f'{OPS}webhook = {{ envv = "A" }}', "notify 1: webhook: envv is not a setting; did you mean env?"),
        (f"{OPS}webhook = 5", "notify 1: webhook: keep it out of the settings: give { env ="),
        (f'{OPS}webhook = "https://h/{HIDDEN}"', "notify 1: webhook: keep it out of the settings: give { env ="),
        (f'{OPS}address = "slack://{HIDDEN}"', "notify 1: address: keep it out of the settings: give { env ="),
        (f'{OPS}secret = "{HIDDEN}"', "notify 1: secret: keep it out of the settings: give { env ="),
        (f'{OPS}{HOOK}secret = {{ env = "A", file = "b" }}', 'notify "ops": secret: give one of { env'),
        (f'{OPS}{HOOK}message = "{{verdict"', 'notify "ops": message: a brace is not closed; write {{ for a brace'),
        (
            f'{OPS}{HOOK}message = "{{name.x}}"',
            'notify "ops": message: {name.x} is not a field; the fields are {verdict},',
        ),
        (
            f'{OPS}{HOOK}message = "{{name!r}}"',
            'notify "ops": message: {name} is not a field; the fields are {verdict},',
        ),
        (
            f'{OPS}{HOOK}link = "https://h/{{date}}"',
            'notify "ops": link: {date} is not a field; the fields are {name}, {run}',
        ),
        (f'{OPS}{HOOK}link = "ftp://h/"', 'notify "ops": link: is not an address such as https://HOST/PATH'),
        (
            f'{OPS}{HOOK}link = "https://u:{HIDDEN}@h/"',
            'notify "ops": link: is not an address such as https://HOST/PATH',
        ),
        (f'ping = "https://hc/{HIDDEN}"', "ping: keep it out of the settings: give { env ="),
        ("ping = {}", 'ping: give one of { env = "NAME" }'),
        ("[polices]\nfile = 1", "polices is not a setting; did you mean policy?"),
    ],
)
def test_invalid_values_are_one_sentence_that_names_the_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(sentence)) as caught:
        read(tmp_path, text)
    assert all(each.startswith(f"{tmp_path}/nightly.toml: ") for each in caught.value.sentences)
    assert "\n" not in "".join(caught.value.sentences)
    assert HIDDEN not in str(caught.value)


def test_stored_settings_can_be_parsed_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(tmp_path, ALL)
    stored: dict[str, Any] = json.loads(json.dumps(settings_to_dict(settings)))
    monkeypatch.chdir("/")
    parsed = parse_settings(stored)
    assert (parsed.policy, parsed.report, parsed.notify) == (settings.policy, settings.report, settings.notify)


def test_relative_paths_are_stored_as_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nightly.toml").write_text(ACCOUNT + ALL)
    stored = settings_to_dict(load_settings("nightly.toml"))
    assert stored["policy"] == {"file": str(tmp_path / "rules.toml")}
    assert stored["report"]["html"] == str(tmp_path / "out/fleet.html")
    assert stored["report"]["excel"] is True
    assert [table.get("webhook") for table in stored["notify"]] == [{"file": str(tmp_path / "hook")}, None]


def test_hooks_may_differ_when_a_run_is_resumed(tmp_path: Path) -> None:
    one, other = read(tmp_path, ALL), read(tmp_path, "[report]\nexcel = true")
    assert diff_settings(one, other) == diff_settings(one, other, ignore=RUN_INDEPENDENT_KEYS) == []
