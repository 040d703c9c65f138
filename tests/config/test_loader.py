"""Settings become immutable values, or one sentence that names the key. No error quotes a secret."""

import copy
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.config.loader import (
    RENAMED_ACCOUNT_KEYS,
    RENAMED_FLEET_KEYS,
    RENAMED_KEYS,
    load_settings,
    parse_settings,
)
from auditor.config.serialization import settings_to_dict
from auditor.config.settings import (
    Account,
    FleetSource,
    RolloutSettings,
    SecretSource,
    Settings,
    SharedQuotaSettings,
    count_allowed,
)
from auditor.config.validation import stored_rollouts
from auditor.errors import SettingsError, UsageError
from auditor.models import Secret

HIDDEN = "s3cr3t-of-the-account"

TUYA = """
name = "nightly"
directory = "runs"
concurrency = 32
page_size = 100
max_attempts = 5
timeout = 20
connect_timeout = 5.5
give_up_after = 30
max_failed = "0.5%"

[[account]]
name = "eu"
endpoint = "https://si-d1.tuyacloud.com:8686/"
dialect = "tuya"
access_key_id = { env = "EU_ID" }
access_key_secret = { file = "keys/eu" }
calls_per_second = 10
quota_share = 0.8
ca_file = "ca.pem"
fleet = { file = "fleets/eu.csv" }

[[account]]
name = "us"
endpoint = "http://127.0.0.1:8080"
access_key_id = "LTAI"
access_key_secret = { env = "US_SECRET" }
calls_per_second = "unlimited"
fleet = { file = "-" }
"""

ALIBABA = """
[[account]]
name = "cn"
endpoint = "https://iot.cn-shanghai.aliyuncs.com/"
dialect = "alibaba"
region_id = "cn-shanghai"
instance_id = "iot-060a"
access_key_id = { file = "/run/id" }
access_key_secret = { file = "/run/secret" }
"""


def account(**changed: Any) -> dict[str, Any]:
    table = {
        "name": "eu",
        "endpoint": "https://si.tuyacloud.com:8686/",
        "access_key_id": "LTAI",
        "access_key_secret": {"env": "EU_SECRET"},
    }
    return {key: value for key, value in {**table, **changed}.items() if value is not None}


def refused(table: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_settings(table, where="nightly.toml")
    (text,) = caught.value.sentences
    assert str(caught.value) == text
    assert text.startswith("nightly.toml: ")
    assert "\n" not in text
    return text.removeprefix("nightly.toml: ")


def test_a_full_tuya_file_is_read_with_paths_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    path = tmp_path / "nightly.toml"
    path.write_text(TUYA)
    read = load_settings(path)
    assert read == Settings(
        name="nightly",
        directory=str(tmp_path / "runs"),
        concurrency=32,
        page_size=100,
        max_attempts=5,
        timeout=20.0,
        connect_timeout=5.5,
        give_up_after=30.0,
        max_failed="0.5%",
        account=(
            Account(
                name="eu",
                endpoint="https://si-d1.tuyacloud.com:8686/",
                access_key_id=SecretSource(env="EU_ID"),
                access_key_secret=SecretSource(file=str(tmp_path / "keys/eu")),
                quota_share=0.8,
                ca_file=str(tmp_path / "ca.pem"),
                fleet=FleetSource(file=str(tmp_path / "fleets/eu.csv")),
            ),
            Account(
                name="us",
                endpoint="http://127.0.0.1:8080",
                access_key_id="LTAI",
                access_key_secret=SecretSource(env="US_SECRET"),
                calls_per_second="unlimited",
                fleet=FleetSource(file="-"),
            ),
        ),
    )
    assert [each.rate for each in read.account] == [8.0, None]


def test_a_full_alibaba_file_is_read_and_absolute_paths_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(ALIBABA)
    (read,) = load_settings(str(path)).account
    assert (read.dialect, read.region_id, read.instance_id) == ("alibaba", "cn-shanghai", "iot-060a")
    assert read.access_key_id == SecretSource(file="/run/id")
    assert read.access_key_secret == SecretSource(file="/run/secret")


def test_defaults_are_the_documented_ones() -> None:
    read = parse_settings({"account": [account()]})
    assert (read.name, read.directory, read.concurrency, read.page_size, read.max_attempts) == (
        "audit",
        "audits",
        64,
        200,
        8,
    )
    assert (read.timeout, read.connect_timeout, read.give_up_after, read.max_failed) == (30.0, 10.0, 60.0, 0)
    assert (read.released, read.max_job_age) == (False, "30d")
    (only,) = read.account
    assert (only.dialect, only.calls_per_second, only.quota_share, only.rate, only.fleet) == (
        "tuya",
        10.0,
        1.0,
        10.0,
        None,
    )


def test_settings_are_frozen() -> None:
    read = parse_settings({"account": [account()]})
    with pytest.raises(AttributeError):
        read.concurrency = 3  # type: ignore[misc]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ALIBABA.encode())
    assert load_settings(path).account[0].name == "cn"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = 'a'\nconcurrency = = 3\n", "at line 2"),
        (b"name = '\xff'\n", "is not TOML"),
        (b"\rname = 'a'\n", "is not TOML"),
        (b"concurrency = " + b"9" * 5000, "is not TOML"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"", "has no [[account]]"),
    ],
)
def test_an_invalid_toml_file_is_refused_with_its_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"bad\.toml: .*{re.escape(says)}"):
        load_settings(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.toml", "No such file"),
        (".", "directory"),
        ("pipe", "is a pipe, not a regular file; write it to a file first"),
        ("/dev/zero", "is a device"),
        ("large.toml", "has more than 1,048,576 bytes"),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path, name: str, says: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(SettingsError, match=f"cannot be read: .*{says}"):
        load_settings(tmp_path / name)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"concurrencey": 3, "account": [account()]}, "concurrencey is not a setting; did you mean concurrency?"),
        ({"zzz": 3, "account": [account()]}, "zzz is not a setting; the keys are since, change_detection, max_age"),
        ({"9" * 20_000: 3, "account": [account()]}, f"{'9' * 80}… is not a setting; the keys are since"),
        (
            {"account": [account(calls_per_secnd=3)]},
            'account 1 ("eu"): calls_per_secnd is not a setting; did you mean calls_per_second?',
        ),
        (
            {"account": [account(), account(name="b", access_key_id="b", regionid="x")]},
            'account 2 ("b"): regionid is not a setting',
        ),
        ({"account": [account(access_key_id={"evn": "x"})]}, "access_key_id: evn is not a setting; did you mean env?"),
        ({"account": [account(access_key_secret={"fil": "x"})]}, "access_key_secret: fil is not a setting"),
        ({"account": [account(fleet={"fyle": "x"})]}, "fleet: fyle is not a setting; did you mean file?"),
    ],
)
def test_an_unknown_setting_is_refused_with_its_path_and_the_nearest_name(table: dict[str, Any], says: str) -> None:
    assert says in refused(table)


@pytest.mark.parametrize(
    ("table", "at"),
    [
        ({"directory": "runs\0"}, "directory"),
        ({"since": "\0last"}, "since"),
        ({"quota_sharing": {"directory": "/tmp/\0"}}, "quota_sharing: directory"),
        ({"policy": {"file": "rules\0.toml"}}, "policy: file"),
        ({"report": {"html": "\0"}}, "report: html"),
        ({"account": [account(ca_file="a\0b")]}, "account: ca_file"),
        ({"account": [account(fleet={"file": "fleet\0.csv"})]}, "account: fleet: file"),
        (
            {"account": [account(access_key_secret={"command": ["pass", "s3cr3t\0"]})]},
            "account: access_key_secret: command",
        ),
    ],
)
def test_the_character_nul_is_refused_in_every_text(table: dict[str, Any], at: str) -> None:
    assert refused({"account": [account()]} | table) == f"{at}: has the character NUL; remove it"


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_renamed_key_is_refused_with_its_new_name(old: str, new: str) -> None:
    assert refused({old: 1, "account": [account()]}) == f"{old}: this key is now called {new}"
    assert new in Settings.__struct_fields__


@pytest.mark.parametrize(("old", "new"), RENAMED_ACCOUNT_KEYS.items())
def test_a_renamed_key_of_an_account_is_refused_with_its_new_name(old: str, new: str) -> None:
    assert refused({"account": [account(**{old: 1})]}) == f'account 1 ("eu"): {old}: this key is now called {new}'
    assert new in Account.__struct_fields__


@pytest.mark.parametrize(("old", "new"), RENAMED_FLEET_KEYS.items())
def test_a_renamed_key_of_a_fleet_is_refused_with_its_new_name(old: str, new: str) -> None:
    text = refused({"account": [account(fleet={"products": "all", old: True})]})
    assert text == f'account 1 ("eu"): fleet: {old}: this key is now called {new}'
    assert new in FleetSource.__struct_fields__


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"quota_sharing": "alone"}, 'quota_sharing: the value "alone" is now called "none"'),
    ],
)
def test_a_renamed_value_is_refused_with_its_new_name(table: dict[str, Any], says: str) -> None:
    assert refused({**table, "account": [account()]}) == says


@pytest.mark.parametrize("key", ["webhook", "secret"])
def test_an_empty_command_of_a_webhook_is_refused(key: str) -> None:
    sentence = f'notify "ops": {key}: command: is empty; give a program and its arguments'
    table = {"name": "ops", "webhook": {"env": "HOOK"}, key: {"command": []}}
    assert refused({"notify": [table], "account": [account()]}) == sentence


def test_a_renamed_key_in_a_file_is_refused_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(TUYA.replace("calls_per_second = 10", "per_second = 10"))
    with pytest.raises(
        SettingsError, match=r'old\.toml: account 1 \("eu"\): per_second: this key is now called calls_'
    ):
        load_settings(path)


@pytest.mark.parametrize("key", ["concurrency", "page_size", "max_attempts"])
@pytest.mark.parametrize("value", [0, -1, 10_001, 10**400, "8", True, 1.5])
def test_a_count_out_of_range_or_of_another_type_is_refused(key: str, value: object) -> None:
    assert refused({key: value, "account": [account()]}).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "table", [{"released": "yes"}, {"max_job_age": "soon"}, {"max_job_age": 30}, {"max_job_age": "0d"}]
)
def test_invalid_settings_of_releases_are_refused(table: dict[str, Any]) -> None:
    (key,) = table
    assert refused({**table, "account": [account()]}).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"done": "95"}, "done: '95' is not a percentage above 0%; give one such as \"95%\""),
        ({"moving": "0%"}, "moving: '0%' is not a percentage"),
        ({"stalled_after": "3"}, "stalled_after: '3' has no unit"),
        ({"started": "96%"}, "started: is more than done"),
        ({"answered": 90}, 'answered: give a percentage such as "90%"'),
        ({"stuck": "1%"}, "stuck is not a setting"),
    ],
)
def test_invalid_thresholds_of_rollouts_are_refused(table: dict[str, Any], words: str) -> None:
    assert words in refused({"rollouts": table, "account": [account()]})


def test_thresholds_of_rollouts_are_stored_with_a_run() -> None:
    table = {"rollouts": {"done": "99%", "stalled_after": "12h"}, "account": [account()]}
    read = parse_settings(table)
    assert (read.rollouts.done, read.rollouts.moving) == ("99%", "0.8%")
    stored = settings_to_dict(read)
    assert stored_rollouts(stored) == read.rollouts == parse_settings(stored).rollouts
    for odd in (None, {}, {"rollouts": 1}, {"rollouts": {"done": "x"}}, {"rollouts": {"odd": "1%"}}):
        assert stored_rollouts(odd) == RolloutSettings()


@pytest.mark.parametrize("key", ["timeout", "connect_timeout", "give_up_after"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 86_401, 10**400, "8", True, None])
def test_invalid_seconds_are_refused(key: str, value: object) -> None:
    assert refused({key: value, "account": [account()]}).startswith(f"{key}: ")


@pytest.mark.parametrize("value", ["", "../a", "a/b", ".hidden", "a b", "x" * 65, "ä", "a\n", 5])
def test_a_name_that_is_not_a_folder_name_is_refused(value: object) -> None:
    assert refused({"name": value, "account": [account()]}).startswith("name: ")


@pytest.mark.parametrize("value", [-1, -(10**400), 0.1, True, "", "5", "-1%", "101%", "0,1%", "nan%", "0.1 %", []])
def test_max_failed_that_is_neither_number_nor_percentage_is_refused(value: object) -> None:
    assert refused({"max_failed": value, "account": [account()]}).startswith("max_failed: ")


@pytest.mark.parametrize(
    ("allowed", "devices", "failures"),
    [(0, 10, 0), (7, 5, 7), ("0%", 9, 0), ("0.1%", 999, 0), ("0.1%", 1000, 1), ("100%", 12, 12), ("0.57%", 10_000, 57)],
)
def test_max_failed_becomes_a_number_of_devices_rounded_down(allowed: int | str, devices: int, failures: int) -> None:
    assert (
        count_allowed(parse_settings({"max_failed": allowed, "account": [account()]}).max_failed, devices) == failures
    )


def test_paths_of_quota_sharing_are_relative_to_the_settings_folder(tmp_path: Path) -> None:
    table = {
        "account": [account()],
        "quota_sharing": {"redis": "rediss://cache.example:6380/2", "password": {"file": "key"}},
    }
    sharing = parse_settings(table, folder=tmp_path).quota_sharing
    assert sharing == SharedQuotaSettings(
        redis="rediss://cache.example:6380/2", password=SecretSource(file=str(tmp_path / "key"))
    )
    (tmp_path / "shared").mkdir()
    table = {"account": [account()], "quota_sharing": {"directory": "shared"}}
    assert parse_settings(table, folder=tmp_path).quota_sharing == SharedQuotaSettings(
        directory=str(tmp_path / "shared")
    )


@pytest.mark.parametrize(
    "address", ["redis://cache", "redis://10.0.0.1:6379", "redis://[::1]:6379/0", "rediss://a.b/15"]
)
def test_a_valid_redis_address_is_accepted(address: str) -> None:
    assert parse_settings(
        {"account": [account()], "quota_sharing": {"redis": address}}
    ).quota_sharing == SharedQuotaSettings(redis=address)


@pytest.mark.parametrize(
    ("sharing", "says"),
    [
        ("all", "give"),
        ({}, "give one of directory and redis"),
        ({"directory": "/", "redis": "redis://cache"}, "give one of directory and redis"),
        ({"directory": "/no/such/place"}, "is not a directory"),
        ({"directory": "/", "password": {"env": "NAME"}}, "leave it out"),
        ({"redis": "cache:6379"}, "is not an address"),
        ({"redis": "http://cache:6379"}, "is not an address"),
        ({"redis": "redis://cache:port"}, "is not an address"),
        ({"redis": "redis://cache:99999/0"}, "is not an address"),
        ({"redis": "redis://[::1"}, "is not an address"),
        ({"redis": "redis://cache/0?ssl_cert_reqs=none"}, "is not an address"),
        ({"redis": "redis://cache/zero"}, "is not an address"),
        ({"redis": "redis:///0"}, "is not an address"),
        ({"redis": "redis://cache", "password": {}}, "password: give one of"),
        ({"redis": "redis://cache", "password": {"env": "NAME", "file": "key"}}, "password: give one of"),
        ({"redis": "redis://cache", "password": {"nev": "NAME"}}, "did you mean env?"),
        ({"reddis": "redis://cache"}, "did you mean redis?"),
        ({"directory": "/", "username": "auditor"}, "username: only redis has one"),
        ({"directory": "/", "ca_file": "ca.pem"}, "ca_file: only redis has one"),
        ({"redis": "redis://cache", "username": "auditor"}, "username: needs a password"),
        ({"redis": "redis://cache", "ca_file": "ca.pem"}, "ca_file: is for TLS only"),
    ],
)
def test_invalid_quota_sharing_is_refused(sharing: object, says: str) -> None:
    text = refused({"account": [account()], "quota_sharing": sharing})
    assert "quota_sharing" in text
    assert says in text


@pytest.mark.parametrize(
    "sharing",
    [
        {"redis": f"redis://:{HIDDEN}@cache:6379/0"},
        {"redis": f"redis://{HIDDEN}@cache:port"},
        {"redis": "redis://cache", "password": HIDDEN},
    ],
)
def test_a_redis_password_in_the_settings_is_refused_and_not_quoted(sharing: object) -> None:
    text = refused({"account": [account()], "quota_sharing": sharing})
    assert HIDDEN not in text
    assert "{ env = " in text


@pytest.mark.parametrize("accounts", [None, [], {}, "eu", 3])
def test_settings_without_an_account_are_refused(accounts: object) -> None:
    assert refused({"account": accounts}).startswith("has no [[account]]")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": 5}, "name"),
        ({"dialect": "aws"}, "dialect"),
        ({"calls_per_second": 0}, "calls_per_second"),
        ({"calls_per_second": -1}, "calls_per_second"),
        ({"calls_per_second": float("nan")}, "calls_per_second"),
        ({"calls_per_second": float("inf")}, "calls_per_second"),
        ({"calls_per_second": "fast"}, "calls_per_second"),
        ({"quota_share": 0}, "quota_share"),
        ({"quota_share": 1.01}, "quota_share"),
        ({"quota_share": float("nan")}, "quota_share"),
        ({"access_key_id": ""}, "access_key_id"),
        ({"access_key_id": {}}, "access_key_id"),
        ({"access_key_id": 7}, "access_key_id"),
        ({"access_key_secret": {}}, "access_key_secret"),
        ({"access_key_secret": {"env": "A", "file": "b"}}, "access_key_secret"),
        ({"access_key_secret": {"env": "A", "command": ["b"]}}, "access_key_secret"),
        ({"access_key_secret": {"command": []}}, "access_key_secret: command"),
        ({"access_key_secret": {"command": [""]}}, "access_key_secret: command"),
        ({"access_key_secret": {"command": "pass show iot/eu"}}, "access_key_secret: command"),
        ({"access_key_id": {"command": ["pass", 1]}}, "access_key_id: command 2"),
        ({"access_key_secret": {"env": 3}}, "access_key_secret: env"),
        ({"dialect": "alibaba"}, "region_id"),
        ({"dialect": "alibaba", "region_id": ""}, "region_id"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file"),
        ({"fleet": "eu.csv"}, "fleet"),
    ],
)
def test_a_wrong_value_of_an_account_is_refused_with_its_key(changed: dict[str, Any], key: str) -> None:
    assert re.match(rf"account 1( \(.*\))?: {re.escape(key)}: .", refused({"account": [account(**changed)]}))


@pytest.mark.parametrize("key", ["name", "endpoint", "access_key_id", "access_key_secret"])
def test_a_missing_key_of_an_account_is_named(key: str) -> None:
    assert refused({"account": [account(**{key: None})]}).endswith(f": has no {key}")


def test_accounts_that_share_a_quota_are_refused() -> None:
    twice = [account(name="a"), account(name="b", endpoint=account()["endpoint"].rstrip("/"))]
    with pytest.raises(SettingsError, match=r'account 2 \("b"\): has the same endpoint and key as account "a"'):
        parse_settings({"account": twice})
    parse_settings({"account": [each | {"calls_per_second": "unlimited"} for each in twice]})
    parse_settings({"account": [twice[0], twice[1] | {"access_key_id": "another"}]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://si.tuyacloud.com/", "https://SI.tuyacloud.com:443"),
        ("http://127.0.0.1/", "http://127.0.0.1:80"),
        ("https://[::1]:8686", "https://[::1]:8686/"),
    ],
)
def test_another_spelling_of_an_endpoint_is_the_same_endpoint(one: str, other: str) -> None:
    twice = [account(name="a", endpoint=one), account(name="b", endpoint=other)]
    assert refused({"account": twice}).startswith('account 2 ("b"): has the same endpoint and key as account "a"')
    twice[1]["endpoint"] = "https://elsewhere.example/"
    parse_settings({"account": twice})


def test_accounts_whose_key_is_stored_in_the_same_place_share_a_quota() -> None:
    for place in ({"env": "ID"}, {"file": "id"}, {"command": ["pass", "show", "id"]}):
        twice = [account(name=name, access_key_id=place) for name in ("a", "b")]
        assert 'has the same endpoint and key as account "a"' in refused({"account": twice})


def test_restricted_accounts_keep_the_order_of_the_settings() -> None:
    read = parse_settings({"account": [account(name=name, access_key_id=name) for name in ("eu", "us", "cn")]})
    assert [each.name for each in read.restrict_to_accounts(["cn", "eu", "cn"]).account] == ["eu", "cn"]
    assert read.restrict_to_accounts(["eu", "us", "cn"]) == read


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["us", "europe"], 'account "europe": is not in the settings, which have "eu-west", "us"; give one of these'),
        (["eu_west"], 'account "eu_west": is not in the settings, which have "eu-west", "us"; did you mean "eu-west"?'),
        ([], 'no account was named; the settings have "eu-west", "us"'),
    ],
)
def test_an_unknown_account_is_refused_with_the_configured_ones(names: list[str], says: str) -> None:
    read = parse_settings({"account": [account(name=name, access_key_id=name) for name in ("eu-west", "us")]})
    with pytest.raises(UsageError) as caught:
        read.restrict_to_accounts(names)
    assert str(caught.value) == says


def test_accounts_with_the_same_name_are_refused() -> None:
    accounts = [account(), account(name="us", access_key_id="us"), account(access_key_id="other")]
    text = refused({"account": accounts})
    assert text == 'two accounts are named "eu"; names must be unique'


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://h",
        "https://h/",
        "http://127.0.0.1:80/",
        "https://[::1]:8686/",
        "HTTPS://H:1/",
        "https://a-b.example:8686",
    ],
)
def test_a_valid_endpoint_is_accepted(endpoint: str) -> None:
    assert parse_settings({"account": [account(endpoint=endpoint)]}).account[0].endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "h:8686", "//h/", "ftp://h/", "https://", "https://:8686/", "https://h:0/", "https://h:70000/", "https://h:x/",
        "https://[::1/", "https://h/path", "https://h/?a=b", "https://h/?", "https://h/#a", "https://@h/", "https://h o/",
        "https://h\n/", "https://ü.example/",
    ],
)  # fmt: skip
def test_an_invalid_endpoint_is_refused(endpoint: str) -> None:
    assert refused({"account": [account(endpoint=endpoint)]}).startswith('account 1 ("eu"): endpoint: ')


@pytest.mark.parametrize("form", ["https://u:{}@h/", "ftp://u:{}@h/", "https://u:{}@h:x/", "https://{}@[h/", "{}"])
def test_a_password_in_an_endpoint_is_refused_and_not_quoted(form: str) -> None:
    text = refused({"account": [account(endpoint=form.format(HIDDEN))]})
    assert "endpoint: " in text
    assert HIDDEN not in text


@pytest.mark.parametrize(
    "wrong",
    [
        HIDDEN,
        [HIDDEN],
        {"value": HIDDEN},
        {"env": [HIDDEN]},
        {"file": {HIDDEN: 1}},
        {"env": "A", "x": HIDDEN},
        {"command": HIDDEN},
        {"command": {"x": HIDDEN}},
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_quoted(wrong: object) -> None:
    text = refused({"account": [account(access_key_secret=wrong)]})
    assert "access_key_secret" in text
    assert HIDDEN not in text


@pytest.mark.parametrize(
    "table", [{"secret": HIDDEN}, {"access_key_secret": HIDDEN}, {"access_key_secret": {"env": HIDDEN}}]
)
def test_a_secret_under_a_wrong_key_is_not_quoted(table: dict[str, Any]) -> None:
    assert HIDDEN not in refused({**table, "account": [account()]})
    if "secret" in table:
        assert HIDDEN not in refused({"account": [account(**table)]})


@pytest.mark.parametrize(
    "shown",
    [repr, str, lambda each: f"{each}", lambda each: f"{each!r:>60}", "{0} {0!r}".format, lambda each: repr([each])],
)  # fmt: skip
def test_a_secret_prints_as_stars(shown: Callable[[object], str]) -> None:
    assert "***" in shown(Secret(HIDDEN))
    assert HIDDEN not in shown(Secret(HIDDEN))


@pytest.mark.parametrize("taken", [pickle.dumps, copy.copy, copy.deepcopy, vars, msgspec.json.encode, iter, len])
def test_a_secret_cannot_be_copied_pickled_or_iterated(taken: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as caught:
        taken(Secret(HIDDEN))
    assert HIDDEN not in str(caught.value)


def test_settings_never_contain_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EU_SECRET", HIDDEN)
    read = parse_settings({"account": [account()]})
    assert HIDDEN not in repr(read)
    assert HIDDEN.encode() not in msgspec.json.encode(read)


_leaf = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["eu", "https://h/", "tuya", "alibaba", "unlimited", "1%", "-", 10**400])
)  # fmt: skip
_KEYS = [
    "name", "endpoint", "access_key_id", "access_key_secret", "dialect", "region_id", "calls_per_second", "quota_share", "ca_file",
    "fleet", "file", "env", "max_failed", "concurrency", "timeout", "directory", "account",
]  # fmt: skip
_value = st.recursive(
    _leaf,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
_table = st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), _value, max_size=3)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_table, st.lists(_table.map(lambda changed: {**account(), **changed}), max_size=2))
def test_any_table_becomes_settings_or_a_settings_error(table: dict[str, Any], accounts: list[dict[str, Any]]) -> None:
    try:
        read = parse_settings({**table, "account": accounts} if accounts else table)
    except SettingsError as error:
        assert str(error)  # noqa: PT017  either outcome is right
    else:
        assert count_allowed(read.max_failed, 100) >= 0


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ("15s", 'metrics: give { interval = "15s", modules = ["mcu"], max_series = 1000 }'),
        ({"interval": "15"}, "metrics: interval: '15' has no unit; add one, such as 15h or 15m"),
        ({"interval": "301s"}, 'metrics: interval: give at most "5m": the alert AuditorRunDied waits ten minutes'),
        ({"modules": [""]}, "metrics: modules: a pattern is empty; give names of modules, such as mcu or ble*"),
        ({"max_series": 9}, "metrics: max_series: give a whole number from 10 to 100,000"),
        ({"max_series": 100_001}, "metrics: max_series: give a whole number from 10 to 100,000"),
        (
            {"pushgateway": {"address": "gateway:9091"}},
            "metrics: pushgateway: address: is not the address of a server; ",
        ),
        ({"pushgateway": {"address": "http://u:S3CRET@g"}}, "metrics: pushgateway: address: is not the address of a "),
        ({"pushgateway": {"address": "http://g?k=S3CRET"}}, "metrics: pushgateway: address: is not the address of a "),
        (
            {"pushgateway": {"address": "http://g", "job": ""}},
            "metrics: pushgateway: job: is empty; give a name such as ",
        ),
        ({"pushgateway": {"address": "http://g", "username": "a"}}, "give both of username and password, or none"),
        (
            {"pushgateway": {"address": "http://g", "username": "a", "password": "S3CRET"}},
            "keep it out of the settings: give { env",
        ),
        (
            {"pushgateway": {"address": "http://g", "username": "a:b", "password": {"env": "X"}}},
            "metrics: pushgateway: username: give letters, digits and punctuation, but no colon",
        ),
        (
            {"pushgateway": {"address": "http://g", "username": "a", "password": {}}},
            "metrics: pushgateway: password: give one of { env",
        ),
    ],
)
def test_invalid_metrics_are_refused_without_a_secret(metrics: object, says: str) -> None:
    sentence = refused({"account": [account()], "metrics": metrics})
    assert says in sentence
    assert "S3CRET" not in sentence


def test_valid_metrics_are_accepted_and_their_files_are_beside_the_settings(tmp_path: Path) -> None:
    gateway = {"address": "https://gateway:9091/x", "username": "a", "password": {"file": "secret"}}
    table = {"interval": "1m", "modules": ["mcu", "ble*"], "max_series": 100_000, "pushgateway": gateway}
    found = parse_settings({"account": [account()], "metrics": table}, folder=tmp_path).metrics
    assert (found.interval, found.modules, found.max_parts) == ("1m", ("mcu", "ble*"), 10_000)
    assert found.pushgateway is not None
    assert found.pushgateway.password == SecretSource(file=str(tmp_path / "secret"))
    for interval in ("off", "5m"):
        assert parse_settings({"account": [account()], "metrics": {"interval": interval}}).metrics.interval == interval
