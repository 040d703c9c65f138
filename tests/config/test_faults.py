"""All faults of a settings file are reported together: each of them once, and nothing that is not one."""

import re
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.config.loader import parse_settings
from auditor.config.settings import Account, Settings
from auditor.config.toml_tables import MAX_FAULTS
from auditor.errors import SettingsError
from auditor.policy.loader import RuleTable, parse_policy
from auditor.policy.model import RuleException

TOP: dict[str, tuple[Any, str]] = {
    "concurrency": (0, "concurrency: give a whole number from 1 to 10,000"),
    "page_size": ("many", "page_size: give a whole number, not a text"),
    "timeout": (-1, "timeout: give a number of seconds above 0"),
    "retry_budget": (7, "retry_budget: give a fraction"),
    "time_zone": ("Mars/Base", "time_zone: "),
    "max_failed": ("1", "max_failed: give a number of devices"),
    "name": ("a b", "name: use up to 64 letters"),
    "consurrency": (5, "consurrency is not a setting; did you mean concurrency?"),
    "since": ("", "since: is empty"),
    "max_age": ("soon", "max_age: "),
    "recheck": ("1", "recheck: '1' is not a percentage"),
    "modules": (["wifi"], 'modules 1: give ["default"]'),
    "rollouts": ({"done": 5, "started": "99%", "moving": "0%"}, "rollouts: done: give a percentage"),
    "policy": ({"fyle": "rules.toml"}, "policy: fyle is not a setting; did you mean file?"),
    "report": ({"html": "", "group_by": ["a", 5]}, "report: html: is empty"),
    "notify": ([{"name": "ops", "webhook": "ftp://x", "when": "never"}], "notify 1: webhook: keep it out"),
    "publish": (
        [{"name": "lake", "type": "files", "timeout": "x", "options": {"to": 1.5}}],
        "publish 1: options: to: give options",
    ),
    "cluster": ({"storage": 5, "checkpoint": 0}, "cluster: checkpoint: give a number of seconds"),
    "quota_sharing": ({"redis": 5, "ca_file": "ca.pem"}, "quota_sharing: redis: give a text, not a whole number"),
    "at_once": (5, "at_once: this key is now called concurrency"),
}
"""A fault of each key, and words of its sentence. None of them makes another one."""

OF_ACCOUNT: dict[str, tuple[Any, str]] = {
    "endpoint": ("si.tuyacloud.com", "endpoint: is not an address"),
    "access_key_id": (5, "access_key_id: give a text or a table, not a whole number"),
    "access_key_secret": ("written out", "access_key_secret: keep the secret out of the settings"),
    "dialect": ("ali", 'dialect: give "tuya" or "alibaba"'),
    "calls_per_second": (0, "calls_per_second: give calls a second"),
    "quota_share": (2, "quota_share: give a fraction"),
    "ca_file": ("none.pem", "none.pem is not a file"),
    "proxy": ("https://proxy", "proxy: is not the address of a proxy"),
    "fleet": ({"file": 5}, "fleet: file: give a text, not a whole number"),
    "quotas": ({"QueryDevice": 0}, "quotas: QueryDevice: give calls a second"),
    "site": ("a b", "site: use up to 64 letters"),
    "lanes": (0, "lanes: give a whole number"),
    "regionid": ("x", "regionid is not a setting; did you mean region_id?"),
    "per_second": (5, "per_second: this key is now called calls_per_second"),
}


def account(number: int, faults: dict[str, Any]) -> dict[str, Any]:
    table = {"name": f"a{number}", "endpoint": "https://si.tuyacloud.com/", "access_key_id": f"id-{number}"}
    return {**table, "access_key_secret": {"env": "SECRET"}, "fleet": {"file": "fleet.csv"}, **faults}


def keyless(credentials: dict[str, Any]) -> dict[str, Any]:
    table = account(1, {"credentials": credentials})
    del table["access_key_id"], table["access_key_secret"]
    return table


def faults_of(table: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        parse_settings(table, where="nightly.toml")
    assert str(caught.value) == "; ".join(caught.value.sentences)
    return caught.value.sentences


@given(
    st.sets(st.sampled_from(sorted(TOP))),
    st.lists(st.sets(st.sampled_from(sorted(OF_ACCOUNT))), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_faults_of_any_keys_are_reported_together(top: set[str], of_accounts: list[set[str]]) -> None:
    accounts = [account(n, {key: OF_ACCOUNT[key][0] for key in keys}) for n, keys in enumerate(of_accounts, 1)]
    table = {"account": accounts, **{key: TOP[key][0] for key in top}}
    if not top and not any(of_accounts):
        parse_settings(table)
        return
    sentences = faults_of(table)
    for n, keys in enumerate(of_accounts, 1):
        own = [each for each in sentences if each.startswith(f'nightly.toml: account {n} ("a{n}"): ')]
        assert len(own) == len(keys)
        assert all(any(OF_ACCOUNT[key][1] in each for each in own) for key in keys)
    assert all(any(each.startswith(f"nightly.toml: {TOP[key][1]}") for each in sentences) for key in top)
    assert len(set(sentences)) == len(sentences)
    further = top & {"rollouts", "report", "notify", "publish", "cluster"}  # tables with two faults
    assert len(sentences) == sum(map(len, of_accounts)) + len(top) + len(further)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"account": [account(1, {"credentials": 5, "access_key_id": None, "access_key_secret": None})]}, 1),
        ({"account": [account(1, {"fleet": 5, "read": "index"})]}, 1),
        ({"account": [account(1, {"fleet": 5, "lanes": 3})]}, 1),
        ({"account": [account(1, {"fleet": {"products": [5, "k1"]}})]}, 1),
        ({"account": [account(1, {"fleet": {"products": "all", "include": {"status": ["ON", "OFF"]}}})]}, 2),
        ({"account": [account(1, {"dialect": "alibaba", "region_id": 5})]}, 1),
        ({"account": [account(1, {"name": 5}), account(2, {"name": 5})]}, 2),
        ({"account": [5, {}, account(3, {})]}, 1 + 4),
        ({"account": [account(1, {"access_key_secret": {"env": 5}})]}, 1),
        ({"account": [account(1, {"access_key_secret": {"evn": "KEY"}})]}, 1),
        ({"account": [account(1, {"access_key_secret": {"command": "pass"}})]}, 1),
        ({"account": [keyless({"type": "role", "role_arn": "acs:ram::1:role/a", "source": {"type": "default"}})]}, 1),
        ({"account": [keyless({"type": "ram_role_arn", "role_arn": 5, "source": {"type": "sts"}})]}, 1 + 3),
        ({"account": [keyless({"command": "vault", "format": "yaml"})]}, 2),
        ({"account": [account(1, {}), account(1, {})]}, 2),
        ({"policy": 5, "report": 5, "cluster": 5, "publish": 5, "notify": 5, "quota_sharing": 5}, 7),
        ({"account": [account(1, {})], "publish": [{}, 5, {"name": 3, "type": "files"}]}, 4),
        ({"account": [account(1, {})], "name": "a\0", "since": "\0"}, 2),
    ],
)
def test_a_value_of_a_wrong_type_hides_no_other_fault_and_makes_none(table: dict[str, Any], says: int) -> None:
    table["account"] = [
        {key: value for key, value in each.items() if value is not None} if isinstance(each, dict) else each
        for each in table.get("account", [])
    ]
    sentences = faults_of(table)
    assert len(sentences) == says, sentences
    assert not any("laceholder" in each or "PLACEHOLDER" in each or ".invalid" in each for each in sentences)


def test_a_table_with_very_many_faults_ends() -> None:
    table = {"account": [account(1, {})], **{f"key{number}": 1 for number in range(3 * MAX_FAULTS)}}
    assert len(faults_of(table)) == MAX_FAULTS


def test_the_table_of_the_caller_stays_as_it_is(tmp_path: Path) -> None:
    table = {
        "account": [account(1, {"lanes": "many", "fleet": {"products": [5]}})],
        "publish": [{"options": {"a": 1.5}}],
    }
    before = repr(table)
    faults_of(table)
    assert repr(table) == before


ODD_VALUES = [5, 1.5, True, "odd", ["odd", 5], [[]], {}, {"odd": 5}, 10**400, float("nan")]
ODD_TIMES = [date(2027, 1, 1), datetime(2027, 1, 1), time(1)]  # noqa: DTZ001  as TOML has them
OF_TYPES = re.compile(r"[`|]|expected|enum|RFC|object|null|got ")
"""Words of the library that checks types, which say nothing to those who write settings."""


def keys(struct: type[msgspec.Struct]) -> list[str]:
    return [each.encode_name for each in msgspec.structs.fields(struct)]


@pytest.mark.parametrize("value", ODD_VALUES + ODD_TIMES, ids=lambda value: repr(value)[:20])
def test_no_sentence_has_the_words_of_a_type_checker(value: object) -> None:
    tables = [{"account": [account(1, {})], key: value} for key in keys(Settings)]
    tables += [{"account": [account(1, {key: value})]} for key in keys(Account)]
    rules = [{"name": "a", "minimum": "1", key: value} for key in keys(RuleTable)]
    rules += [{"name": "a", "deny": "1", "exception": [{key: value}]} for key in keys(RuleException)]
    sentences: list[str] = []
    for parse, table in [(parse_settings, each) for each in tables] + [
        (parse_policy, {"rule": [each]}) for each in rules
    ]:
        try:
            parse(table, where="file")
        except SettingsError as error:
            sentences += error.sentences
    assert len(sentences) > len(rules)
    assert [each for each in sentences if OF_TYPES.search(each.replace("odd", ""))] == []
