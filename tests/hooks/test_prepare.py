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

ALL = """
[policy]
file = "rules.toml"
[report]
html = "out/fleet.html"
excel = true
metrics = "/var/lib/node_exporter/textfile/auditor.prom"
[notify]
webhook = { file = "hook" }
secret = { env = "WEBHOOK_SECRET" }
when = "problems"
"""


def read(folder: Path, text: str) -> Settings:
    path = folder / "nightly.toml"
    path.write_text(ACCOUNT + text)
    return load_settings(path)


def test_all_keys_are_read_and_paths_are_relative_to_the_settings(tmp_path: Path) -> None:
    settings = read(tmp_path, ALL)
    assert settings.policy == PolicySettings(file=str(tmp_path / "rules.toml"))
    assert settings.report == ReportSettings(
        html=str(tmp_path / "out/fleet.html"), excel=True, metrics="/var/lib/node_exporter/textfile/auditor.prom"
    )
    assert settings.notify == NotifySettings(
        webhook=SecretSource(file=str(tmp_path / "hook")), secret=SecretSource(env="WEBHOOK_SECRET"), when="problems"
    )


def test_no_hook_is_configured_by_default(tmp_path: Path) -> None:
    settings = read(tmp_path, "")
    assert (settings.policy, settings.report, settings.notify) == (None, ReportSettings(), None)


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
        ("[notify]\nurl = 1", "notify: url is not a setting; the keys are webhook, secret, when"),
        ('[notify]\nwhen = "never"', 'notify: when: give "always" or "problems"'),
        ("[notify]\nwebhook = {}", 'notify: webhook: give one of { env = "NAME" }, { file = "/path" } or { command ='),
        ('[notify]\nwebhook = { envv = "A" }', "notify: webhook: envv is not a setting; did you mean env?"),
        ("[notify]\nwebhook = 5", 'notify: webhook: give "https://HOST/PATH"'),
        (f'[notify]\nwebhook = "ftp://{HIDDEN}"', "notify: webhook: is not an address such as https://HOST/PATH"),
        (f'[notify]\nwebhook = "https://h/{HIDDEN} x"', "notify: webhook: is not an address such as"),
        (f'[notify]\nwebhook = "https://[h/{HIDDEN}"', "notify: webhook: is not an address such as"),
        (f'[notify]\nsecret = "{HIDDEN}"', "notify: secret: keep it out of the settings: give { env ="),
        ('[notify]\nsecret = { env = "A", file = "b" }', "notify: secret: give one of { env"),
        ("[polices]\nfile = 1", "polices is not a setting; did you mean policy?"),
    ],
)
def test_invalid_values_are_one_sentence_that_names_the_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(sentence)) as caught:
        read(tmp_path, text if text.startswith("[") else f"\n{text}".replace("policy = 3", "[[policy]]"))
    assert str(caught.value).startswith(f"{tmp_path}/nightly.toml: ")
    assert len(caught.value.sentences) == 1
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
    assert stored["notify"]["webhook"] == {"file": str(tmp_path / "hook")}


def test_webhook_address_in_the_settings_is_not_stored(tmp_path: Path) -> None:
    settings = read(tmp_path, f'[notify]\nwebhook = "https://chat.example.com/{HIDDEN}"')
    assert settings.notify is not None
    assert str(settings.notify.webhook).endswith(HIDDEN)
    assert HIDDEN not in repr(settings)
    assert "webhook=***" in repr(settings)
    stored = settings_to_dict(settings)
    assert HIDDEN not in json.dumps(stored)
    assert stored["notify"] == {"when": "always"}
    assert parse_settings(stored).notify == NotifySettings()


def test_hooks_may_differ_when_a_run_is_resumed(tmp_path: Path) -> None:
    one, other = read(tmp_path, ALL), read(tmp_path, "[report]\nexcel = true")
    assert diff_settings(one, other) == diff_settings(one, other, ignore=RUN_INDEPENDENT_KEYS) == []
