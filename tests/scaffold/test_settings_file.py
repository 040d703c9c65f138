"""New settings and rules are valid, also with what they have in comments."""

import re
import tomllib
from pathlib import Path
from typing import Literal

import pytest

from auditor.config.loader import parse_settings
from auditor.policy.loader import parse_policy
from auditor.scaffold.settings_file import RULES, NewSettings

KEY = re.compile(r"# ((?:\[|[a-z_]+ = ).*)")


def new_settings(dialect: Literal["tuya", "alibaba"] = "tuya", **changed: object) -> NewSettings:
    keys: dict[str, object] = {
        "dialect": dialect,
        "account": "eu",
        "endpoint": "https://si.tuyacloud.com/",
        "region_id": "cn-shanghai" if dialect == "alibaba" else None,
        "instance_id": None,
        "access_key_id": "LTAI",
        "access_key_secret": {"env": "KEY"},
        "fleet": {"file": "fleet.csv"},
        "calls_per_second": 10.0,
        "directory": "audits",
        "rules": False,
        "report": False,
        "schema": "file:///settings.schema.json",
    }
    return NewSettings(**(keys | changed))  # type: ignore[arg-type]


def uncommented(text: str) -> list[str]:
    """Return the text with each block in comments made effective in turn, instead of a line with the same key."""
    lines = text.splitlines()
    starts = [
        number for number, line in enumerate(lines) if KEY.match(line) and not (number and KEY.match(lines[number - 1]))
    ]
    texts = []
    for start in starts:
        changed = list(lines)
        for number in range(start, len(lines)):
            if (found := KEY.match(lines[number])) is None:
                break
            changed[number] = found[1]
        key = changed[start].partition(" = ")[0]
        kept = (line for number, line in enumerate(changed) if number == start or not line.startswith(f"{key} = "))
        texts.append("\n".join(kept))
    return texts


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
@pytest.mark.parametrize("fleet", [{"products": "all"}, {"file": "fleet.csv"}], ids=["listed", "file"])
def test_each_comment_with_a_setting_can_be_made_effective(
    dialect: Literal["tuya", "alibaba"], fleet: dict[str, str], tmp_path: Path
) -> None:
    text = new_settings(dialect, fleet=fleet).text()
    before = parse_settings(tomllib.loads(text), folder=tmp_path)
    texts = uncommented(text)
    assert len(texts) >= 5  # since, fleet, policy, report, notify
    for changed in texts:
        assert parse_settings(tomllib.loads(changed), folder=tmp_path) != before


def test_each_rule_in_a_comment_can_be_made_effective() -> None:
    text = RULES.format(schema="file:///rules.schema.json")
    texts = uncommented(text)
    assert len(texts) == 2
    for changed in texts:
        assert len(parse_policy(tomllib.loads(changed), "rules")) == len(parse_policy(tomllib.loads(text), "rules")) + 1


@pytest.mark.parametrize("quota", [0.5, 10, 123_456.75])
def test_a_quota_is_written_in_full(quota: float) -> None:
    settings = parse_settings(tomllib.loads(new_settings(calls_per_second=quota).text()))
    assert settings.account[0].calls_per_second == quota
