"""The message about a run: what matters first, templates, and texts that mention nobody."""

import pytest

from auditor.config.hook_validation import MESSAGE_FIELDS
from auditor.hooks.message import MAX_MESSAGE_BYTES, RunMessage, describe_action
from auditor.runs.selection_info import ExitReason

FULL = RunMessage(
    "failure", "FAILED", "nightly", "run-1", "verdict", "reason", "changes", "policy", "action", "notes", "https://h/@<"
)


def test_what_matters_comes_first_and_empty_lines_are_left_out() -> None:
    assert FULL.render().splitlines() == ["verdict", "reason", "changes", "policy", "action", "https://h/@<", "notes"]
    assert RunMessage("success", "OK", "nightly", "run-1", "verdict", notes="notes").render() == "verdict\nnotes"


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
    assert set(last) == {"ü"}
    long = RunMessage("failure", "", "n", "r", *("ü" * 5_000,) * 6)
    assert len(long.render().encode()) <= MAX_MESSAGE_BYTES
    assert long.render().endswith("…")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("success", ""),
        ("within_tolerance", ""),
        ("too_many_failed", "Query the rest by: auditor resume audits/run"),
        ("interrupted", "Query the rest by: auditor resume audits/run"),
        ("policy_violated", "List what violates it by: auditor policy audits/run RULES"),
        ("refused_account", "Check the account by: auditor check CONFIG, then: auditor resume audits/run"),
        ("not_verified", "Check the files by: auditor verify audits/run"),
        (None, "See: auditor status audits/run"),
    ],
)
def test_the_action_fits_the_reason(code: str | None, expected: str) -> None:
    reason = None if code is None else ExitReason(code, "because")  # type: ignore[arg-type]
    assert describe_action(reason, "audits/run") == expected
