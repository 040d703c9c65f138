"""How a run is cut, and which settings of a worker are refused."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import auditor
from auditor.__about__ import VERSION
from auditor.cluster.plan import (
    ShardPlan,
    cut_into_shards,
    describe_differences,
    digest_settings,
    refuse_strategies,
    worker_settings,
)
from auditor.errors import SettingsError, UsageError
from auditor.runs.manifest import FleetInfo


def account(name: str, **changes: object) -> dict[str, Any]:
    return {
        "name": name,
        "endpoint": "https://platform.example/",
        "access_key_id": f"key-{name}",
        "access_key_secret": {"env": "SECRET"},
        "fleet": {"file": "fleet.csv"},
        **changes,
    }


def settings_of(*accounts: dict[str, Any], **changes: object) -> auditor.Settings:
    return auditor.parse_settings({"account": list(accounts), **changes})


def plan_of(settings: auditor.Settings, **devices: int) -> ShardPlan:
    return ShardPlan(
        auditor_version=VERSION,
        name="nightly",
        started_at="2026-11-29T02:00:00.000Z",
        accounts=(),
        fleet=FleetInfo("", 0, 0, ""),
        max_failed=0,
        checkpoint=10.0,
        shards=cut_into_shards(settings, devices),
        digests=digest_settings(settings),
    )


def test_an_account_is_one_shard_unless_its_quota_needs_more_processes() -> None:
    settings = settings_of(
        account("small"), account("large", calls_per_second=12_000), account("cut", lanes=3), account("tiny", lanes=9)
    )
    shards = cut_into_shards(settings, {"small": 10, "large": 100, "cut": 10, "tiny": 2})
    assert [shard.label for shard in shards] == [
        "small", "large 1/3", "large 2/3", "large 3/3", "cut 1/3", "cut 2/3", "cut 3/3", "tiny 1/2", "tiny 2/2",
    ]  # fmt: skip
    assert [shard.devices for shard in shards if shard.account == "cut"] == [4, 3, 3]
    assert len({shard.name for shard in shards}) == len(shards)


def test_lanes_divide_the_quota_unless_redis_does() -> None:
    table = account("eu", lanes=3, calls_per_second=12.0, quotas={"ListOTAModuleByProduct": 6.0})
    settings = settings_of(table, account("us"))
    shard = cut_into_shards(settings, {"eu": 9, "us": 9})[0]
    own = worker_settings(settings, shard)
    assert [each.name for each in own.account] == ["eu"]
    assert own.account[0].calls_per_second == 4.0
    assert own.account[0].quotas.list_ota_module_by_product == 2.0
    assert own.quota_sharing == "none"
    shared = settings_of(table, quota_sharing={"redis": "redis://127.0.0.1:6379/0"})
    assert worker_settings(shared, shard).account[0].calls_per_second == 12.0


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("since", {"since": "audits/20261101T020000Z-audit"}),
        ("max_calls", {"max_calls": 100}),
        ("sample_size", {"sample_size": 100}),
        ("precision", {"precision": "1%"}),
        ("released", {"released": True}),
    ],
)
def test_settings_that_need_the_whole_run_are_refused_with_the_reason(key: str, changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=rf"^{key}: is not for a run of shards: .+; use auditor run"):
        refuse_strategies(settings_of(account("eu"), **changes))
    refuse_strategies(settings_of(account("eu")))


def test_a_listed_fleet_is_one_shard() -> None:
    with pytest.raises(SettingsError, match="a fleet that the platform lists is one shard"):
        settings_of(account("eu", fleet={"products": "all"}, lanes=2))
    assert [shard.devices for shard in cut_into_shards(settings_of(account("eu", fleet={"products": "all"})), {})] == [
        None
    ]


def test_differences_are_named_by_their_key_and_never_by_a_value() -> None:
    settings = settings_of(account("eu"), account("us"), page_size=100)
    plan = plan_of(settings, eu=10, us=10)
    elsewhere = settings_of(
        account("eu", access_key_secret={"file": "/other"}, proxy="http://proxy:3128", fleet={"file": "/mnt/eu.csv"}),
        page_size=50,
        directory="/elsewhere",
    )
    assert describe_differences(plan, plan.shards[0], elsewhere, VERSION) == []
    assert describe_differences(plan, plan.shards[1], elsewhere, VERSION) == ['they have no account "us"']
    other = settings_of(
        account("eu", endpoint="https://marker.example/", dialect="alibaba", region_id="x"), since="last"
    )
    differences = describe_differences(plan, plan.shards[0], other, VERSION)
    assert set(differences) == {
        "since differs",
        *(f'account "eu": {key} differs' for key in ("endpoint", "dialect", "region_id")),
    }
    assert "marker" not in msgspec.json.encode(plan_of(other, eu=1)).decode()
    assert describe_differences(plan, plan.shards[0], settings, "0.0.9") == [
        f"this auditor is 0.0.9, and the run was cut by {VERSION}"
    ]


def test_shards_of_a_site() -> None:
    plan = plan_of(settings_of(account("eu", site="frankfurt"), account("us")), eu=5, us=5)
    assert [shard.account for shard in plan.shards_of("frankfurt")] == ["eu"]
    assert len(plan.shards_of(None)) == 2
    with pytest.raises(UsageError, match='site "paris": has no shard of this run; its sites: frankfurt'):
        plan.shards_of("paris")


def test_a_directory_of_the_settings_is_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "nightly.toml").write_text(
        '[[account]]\nname = "eu"\nendpoint = "https://h/"\naccess_key_id = "k"\n'
        'access_key_secret = { env = "S" }\n[cluster]\nstorage = "runs"\n'
    )
    loaded = auditor.load_settings(tmp_path / "nightly.toml")
    assert loaded.cluster is not None
    assert loaded.cluster.storage == str(tmp_path / "runs")
