"""The message about a run: what matters first, templates, and texts that mention nobody."""

import html
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.config.hook_validation import MESSAGE_FIELDS
from auditor.errors import ExitReasonCode
from auditor.hooks.message import MAX_MESSAGE_BYTES, RunMessage
from auditor.hooks.payload import build_payload, escape_chat_markup
from auditor.runs.selection_info import ExitReason
from auditor.text.shell import format_command
from tests.analysis.recorded_runs import add_run
from tests.runs.run_folders import build, edit_manifest, named, ok

FULL = RunMessage(
    "failure", "FAILED", "nightly", "run-1", "verdict", "reason", "changes", "policy", "action", "notes", "https://h/@<"
)


def test_what_matters_comes_first_and_empty_lines_are_left_out() -> None:
    assert FULL.render().splitlines() == ["verdict", "reason", "changes", "policy", "action", "https://h/@<", "notes"]
    assert RunMessage("success", "OK", "nightly", "run-1", "verdict", notes="notes").render() == "verdict\nnotes"


@pytest.mark.parametrize(("version", "upgraded"), [("1.1", 1), ("1.0", 0)])
def test_the_message_after_a_night_without_the_platform_compares_with_the_night_before_it(
    tmp_path: Path, version: str, upgraded: int
) -> None:
    for day, answer in ((21, {"ble": "1.0"}), (22, "unlisted"), (23, {"ble": version})):
        folder = add_run(tmp_path, day, [answer])
        reason = ExitReason("unreachable_account" if day == 22 else "success", "why")
        edit_manifest(folder, lambda manifest, reason=reason: replace(manifest, exit_reason=reason))  # type: ignore[misc]
    payload = build_payload(folder)
    assert payload.data["drift"]["since"] == "20261121T020000Z-nightly"
    assert payload.data["drift"]["counts"]["upgraded"] == upgraded
    assert payload.has_changes, "it ended otherwise than the run before it"


@pytest.mark.parametrize("template", ["{reason}", "{policy}\n{link}\n", " {changes} "])
def test_a_template_whose_fields_are_empty_is_the_verdict(template: str) -> None:
    assert RunMessage("success", "OK", "nightly", "run-1", "<verdict>").render(template) == "<\u200bverdict>"


def test_a_template_has_every_field() -> None:
    template = " ".join(f"{{{field}}}" for field in MESSAGE_FIELDS) + "\n{changes}\n{{}}"
    shown = "verdict reason changes policy action https://h/@< notes nightly run-1"
    assert FULL.render(template) == f"{shown}\nchanges\n{{}}"


def test_texts_of_others_are_disarmed_and_the_message_is_short() -> None:
    message = RunMessage("failure", "", "n", "r", "<!channel> @all [x](http://evil)\n\x1b[31m", notes="ü" * 5_000)
    first, last = message.render().split("\n")
    assert first == "<\u200b!channel> @\u200ball [x]\u200b(http://evil)\\n\\x1b[31m"
    assert set(last) == {"ü", "…"}, "a text that is cut says so"
    long = RunMessage("failure", "", "n", "r", *("ü" * 5_000,) * 6)
    assert len(long.render().encode()) <= MAX_MESSAGE_BYTES
    assert long.render().endswith("…")


@pytest.mark.parametrize(
    ("code", "reason", "action"),
    [
        (1, "too_many_pending", "Continue with the pending devices: auditor resume {run}"),
        (3, "unusable_fleet", "Correct the fleet settings: auditor check '/etc/our settings.toml'"),
        (4, "policy_violated", "See which devices violate a rule: auditor policy {run} '/etc/our rules.toml' --devices"),
        (1, None, "See how it ended: auditor status {run}"),
        (0, "success", ""),
    ],
)  # fmt: skip
def test_what_to_do_is_a_sentence_with_commands_that_name_files_by_their_paths(
    tmp_path: Path, code: int, reason: ExitReasonCode | None, action: str
) -> None:
    device = named(0)
    folder = build(tmp_path / "our audits" / "run", [device], [ok(device, ("ble", "1"))]).folder
    edit_manifest(
        folder,
        lambda manifest: replace(
            manifest,
            exit_code=code,
            exit_reason=None if reason is None else ExitReason(reason, "because"),
            settings_file="/etc/our settings.toml",
            settings={"policy": {"file": "/etc/our rules.toml"}},
        ),
    )
    message = build_payload(folder, exit_code=code).message
    assert message.render("{action}") == (action.format(run=shlex.quote(str(folder))) or message.verdict)


def test_a_command_that_does_not_fit_is_left_out_as_a_whole() -> None:
    commands = ("auditor status run", f"auditor check '{'s' * 470}'", "auditor resume run")
    assert replace(FULL, action="Do", commands=commands).render("{action}") == "Do: auditor status run"


def test_long_commands_become_the_one_that_prints_them(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    reason, settings = ExitReason("refused_account", "because"), "/" + "s" * 490
    edit_manifest(folder, lambda each: replace(each, exit_code=3, exit_reason=reason, settings_file=settings))
    action = build_payload(folder, exit_code=3).message.render("{action}")
    assert action == f"Correct the key or the permission, and continue the run: auditor status {folder}"


@pytest.mark.parametrize("name", ["a@all", "a b@here", "<!channel> @all [x](http://evil)", "it's <@U1>"])
def test_a_command_can_be_copied_and_mentions_nobody(name: str) -> None:
    message = replace(FULL, action="Do", commands=(format_command("auditor status", name),)).render("{action}")
    for shown in (message, escape_chat_markup(message)):
        command = html.unescape(shown).removeprefix("Do: ")
        assert shlex.split(command) == ["auditor", "status", name]
        assert "@all" not in command
        assert "@here" not in command
        assert "<!" not in command
        assert "](" not in command
