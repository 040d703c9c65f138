"""Hooks after a run: all of them run, each failure is a sentence, and the run and its exit code stay."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

import auditor
from auditor.config.loader import parse_settings
from auditor.config.settings import Settings
from auditor.errors import SettingsError
from auditor.hooks import prepare
from auditor.hooks import prometheus as metrics
from auditor.hooks.payload import build_payload, escape_chat_markup
from auditor.hooks.prepare import prepare_hooks, prepare_resume_hooks
from auditor.hooks.runner import HookResults, run_hooks
from auditor.policy import evaluate
from auditor.policy.evaluate import PolicySummary
from auditor.runs.folder import DEVICES, MODULES, has_pending_hooks, mark_pending_hooks
from auditor.runs.manifest import read_manifest
from auditor.runs.selection_info import ExitReason
from auditor.runs.verify import verify_run
from auditor.simulator.server import Simulator
from auditor.storage.files import atomic_replace
from auditor.text.extras import describe_extra
from tests.database import run_interrupted_query
from tests.hooks.receiver import TOKEN, receiving
from tests.integration.audits import SLOW_LATENCY, interrupted_audit, plain_world, settings_at
from tests.report.pages import parse_html
from tests.runs.run_folders import build, edit_manifest, every_status, failed, named, ok

ACCOUNT = {
    "name": "demo",
    "endpoint": "https://example.com/",
    "access_key_id": "LTAI",
    "access_key_secret": {"env": "DEMO_SECRET"},
}
HOOK = {"name": "ops", "webhook": {"env": "NO_SUCH_HOOK"}}
VIOLATED = '[[rule]]\nname = "ble 1.1"\nmodule = "ble"\nminimum = "1.1"\n'
MET = '[[rule]]\nname = "ble 1.0"\nmodule = "ble"\nminimum = "1.0"\n'


def whole_run(folder: Path) -> Path:
    fleet = [named(0), named(1)]
    return build(folder, fleet, [ok(fleet[0], ("ble", "1.0")), ok(fleet[1], ("ble", "1.1"))]).folder


def settings(folder: Path, rules: str | None = None, **tables: object) -> Settings:
    if rules is not None:
        (folder / "rules.toml").write_text(rules)
        tables["policy"] = {"file": "rules.toml"}
    return parse_settings({"account": [ACCOUNT], **tables}, folder=folder)


def hooks_after(
    folder: Path, run: Path, rules: str | None = None, *, exit_code: int = 0, **tables: object
) -> HookResults:
    """Prepare and run the hooks of these settings."""
    return run_hooks(run, prepare_hooks(settings(folder, rules, **tables)), exit_code=exit_code)


def posted(results: HookResults) -> bool:
    """Return whether the webhook was posted."""
    return any(each.name == "notify" and each.error is None for each in results.outcomes)


@pytest.mark.slow
def test_all_hooks_run_and_messages_are_sent_last(tmp_path: Path) -> None:
    run = every_status(tmp_path / "audits" / "run").folder
    report = {"html": "fleet.html", "excel": True, "metrics": "auditor.prom"}
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with receiving() as receiver:
        done = hooks_after(tmp_path, run, VIOLATED, exit_code=1, report=report, notify=receiver.tables())
    assert (done.exit_code, done.problems, posted(done)) == (1, (), True)
    assert done.written == (tmp_path / "auditor.prom", tmp_path / "fleet.html", run / "inventory.xlsx")
    assert b"<html" in (tmp_path / "fleet.html").read_bytes()
    assert (run / "inventory.xlsx").read_bytes().startswith(b"PK")
    assert 'auditor_policy_violations{run="nightly",severity="error"} 2.0' in (tmp_path / "auditor.prom").read_text()
    payload = receiver.payload
    assert (payload["state"], payload["exit_code"], payload["devices"]["failed"]) == ("partial", 1, 2)
    assert payload["policy"]["failed"] is True
    assert [(rule["rule"], rule["violated"]) for rule in payload["policy"]["rules"]] == [("ble 1.1", 2)]
    assert {name: (run / name).read_bytes() for name in before} == before
    left = {path.name for path in (*tmp_path.iterdir(), *run.iterdir())}
    assert left == {*before, "inventory.xlsx", "fleet.html", "auditor.prom", "rules.toml", "audits"}


@pytest.mark.anyio
async def test_a_message_is_sent_where_an_event_loop_runs_as_in_a_notebook(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "audits" / "run")
    with receiving() as receiver:
        done = hooks_after(tmp_path, run, notify=receiver.tables(when="always"))
    assert (done.problems, posted(done)) == ((), True)
    assert receiver.payload["state"] == "complete"


def test_a_page_of_a_run_has_paths_that_work_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run(tmp_path / "audits" / "run")
    (tmp_path / "rules.toml").write_text(VIOLATED)
    monkeypatch.chdir(tmp_path)
    tables = {"policy": {"file": "rules.toml"}, "report": {"html": True}}
    configured = prepare_hooks(parse_settings({"account": [ACCOUNT], **tables}, folder=Path()))
    done = run_hooks("audits/run", configured)
    assert done.problems == ()
    page = parse_html((tmp_path / "audits" / "run" / "report.html").read_text()).text
    assert f"auditor policy {tmp_path}/audits/run {tmp_path}/rules.toml --rule='ble 1.1' --devices" in page


def test_a_resume_evaluates_a_policy_that_could_not_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SettingsError("rules.toml: no")

    run = whole_run(tmp_path / "audits" / "run")
    edit_manifest(run, lambda manifest: replace(manifest, exit_code=0, exit_reason=manifest.describe_success()))
    mark_pending_hooks(run)
    with receiving() as receiver:
        configured = prepare_hooks(settings(tmp_path, MET, notify=receiver.tables(when="always")))
        with monkeypatch.context() as patched:
            patched.setattr(evaluate, "summarize_policy", fail)
            assert run_hooks(run, configured).exit_code == 4
        manifest = read_manifest(run)
        assert manifest.exit_reason is not None
        assert (manifest.exit_code, manifest.exit_reason.code) == (4, "policy_not_evaluated")
        assert has_pending_hooks(run), "auditor resume does not answer that nothing is to be resumed"
        assert not has_pending_hooks(run, deferred=False), "a new run is not prevented"
        assert run_hooks(run, configured).exit_code == 0
        assert len(receiver.bodies) == 1, "no message is sent again"
    assert read_manifest(run).exit_code == 0
    assert not has_pending_hooks(run)


def test_true_writes_a_file_to_the_run_folder(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "audits" / "run")
    done = hooks_after(tmp_path, run, report={"html": True, "excel": True})
    assert done.written == (run / "report.html", run / "inventory.xlsx")
    assert all(path.stat().st_size > 1_000 for path in done.written)


def test_the_page_and_the_metrics_have_the_attributes_of_the_settings(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "audits" / "run")
    report = {"html": "fleet.html", "metrics": "auditor.prom", "group_by": ["no device has this"]}
    # A fleet file may lose a column: that is no reason to lose the metrics.
    assert hooks_after(tmp_path, run, report=report).problems == ()
    assert 'label="no_device_has_this"' in (tmp_path / "auditor.prom").read_text()
    assert "no device has this" in (tmp_path / "fleet.html").read_text()


def test_no_hook_runs_without_settings(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    before = sorted(run.iterdir())
    assert hooks_after(tmp_path, run, exit_code=3) == HookResults(3)
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("rules", "code", "expected"),
    [
        (VIOLATED, 0, 4),
        (VIOLATED, 1, 1),
        (VIOLATED, 3, 3),
        (VIOLATED, 130, 130),
        (MET, 0, 0),
        (MET, 1, 1),
        (VIOLATED + 'severity = "warning"\n', 0, 0),
        (VIOLATED + 'severity = "note"\n' + MET, 0, 0),
    ],
)
def test_only_a_violated_rule_of_severity_error_changes_an_exit_code_of_0(
    tmp_path: Path, rules: str, code: int, expected: int
) -> None:
    done = hooks_after(tmp_path, whole_run(tmp_path / "run"), rules, exit_code=code)
    assert (done.exit_code, done.problems) == (expected, ())


def test_run_json_has_the_exit_code_of_the_policy_until_it_is_met(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    success = ExitReason("success", "all 2 devices have an answer")
    edit_manifest(run, lambda manifest: replace(manifest, exit_code=0, exit_reason=success))
    violated = ExitReason("policy_violated", "the policy is violated: ble 1.1")
    for rules, code, reason in ((VIOLATED, 4, violated), (MET, 0, success), (VIOLATED, 4, violated)):
        done = hooks_after(tmp_path, run, rules)
        manifest = read_manifest(run)
        assert (done.exit_code, manifest.exit_code, manifest.exit_reason) == (code, code, reason)
        assert done.policy_reason == (reason if code else None)
    assert verify_run(run) == []


def test_run_that_failed_itself_keeps_its_reason_whatever_its_policy_says(tmp_path: Path) -> None:
    run = every_status(tmp_path / "run").folder
    failed_ = ExitReason("too_many_failed", "2 of 10 devices failed")
    edit_manifest(run, lambda manifest: replace(manifest, exit_code=1, exit_reason=failed_))
    for exit_code in (1, 0):  # a program may leave it out
        hooks_after(tmp_path, run, VIOLATED, exit_code=exit_code)
        assert (read_manifest(run).exit_code, read_manifest(run).exit_reason) == (1, failed_)


def test_interrupted_hooks_are_the_reason_until_a_resume_repeats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole_run(tmp_path / "run")
    success = ExitReason("success", "all 2 devices have an answer")
    edit_manifest(run, lambda manifest: replace(manifest, exit_code=0, exit_reason=success))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "render_metrics", interrupt)
        with pytest.raises(KeyboardInterrupt):
            hooks_after(tmp_path, run, report={"metrics": "auditor.prom"})
    manifest = read_manifest(run)
    assert (manifest.exit_code, manifest.exit_reason and manifest.exit_reason.code) == (130, "interrupted")
    hooks_after(tmp_path, run, report={"metrics": "auditor.prom"})
    assert (read_manifest(run).exit_code, read_manifest(run).exit_reason) == (0, success)


def test_policy_that_cannot_be_evaluated_fails_and_the_other_hooks_run(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    (run / DEVICES).write_bytes(b"PAR1 no more")
    with receiving() as receiver:
        done = hooks_after(tmp_path, run, MET, report={"metrics": "m.prom"}, notify=receiver.tables())
    assert (done.exit_code, posted(done)) == (4, True)
    assert [problem.partition(":")[0] for problem in done.problems] == [
        "the policy could not be evaluated",
        "the metrics could not be written",
    ]
    payload = receiver.payload
    assert payload["policy"]["failed"] is True
    assert "cannot be read" in payload["policy"]["problem"]
    assert payload["problems"] == list(done.problems)
    assert [warning["kind"] for warning in payload["warnings"]] == ["unreadable"] * 2
    assert payload["warnings"][1]["message"].endswith("figures are those of run.json, not counted from the files")
    assert payload["devices"]["ok"] == 2


def test_policy_that_could_not_be_evaluated_is_in_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("auditor.policy.evaluate.summarize_policy", broken)
    done = hooks_after(tmp_path, whole_run(tmp_path / "run"), MET, report={"metrics": "m.prom"})
    assert (done.exit_code, done.problems) == (4, ("the policy could not be evaluated: ValueError: a bug",))
    text = (tmp_path / "m.prom").read_text()
    assert 'auditor_policy_evaluated{run="nightly"} 0.0' in text
    assert "auditor_policy_violations" not in text


def test_each_failed_hook_is_a_sentence_and_the_others_run(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    report = {"html": "a/fleet.html", "excel": "b/fleet.xlsx", "metrics": "c/auditor.prom"}
    with receiving(404) as receiver:
        prepared = prepare_hooks(settings(tmp_path, MET, report=report, notify=receiver.tables()))
        for name in ("a", "b", "c"):
            (tmp_path / name).rmdir()
        done = run_hooks(run, prepared)
    assert (done.exit_code, done.written, posted(done)) == (0, (), False)
    assert done.policy is not None
    assert not done.policy.failed
    failures = [
        "the metrics could not be written",
        "the report could not be written",
        "the Excel file could not be written",
    ]
    assert [each.partition(":")[0] for each in done.problems] == [*failures, "a message was not delivered"]
    assert receiver.payload["problems"] == list(done.problems[:3])
    assert TOKEN not in "".join(done.problems)
    assert done.problems[-1] == "a message was not delivered: hook: the webhook answered 404: the request was rejected"


def test_unexpected_error_of_a_hook_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(metrics, "render_metrics", broken)
    done = hooks_after(tmp_path, whole_run(tmp_path / "run"), report={"metrics": "m.prom"})
    assert done.problems == ("the metrics could not be written: KeyError: 'a bug'",)
    assert done.exit_code == 0


def nothing(_run: Path) -> None:
    pass


def spoilt(run: Path) -> None:
    (run / MODULES).write_bytes((run / MODULES).read_bytes() + b"\0")


def aborted(run: Path) -> None:
    edit_manifest(run, lambda manifest: replace(manifest, state="aborted", error="disk full"))


@pytest.mark.parametrize(
    ("change", "rules", "code", "expected"),
    [
        (nothing, MET, 0, False),
        (nothing, None, 0, False),
        (nothing, MET, 1, True),
        (nothing, VIOLATED, 0, True),
        (nothing, VIOLATED + 'severity = "note"\n', 0, True),
        (nothing, MET + '[[rule]]\nname = "x"\nmodule = "none"\nminimum = "1"\n', 0, True),
        (spoilt, MET, 0, True),
        (aborted, None, 0, True),
    ],
)
def test_runs_with_problems_are_reported_and_others_are_not(
    tmp_path: Path, change: Callable[[Path], None], rules: str | None, code: int, *, expected: bool
) -> None:
    run = whole_run(tmp_path / "run")
    change(run)
    with receiving() as receiver:
        notify = receiver.tables(when="problems")
        done = hooks_after(tmp_path, run, rules, exit_code=code, notify=notify)
    assert (posted(done), bool(receiver.bodies)) == (expected, expected)


@pytest.mark.slow
def test_only_runs_with_changes_are_reported_where_that_is_requested(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(3)]
    success = ExitReason("success", "all 3 devices have an answer")
    violated = ExitReason("policy_violated", "the policy is violated: ble 1.1")
    runs = [
        ("1", "111", success, True),  # there is no previous run
        ("2", "111", success, False),
        ("3", "112", success, True),
        ("4", "112", violated, True),
        ("5", "112", violated, False),
        ("6", "112", ExitReason("policy_violated", "the policy is violated: ble 2.0"), True),
        ("7", "112", success, True),
    ]
    for name, versions, reason, expected in runs:
        run = build(tmp_path / name, fleet, [ok(d, ("ble", v)) for d, v in zip(fleet, versions, strict=True)]).folder
        began = f"2026-11-2{name}T02:00:00.000Z"
        edit_manifest(run, lambda m, began=began, reason=reason: replace(m, started_at=began, exit_reason=reason))  # type: ignore[misc]
        with receiving() as receiver:
            hooks_after(tmp_path, run, notify=receiver.tables(when="changes"))
        assert bool(receiver.bodies) == expected, name


def test_a_message_has_its_template_and_link(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    with receiving() as receiver:
        keys = {"message": "{name}: {verdict}\n{reason}\n{link}", "link": "https://reports.example.com/{run}/"}
        done = hooks_after(tmp_path, run, notify=receiver.tables(**keys))
    assert (done.notified, receiver.event["type"]) == (("hook",), "run.finished")
    verdict = "nightly: nightly is complete: 2 of 2 devices answered, 0 failed, 0 pending."
    assert receiver.event["text"] == f"{verdict}\nhttps://reports.example.com/run/"


def test_each_place_has_its_own_outcome(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    with receiving() as receiver, receiving(403) as refusing, receiving(307) as redirecting:
        tables = [
            {**each.tables()[0], "name": name} for name, each in (("a", receiver), ("b", refusing), ("c", redirecting))
        ]
        done = hooks_after(tmp_path, run, notify=tables)
    assert done.notified == ("a",)
    assert done.problems == (
        "a message was not delivered: b: the webhook answered 403: the request was rejected",
        "a message was not delivered: c: the webhook answered 307: redirects are not allowed",
    )
    assert {event["id"] for event in (receiver.event, refusing.event)} == {receiver.event["id"]}


def test_payload_has_the_drift_since_the_previous_run(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(3)]
    for name, night, versions in (("1", 1, "112"), ("2", 2, "122"), ("0", 3, "999")):
        run = build(tmp_path / name, fleet, [ok(d, ("ble", v)) for d, v in zip(fleet, versions, strict=True)]).folder
        began = f"2026-11-2{night}T02:00:00.000Z"
        named_so = "other" if name == "0" else "nightly"
        edit_manifest(run, lambda m, began=began, name=named_so: replace(m, started_at=began, name=name))  # type: ignore[misc]
    with receiving() as receiver:
        notify = receiver.tables()
        hooks_after(tmp_path, tmp_path / "2", notify=notify)
        assert receiver.payload["drift"]["since"] == "1"
        assert receiver.payload["drift"]["counts"]["upgraded"] == 1
        assert "Since 1: 1 upgraded." in receiver.event["text"]
        hooks_after(tmp_path, tmp_path / "1", notify=notify)
        assert receiver.payload["drift"] is None


def test_payload_is_bounded_and_safe_for_chats(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(150)]
    folder = tmp_path / "run"
    codes = [f"<!channel> & <https://evil.example|x>\n{n:03}" for n in range(150)]
    build(folder, fleet, [failed(d, c) for d, c in zip(fleet, codes, strict=True)])
    with receiving() as receiver:
        done = hooks_after(tmp_path, folder, exit_code=1, notify=receiver.tables())
    assert done.problems == ()
    payload = receiver.payload
    assert len(payload["failures"]) == 100
    text = receiver.event["text"]
    assert "&lt;\u200b!channel&gt; &amp; &lt;\u200bhttps://evil.example|x&gt;\\n000" in text
    assert "97 more" in text
    assert not {"<", ">"} & set(text)
    assert len(receiver.bodies[0]) < 60_000
    assert receiver.event["schema_version"] == 2


def test_text_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    path = os.fsdecode(b"/srv/\xff.html")
    result = build_payload(whole_run(tmp_path / "run"), problems=[f"{path}: cannot be written"])
    event = orjson.loads(result.render_event(result.message.render()))
    assert event["data"]["problems"] == ["/srv/\\udcff.html: cannot be written"]
    assert "/srv/\\udcff.html: cannot be written" in event["text"]
    assert result.has_problems


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"policy": {"file": "none.toml"}}, "none.toml: cannot be read: No such file or directory"),
        ({"policy": {"file": "bad.toml"}}, "bad.toml: "),
        ({"report": {"html": "none/fleet.html"}}, "none is not a directory; make it, or give another path"),
        ({"report": {"metrics": "folder.prom"}}, "folder.prom is not a file; give the path of a file"),
        ({"report": {"html": "fleet.csv"}}, "fleet.csv does not end with .html or .htm; another file is not replaced"),
        ({"report": {"excel": "bad.toml/x.xlsx"}}, "bad.toml is not a directory; make it"),
        (
            {"notify": [{"name": "ops", "webhook": {"env": "NO_SUCH_HOOK"}}]},
            'notify "ops": webhook: the environment variable NO_SUCH_HOOK is not set, or empty',
        ),
        (
            {"notify": [{"name": "ops", "webhook": {"file": "token"}}]},
            'notify "ops": webhook: is not an address such as https://HOST/PATH',
        ),
        (
            {"notify": [{"name": "ops", "webhook": {"file": "hook"}, "secret": {"env": "NO_SUCH_HOOK"}}]},
            'notify "ops": secret: the environment variable NO_SUCH_HOOK is not set',
        ),
        (
            {"notify": [{"name": "ops", "webhook": {"file": "hook"}, "secret": {"file": "token"}}]},
            'notify "ops": secret: is not whsec_ and base64 of 24 to 64 bytes; generate one: echo "whsec_$(openssl',
        ),
    ],
)
def test_mistakes_are_refused_before_the_run(tmp_path: Path, tables: Any, sentence: str) -> None:
    (tmp_path / "folder.prom").mkdir()
    (tmp_path / "bad.toml").write_text("[[rule]]\nnam = 1\n")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "hook").write_text("https://h/x")
    with pytest.raises(SettingsError) as caught:
        prepare_hooks(settings(tmp_path, **tables), source="nightly.toml")
    assert sentence in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(tmp_path, report={"metrics": "auditor.prom"})
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests' user may be root, who may write anywhere
    with pytest.raises(SettingsError, match="cannot be written; a file in it is replaced after each run"):
        prepare_hooks(given)


@pytest.mark.parametrize(("key", "package"), [("html", "jinja2"), ("excel", "xlsxwriter")])
def test_missing_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, package: str) -> None:
    monkeypatch.setattr(prepare, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError) as caught:
        prepare_hooks(settings(tmp_path, report={key: True}), source="nightly.toml")
    assert str(caught.value) == f"nightly.toml: report: {key}: needs {package}: {describe_extra('report')}"


def test_a_chat_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "find_spec", lambda _name: None)
    monkeypatch.setenv("CHAT", f"slack://{TOKEN}")
    with pytest.raises(SettingsError) as caught:
        prepare_hooks(settings(tmp_path, notify=[{"name": "ops", "address": {"env": "CHAT"}}]), source="nightly.toml")
    sentence = f'nightly.toml: notify "ops": address: needs apprise: {describe_extra("notify")}'
    assert str(caught.value) == sentence


def test_an_address_that_is_none_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT", f"slck://{TOKEN}")
    with pytest.raises(SettingsError) as caught:
        prepare_hooks(settings(tmp_path, notify=[{"name": "ops", "address": {"env": "CHAT"}}]), source="nightly.toml")
    sentence = 'nightly.toml: notify "ops": address: is not an address of a service that Apprise has'
    assert str(caught.value) == sentence


def test_preparing_hooks_writes_nothing(tmp_path: Path) -> None:
    prepare_hooks(settings(tmp_path, MET, report={"html": "f.html", "metrics": "m.prom"}))
    assert {path.name for path in tmp_path.iterdir()} == {"rules.toml"}


@pytest.mark.anyio
async def test_files_written_by_hooks_are_removed_when_a_run_is_resumed(tmp_path: Path) -> None:
    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform))
        for name in ("report.html", "inventory.xlsx", "notes.txt"):
            (first.folder / name).write_text("of the first session")
        result = await auditor.resume_audit(first.folder)
    left = {path.name for path in result.folder.iterdir()} & {"report.html", "inventory.xlsx", "notes.txt"}
    assert left == {"notes.txt"}


def test_hooks_are_part_of_the_public_api() -> None:
    assert auditor.run_hooks is run_hooks
    assert auditor.prepare_hooks is prepare_hooks
    assert auditor.write_metrics is metrics.write_metrics
    assert {"HookConfig", "HookResults"} <= set(auditor.__all__)


def test_resuming_a_run_whose_policy_is_missing_has_a_note(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    stored: dict[str, object] = {"account": [ACCOUNT], "policy": {"file": str(tmp_path / "gone.toml")}}
    config = prepare_resume_hooks(parse_settings(stored))
    (note,) = config.notes
    assert note.startswith("the policy cannot be evaluated: ")
    assert note.endswith("gone.toml: cannot be read: No such file or directory; give the settings with --settings")
    done = run_hooks(run, config)
    assert done.exit_code == 4
    assert done.problems[0].endswith("gone.toml: cannot be read: No such file or directory")


def test_each_hook_that_cannot_run_after_a_resume_is_a_note_and_fails_alone(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    report = {"html": str(tmp_path / "gone" / "x.html"), "metrics": str(tmp_path / "m.prom")}
    stored: dict[str, object] = {"account": [ACCOUNT], "report": report, "notify": [HOOK]}
    config = prepare_resume_hooks(parse_settings(stored))
    assert [note.partition(":")[0] for note in config.notes] == ["settings", "a message will not be sent"]
    done = run_hooks(run, config)
    assert (done.exit_code, done.written, posted(done)) == (0, (tmp_path / "m.prom",), False)
    failures = ["the report could not be written", "a message was not delivered"]
    assert [problem.partition(":")[0] for problem in done.problems] == failures
    assert "NO_SUCH_HOOK is not set" in done.problems[1]


def test_policy_and_report_use_one_point_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[object] = []

    def summarize(*_: object, now: object = None) -> PolicySummary:
        times.append(now)
        return PolicySummary()

    def write(*_: object, policy: object, now: object = None, group_by: object = ()) -> None:
        times.append(now)

    monkeypatch.setattr("auditor.policy.evaluate.summarize_policy", summarize)
    monkeypatch.setattr("auditor.report.render.write_report", write)
    hooks_after(tmp_path, whole_run(tmp_path / "run"), MET, report={"html": True})
    assert times[0] is not None
    assert times == [times[0]] * 2


def test_interrupted_query_ends_the_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "render_metrics", lambda *_, **__: run_interrupted_query())
    with pytest.raises(KeyboardInterrupt):
        hooks_after(tmp_path, whole_run(tmp_path / "run"), report={"metrics": "m.prom"})


def test_payload_has_no_drift_when_the_previous_run_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1", "2"):
        began = f"2026-11-2{name}T02:00:00.000Z"
        edit_manifest(whole_run(tmp_path / name), lambda m, began=began: replace(m, started_at=began))  # type: ignore[misc]

    def gone(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("auditor.hooks.payload.diff_runs", gone)
    assert build_payload(tmp_path / "2").data["drift"] is None


def test_chat_mentions_are_escaped() -> None:
    assert escape_chat_markup("@channel <!here>") == "@\u200bchannel &lt;!here&gt;"


def test_replaced_files_keep_their_mode(tmp_path: Path) -> None:
    path, old = tmp_path / "x.html", os.umask(0o027)
    try:
        for mode, before in ((0o640, None), (0o600, 0o600), (0o664, 0o664)):
            if before is not None:
                path.chmod(before)
            with atomic_replace(path) as new:
                assert new.stat().st_mode & 0o777 == mode
                new.write_text("x")
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(old)
