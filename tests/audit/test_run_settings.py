"""The settings of a resumed run come from its user: a folder from elsewhere, or an edited one, configures nothing."""

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from auditor.audit.resume import Scope, find_unfinished, reopen
from auditor.audit.run_settings import (
    MAX_REMEMBERED,
    remember_settings,
    resume_settings,
    settings_digest,
    state_directory,
    stored_settings,
)
from auditor.audit.runner import run_audit
from auditor.audit.setup import account_infos, create_run
from auditor.cli.app import main
from auditor.config.loader import load_settings, parse_settings
from auditor.config.settings import FleetSource, Quotas, SecretSource, Settings
from auditor.errors import RunFolderError
from auditor.runs.folder import find_run, has_pending_hooks, mark_pending_hooks
from auditor.runs.manifest import DeviceCounts, DiscoveryInfo, read_manifest, write_manifest
from auditor.simulator.server import Simulator
from auditor.text.formatting import format_utc
from tests.hooks.receiver import receiving
from tests.integration.audits import plain_world, settings_at
from tests.runs.run_folders import build, edit_manifest, named, ok

OTHER_USER = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a second user needs root")

SETTINGS = """
name = "nightly"
[[account]]
name = "eu"
endpoint = "https://platform.example/"
access_key_id = "key"
access_key_secret = {{ env = "SECRET" }}
fleet = {{ file = "fleet.csv" }}
{more}
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "auditor" / "settings"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "fleet.csv").write_text("product_key,device_name\nk1,dev-1\n")
    (tmp_path / "nightly.toml").write_text(SETTINGS.format(more=""))
    return tmp_path / "nightly.toml"


def start(config: Path, directory: Path | None = None, *, remember: bool = True, with_hooks: bool = False) -> Path:
    """Create the run folder of an audit that is killed at once."""
    settings = load_settings(config)
    if remember:
        remember_settings(settings, config)
    directory = config.parent / "audits" if directory is None else directory
    prepared = create_run(settings, directory, None, 1_795_312_800.0, settings_file=config, with_hooks=with_hooks)
    prepared.lock.release()
    return prepared.folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "run.json"
    table = json.loads(path.read_bytes())
    change(table)
    path.write_text(json.dumps(table))


def test_the_user_who_started_a_run_resumes_it_without_flags(config: Path, state: Path) -> None:
    folder = start(config)
    settings = load_settings(config)
    assert resume_settings(folder) == settings
    assert resume_settings(find_run(folder.parent)) == settings
    manifest = read_manifest(folder)
    assert manifest.settings_file == str(config)
    (remembered,) = state.iterdir()
    assert remembered.name == f"{manifest.settings_sha256}.json"
    assert stat.S_IMODE(remembered.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_next_run_continues_with_other_rates_and_keys_and_starts_anew_after_other_changes(
    config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = start(config)
    before = load_settings(config)
    (account,) = before.account

    def changed(**changes: Any) -> Settings:
        of_account = {key: changes.pop(key) for key in list(changes) if key in account.__struct_fields__}
        return msgspec.structs.replace(before, account=(msgspec.structs.replace(account, **of_account),), **changes)

    same: list[dict[str, Any]] = [
        {"quota_share": 0.5}, {"calls_per_second": 80.0}, {"quotas": Quotas(query_device=7.0)}, {"timeout": 9.0},
        {"max_failed": "1%"}, {"access_key_secret": SecretSource(env="OTHER")}, {"concurrency": 3},
    ]  # fmt: skip
    for changes in same:
        assert find_unfinished(folder.parent, changed(**changes)) == folder, changes
        (key,) = changes
        logged = capfd.readouterr().err
        assert (f"{key} changed from" in logged) == (key != "access_key_secret")
    other: list[dict[str, Any]] = [
        {"endpoint": "https://other.example/"}, {"region_id": "eu-1"}, {"fleet": FleetSource(file="other.csv")},
        {"since": "last"}, {"max_calls": 5}, {"name": "eu2"},
    ]  # fmt: skip
    for changes in other:
        assert find_unfinished(folder.parent, changed(**changes)) is None, changes
        logged = capfd.readouterr().err
        assert "run not resumed; a new one starts" in logged
        assert "auditor resume" in logged
    for scope in (Scope(limit=5), Scope(excluded_accounts=("us",))):
        assert find_unfinished(folder.parent, before, scope) is None
    assert find_unfinished(folder.parent, changed(sample_size=5)) is None
    assert capfd.readouterr().out == "", "another part of the fleet is another run"


def test_an_old_run_without_an_answer_has_nothing_to_continue(config: Path) -> None:
    folder, settings = start(config), load_settings(config)

    def edit(hours: float, *, answered: int = 0, listed: bool = False, ended: bool = True) -> None:
        at = format_utc(time.time() - 3_600 * hours)
        manifest = read_manifest(folder)
        discovery = (DiscoveryInfo("eu"),) if listed else ()
        counts = DeviceCounts(ok=answered, pending=2)
        finished_at = at if ended else None
        write_manifest(folder, replace(manifest, state="aborted" if ended else "running", started_at=at,
                                       finished_at=finished_at, devices=counts, discovery=discovery))  # fmt: skip

    cases: list[tuple[float, dict[str, Any], bool]] = [
        (11, {}, True),
        (13, {}, False),
        (13, {"answered": 1}, True),
        (13, {"listed": True}, True),
        (13, {"ended": False}, True),
    ]
    for hours, options, is_continued in cases:
        edit(hours, **options)
        assert find_unfinished(folder.parent, settings) == (folder if is_continued else None), (hours, options)


def test_settings_that_were_edited_in_the_folder_are_refused_with_what_they_do(config: Path) -> None:
    folder = start(config)

    def attack(table: dict[str, Any]) -> None:
        account = table["settings"]["account"][0]
        account["endpoint"] = "https://evil.example/"
        account["access_key_secret"] = {"command": ["/bin/sh", "-c", "id > /tmp/owned"]}
        account["access_key_id"] = {"file": "/root/.ssh/id_rsa"}
        table["settings"]["report"] = {"metrics": "/etc/cron.d/owned.prom"}
        gateway = {"address": "http://evil.example:9091", "username": "x", "password": {"env": "STOLEN"}}
        table["settings"]["metrics"] = {"pushgateway": gateway}

    edit(folder, attack)
    with pytest.raises(RunFolderError) as refused:
        resume_settings(folder)
    parts = ("not among those of your own", "https://evil.example/", "run /bin/sh -c", "/root/.ssh/id_rsa", "$STOLEN")
    for part in (*parts, "push metrics to http://evil.example:9091"):
        assert part in str(refused.value)
    assert "/etc/cron.d/owned.prom" in str(refused.value)
    assert f"--settings={config}" in str(refused.value)


def test_a_digest_that_belongs_to_other_settings_is_refused(config: Path) -> None:
    folder = start(config)
    edit(folder, lambda table: table["settings"].update(concurrency=7))
    with pytest.raises(RunFolderError, match="not among those"):
        resume_settings(folder)


@pytest.mark.parametrize("change", ["elsewhere", "emptied", "replaced", "open to others"])
def test_without_the_users_own_state_settings_must_be_given(config: Path, state: Path, change: str) -> None:
    folder = start(config)
    (remembered,) = state.iterdir()
    match change:
        case "elsewhere":
            shutil.rmtree(state)
        case "emptied":
            remembered.write_bytes(b"")
        case "replaced":
            content = remembered.read_text().replace("platform.example", "evil.example")
            remembered.write_text(content)
        case _:
            state.chmod(0o777)
    with pytest.raises(RunFolderError, match=f"auditor resume {folder} --settings={config}"):
        resume_settings(folder)
    assert resume_settings(folder, load_settings(config)).account[0].endpoint == "https://platform.example/"


def test_the_text_of_a_refusal_allows_exactly_what_it_described(config: Path, state: Path) -> None:
    folder = start(config)
    shutil.rmtree(state)

    def token_of(error: RunFolderError) -> str:
        return str(error).rpartition("--trust ")[2]

    with pytest.raises(RunFolderError) as refused:
        resume_settings(folder)
    trust = token_of(refused.value)
    assert resume_settings(folder, trust=trust) == load_settings(config)
    edit(folder, lambda table: table["settings"]["account"][0].update(endpoint="https://evil.example/"))
    with pytest.raises(RunFolderError) as again:
        resume_settings(folder, trust=trust)
    assert token_of(again.value) != trust


@needs_root
@pytest.mark.parametrize("part", ["folder", "manifest", "parent"])
@pytest.mark.parametrize("how", ["owner", "mode"])
def test_a_run_that_others_could_have_changed_is_refused_by_name(config: Path, part: str, how: str) -> None:
    folder = start(config)
    path = {"folder": folder, "manifest": folder / "run.json", "parent": folder.parent}[part]
    if how == "owner":
        os.chown(path, OTHER_USER, OTHER_USER)
    else:
        path.chmod(path.stat().st_mode | 0o022)
    reason = r"belongs to another user \(uid 54321\)" if how == "owner" else "can be written by other users"
    # The owner of a file in another user's folder is refused where the manifest is read.
    with pytest.raises(RunFolderError, match=rf"{folder}.*{reason}") as refused:
        resume_settings(folder)
    assert ("Give your own settings" in str(refused.value)) == (part == "parent")
    if part == "parent":
        assert resume_settings(folder, load_settings(config)) == load_settings(config)
        assert find_unfinished(folder.parent, load_settings(config)) == folder
    else:
        with pytest.raises(RunFolderError, match=rf"{folder}.*{reason}"):
            resume_settings(folder, load_settings(config))
        assert find_unfinished(folder.parent, load_settings(config)) is None


@needs_root
@pytest.mark.parametrize("how", ["mounted", "of a group"])
def test_given_settings_resume_a_run_in_a_directory_of_others(config: Path, state: Path, how: str) -> None:
    folder = start(config)
    shutil.rmtree(state)
    if how == "mounted":  # as by a container whose user is root
        os.chown(folder.parent, OTHER_USER, OTHER_USER)
    else:
        os.chown(folder.parent, 0, OTHER_USER)
        folder.parent.chmod(0o2775)
    with pytest.raises(RunFolderError, match=f"Give your own settings: auditor resume {folder} --settings={config}"):
        resume_settings(folder)
    assert resume_settings(folder, load_settings(config)) == load_settings(config)


def test_advice_that_would_not_help_is_not_given(config: Path, state: Path) -> None:
    folder = start(config)
    shutil.rmtree(state)
    folder.chmod(0o777)
    with pytest.raises(RunFolderError, match="can be written by other users") as refused:
        resume_settings(folder)
    assert "--settings" not in str(refused.value)
    trust = str(refused.value).rpartition("--trust ")[2]
    assert resume_settings(folder, trust=trust) == load_settings(config)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("proxy", "http://proxy.example:8080", "https://platform.example/ through the proxy http://proxy.example:8080"),
        ("proxy", "environment", "https://platform.example/ through your environment's proxy"),
        ("proxy", {"env": "PROXY"}, "https://platform.example/ through a proxy whose address is a secret"),
        ("quota_sharing", {"redis": "rediss://redis.example:6379/0"}, "share quotas through rediss://redis.example"),
        (
            "quota_sharing",
            {"redis": "redis://redis.example", "password": {"env": "P"}},
            "redis.example and send it a password",
        ),
        ("quota_sharing", {"directory": "{quotas}"}, "write {quotas}"),
        ("quota_sharing", {"redis": "rediss://redis.example", "ca_file": "{ca}"}, "read $SECRET, {ca}"),
    ],
)
def test_a_refusal_describes_every_place_that_the_settings_use(config: Path, key: str, value: Any, part: str) -> None:
    ca_file, quotas = config.with_name("ca.pem"), config.with_name("quotas")
    ca_file.touch()
    quotas.mkdir()
    value = json.loads(json.dumps(value).replace("{ca}", str(ca_file)).replace("{quotas}", str(quotas)))
    folder = start(config)

    def attack(table: dict[str, Any]) -> None:
        place = table["settings"]["account"][0] if key == "proxy" else table["settings"]
        place[key] = value

    edit(folder, attack)
    with pytest.raises(RunFolderError) as refused:
        resume_settings(folder)
    assert part.format(ca=ca_file, quotas=quotas) in str(refused.value)


def test_a_link_to_a_run_is_that_run(config: Path) -> None:
    folder = start(config)
    (config.parent / "latest").symlink_to(folder)
    assert resume_settings(config.parent / "latest") == load_settings(config)


def test_given_settings_must_have_the_accounts_of_the_run(config: Path) -> None:
    folder = start(config)
    config.write_text(SETTINGS.format(more="").replace("platform.example", "other.example"))
    with pytest.raises(RunFolderError, match="endpoint changed from"):
        resume_settings(folder, load_settings(config))


def test_a_run_of_some_accounts_is_resumed_with_the_file_of_all(config: Path, state: Path) -> None:
    first = SETTINGS.format(more="")
    account = first[first.index("[[account]]") :]
    others = [account.replace('"eu"', f'"{name}"').replace('"key"', f'"key-{name}"') for name in ("us", "in")]
    config.write_text("".join((first, *others)))
    every = load_settings(config)
    settings = every.restrict_to_accounts(["eu", "in"])
    prepared = create_run(settings, config.parent / "audits", None, 1_795_312_800.0, ("us",))
    prepared.lock.release()
    assert not state.exists()
    assert resume_settings(prepared.folder, every) == settings
    assert resume_settings(prepared.folder, settings) == settings
    with pytest.raises(RunFolderError, match='account "in" was removed'):
        resume_settings(prepared.folder, every.restrict_to_accounts(["us", "eu"]))
    edit(prepared.folder, lambda table: table.update(settings=None, settings_sha256=None))  # a path was not UTF-8
    assert [each.name for each in resume_settings(prepared.folder, every).account] == ["eu", "in"]
    edit(prepared.folder, lambda table: table["fleet"].update(excluded_accounts=[]))
    with pytest.raises(RunFolderError, match="other accounts"):
        resume_settings(prepared.folder, every)


def test_a_changed_settings_file_changes_nothing_until_it_is_given(
    config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = start(config)
    before = load_settings(config)
    config.write_text("concurrency = 7\n" + config.read_text())
    assert resume_settings(folder) == before
    assert "has changed since" in capfd.readouterr().err
    resume_settings(folder, quiet=True)
    assert "has changed" not in capfd.readouterr().out
    assert resume_settings(folder, load_settings(config)).concurrency == 7


def test_a_run_with_hooks_is_unfinished_until_they_ran(config: Path) -> None:
    assert not has_pending_hooks(start(config, with_hooks=True))
    config.write_text(SETTINGS.format(more="[report]\nhtml = true"))
    folder = start(config, with_hooks=True)
    assert has_pending_hooks(folder)
    edit(folder, lambda table: table.update(state="complete", finished_at=table["started_at"], devices={"ok": 1}))
    assert find_unfinished(folder.parent, load_settings(config), with_hooks=True) == folder
    assert find_unfinished(folder.parent, load_settings(config)) is None, "the caller does not run hooks"
    assert reopen(folder, load_settings(config), 1_795_312_900.0, with_hooks=True) is None
    (folder / ".hooks").unlink()
    assert find_unfinished(folder.parent, load_settings(config), with_hooks=True) is None


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_python_caller_without_hooks_starts_another_run(tmp_path: Path) -> None:
    world = plain_world(3)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_at(tmp_path, platform, report={"html": True})
        runs = [await run_audit(settings, resume=True) for _ in range(2)]
        assert runs[0].folder != runs[1].folder
        assert not has_pending_hooks(runs[1].folder)
        killed = await run_audit(settings, resume=True, with_hooks=True)
        assert has_pending_hooks(killed.folder)
        again = await run_audit(settings, resume=True, with_hooks=True)
        assert again.folder == killed.folder


def test_the_state_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local/state/auditor"
    if os.geteuid() == 0:  # as sudo with the home of the user who calls it
        os.chown(tmp_path, OTHER_USER, OTHER_USER)
        assert state_directory() != tmp_path / ".local/state/auditor"


def test_a_run_starts_where_nothing_can_be_remembered(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    folder = start(config)
    with pytest.raises(RunFolderError, match="--settings"):
        resume_settings(folder)


def test_settings_that_were_used_last_are_remembered(
    config: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.audit.run_settings.MAX_REMEMBERED", 3)
    for number in range(1, 6):
        config.write_text(f"concurrency = {number}\n" + SETTINGS.format(more=""))
        remember_settings(load_settings(config), config)
        for path in state.iterdir():
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert MAX_REMEMBERED > 3
    kept = {json.loads(path.read_bytes())["settings"]["concurrency"] for path in state.iterdir()}
    assert kept == {3, 4, 5}
    used: Settings = load_settings(config)
    remember_settings(used, None)
    assert {json.loads(path.read_bytes())["file"] for path in state.iterdir()} == {str(config)}


def test_hooks_that_a_kill_prevented_are_run_by_resume_with_their_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "new"\nmodule = "ble"\nminimum = "9"\n')
    account = {
        "name": "demo",
        "endpoint": "https://p.example/",
        "access_key_id": "k",
        "access_key_secret": {"env": "S"},
    }
    metrics = tmp_path / "auditor.prom"
    settings = parse_settings(
        {"account": [account], "policy": {"file": "rules.toml"}, "report": {"metrics": str(metrics)}}, folder=tmp_path
    )
    folder = build(tmp_path / "audits" / "run", [named(0)], [ok(named(0), ("ble", "1.0"))]).folder
    stored = stored_settings(settings)
    edit_manifest(folder, lambda run: replace(run, settings=stored, settings_sha256=settings_digest(stored)))
    remember_settings(settings, None)
    mark_pending_hooks(folder)
    assert main(["resume", str(folder.parent)]) == 4
    assert metrics.is_file()
    assert "violated" in capfd.readouterr().err
    assert not has_pending_hooks(folder)
    metrics.unlink()
    assert main(["resume", str(folder.parent)]) == 0
    assert "nothing to resume" in capfd.readouterr().err
    assert not metrics.exists()


def test_a_webhook_that_was_deferred_is_posted_by_a_resume_with_its_settings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "S")
    build(tmp_path / "audits" / "run", [named(0)], [ok(named(0), ("ble", "1.0"))])
    folder = tmp_path / "audits" / "run"
    with receiving() as receiver:
        config = tmp_path / "nightly.toml"
        (tmp_path / "fleet.csv").touch()
        config.write_text(SETTINGS.format(more='[[notify]]\nname = "ops"\nwebhook = { env = "HOOK" }'))
        settings = load_settings(config)
        manifest = read_manifest(folder)
        stored = stored_settings(settings)
        accounts = account_infos(settings)
        edit_manifest(
            folder,
            lambda run: replace(run, accounts=accounts, settings=stored, settings_sha256=settings_digest(stored)),
        )
        remember_settings(settings, config)
        mark_pending_hooks(folder)
        for _ in range(2):
            assert main(["resume", str(folder)]) == 0
            assert "a message will not be sent" in capfd.readouterr().err
            assert receiver.bodies == []
        own = msgspec.structs.replace(settings, name=manifest.name)
        assert find_unfinished(folder.parent, own, with_hooks=True) is None, "a new run is not prevented"
        monkeypatch.setenv("HOOK", receiver.address)
        assert main(["resume", str(folder), "--settings", str(config)]) == 0
        assert len(receiver.bodies) == 1
        assert not has_pending_hooks(folder)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_folder_above_the_directory_that_others_can_write_is_an_objection(config: Path, state: Path) -> None:
    shared = config.parent / "shared"
    folder = start(config, shared / "audits")
    assert resume_settings(folder) == load_settings(config)
    shared.chmod(0o777)
    with pytest.raises(RunFolderError, match=rf"its directory is in a folder of others: {shared} can be written by"):
        resume_settings(folder)
    assert resume_settings(folder, load_settings(config)) == load_settings(config)
    shared.chmod(0o1777)
    assert resume_settings(folder) == load_settings(config)


def test_settings_are_not_recalled_below_a_folder_that_others_can_write(config: Path, state: Path) -> None:
    folder = start(config)
    state.parent.parent.chmod(0o777)  # another user could put other settings there after any check
    with pytest.raises(RunFolderError, match="not among those of your own earlier runs"):
        resume_settings(folder)


@pytest.mark.parametrize("modes", [True, False])
def test_an_unfinished_run_that_is_not_resumed_is_reported_with_what_to_do(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *, modes: bool
) -> None:
    folder = start(config)
    folder.chmod(0o777)
    if not modes:  # as vfat, some network drives and Windows drives in WSL
        monkeypatch.setattr("auditor.audit.resume.keeps_modes", lambda _: False)
    capfd.readouterr()
    assert find_unfinished(folder.parent, load_settings(config)) is None
    printed = capfd.readouterr().err
    assert "unfinished run not resumed" in printed
    assert ("shows every file as writable" in printed) != modes
    assert (f"auditor resume {folder} --settings CONFIG" in printed) != modes
    edit_manifest(folder, lambda manifest: replace(manifest, state="complete", finished_at=manifest.started_at,
                                                   devices=replace(manifest.devices, ok=1, pending=0)))  # fmt: skip
    assert find_unfinished(folder.parent, load_settings(config)) is None
    assert capfd.readouterr().out == ""  # there is nothing to resume


@pytest.mark.parametrize("credentials", ['{ type = "default" }', '{ command = ["key"], format = "json" }'])
def test_credentials_of_a_run_folder_are_never_used_whatever_is_trusted(config: Path, credentials: str) -> None:
    lines = SETTINGS.format(more=f"credentials = {credentials}").splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("access_key")))
    own = load_settings(config)
    folder = start(config, remember=False)
    with pytest.raises(
        RunFolderError, match=r'account "eu" has credentials, which are never taken from a run'
    ) as refused:
        resume_settings(folder)
    assert f"auditor resume {folder} --settings={config}" in str(refused.value)
    assert "--trust" not in str(refused.value)
    with pytest.raises(RunFolderError, match="never taken from a run folder"):
        resume_settings(folder, trust="0" * 12)
    assert resume_settings(folder, own) == own
    other = msgspec.structs.replace(
        own.account[0], credentials=None, access_key_id="key", access_key_secret=SecretSource(env="SECRET")
    )
    with_key = msgspec.structs.replace(own, account=(other,))
    assert resume_settings(folder, with_key) == with_key, "keys may differ, as the place of a secret may"
    remember_settings(own, config)
    assert resume_settings(folder) == own
