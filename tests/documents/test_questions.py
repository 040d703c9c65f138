"""Each of the ten questions of the README is answered by its command on the runs of the demonstration, as a query over
their files answers it."""

import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from tests import forked
from tests.documents.examples import ENVIRONMENT
from tests.documents.pages import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([A-Z][^|]*\?) \| `(auditor [^`]*)` \|$", README, re.MULTILINE)


class Truth:
    """The newest runs of a workspace, read without auditor."""

    def __init__(self, folder: Path) -> None:
        self.runs = sorted(path for path in (folder / "audits").iterdir() if path.is_dir())

    def ask(self, query: str) -> list[tuple[object, ...]]:
        new, old = self.runs[-1], self.runs[-2]
        with duckdb.connect() as database:
            database.execute(f"CREATE VIEW modules AS FROM '{new}/modules.parquet'")
            database.execute(f"CREATE VIEW old_modules AS FROM '{old}/modules.parquet'")
            database.execute(f"CREATE VIEW changes AS FROM '{new}/changes.parquet'")
            database.execute(f"CREATE VIEW fleet AS FROM '{new}/fleet.parquet'")
            return database.execute(query).fetchall()

    def number(self, query: str) -> int:
        ((value,),) = self.ask(query)
        assert isinstance(value, int)
        return value


BEHIND = "FROM modules WHERE module_name = 'wifi' AND CAST(split_part(module_version, '.', 1) AS INTEGER) < 4"


def inventory(printed: str, truth: Truth) -> None:
    rows = truth.number("SELECT count(*) FROM (SELECT DISTINCT product_key, module_name, module_version FROM modules)")
    assert len(re.findall(r" [\d.]+%$", printed, re.MULTILINE)) == rows


def older(printed: str, truth: Truth) -> None:
    names = {name for (name,) in truth.ask(f"SELECT device_name {BEHIND}")}
    assert len(names) > 20
    assert set(re.findall(r"^\S+ +(\S+) .* wifi ", printed, re.MULTILINE)) == names


def last_run(printed: str, truth: Truth) -> None:
    assert truth.runs[-1].name in printed
    assert "exit 0 (success)" in printed
    assert re.search(r"^next: ", printed, re.MULTILINE)


def changes(printed: str, truth: Truth) -> None:
    changed = truth.number("""
        SELECT count(*) FROM modules AS new JOIN old_modules AS old USING (account, product_key, device_name, module_name)
        WHERE new.module_version <> old.module_version""")
    assert sum(int(number) for number in re.findall(r" (\d+)$", printed, re.MULTILINE)) == changed > 20


def device(printed: str, truth: Truth) -> None:
    found = truth.ask("SELECT module_name, module_version FROM modules WHERE device_name = 'dev-00000157'")
    assert len(found) > 1
    for module, version in found:
        assert re.search(rf" {module} +{re.escape(str(version))}(?: |$)", printed, re.MULTILINE)
    changed = truth.ask("""
        SELECT module_name, old_version, new_version, strftime(answered_at, '%Y-%m-%d %H:%M:%S') FROM changes
        WHERE device_name = 'dev-00000157'""")
    assert changed
    for module, old, new, since in changed:
        assert re.search(rf" {module} +{re.escape(str(new))} +{since} +upgraded ", printed)
        assert re.search(rf" {module} +{re.escape(str(old))} +{since} *$", printed, re.MULTILINE)


def rollouts(printed: str, truth: Truth) -> None:
    modules = truth.number("SELECT count(*) FROM (SELECT DISTINCT product_key, module_name FROM modules)")
    assert f"{modules} rollouts: " in printed
    assert re.search(r" done by *$", printed, re.MULTILINE)
    (share,) = truth.ask("""
        SELECT count(*) FILTER (module_version = '2.7') / count(*) FROM modules
        WHERE product_key = 'k1PJ0zpxzi' AND module_name = 'default'""")
    assert re.search(rf" default +moving +2\.7 +{float(str(share[0])):.1%} ", printed)


def violations(printed: str, truth: Truth) -> None:
    running = truth.ask("SELECT product_key, device_name, module_version FROM modules WHERE module_name = 'default'")
    newest: dict[object, list[int]] = {}
    for product, _, version in running:
        newest[product] = max(newest.get(product, []), numbers(version))
    behind = {name for product, name, version in running if numbers(version) < newest[product]}
    shown = set(re.findall(r"^rollout done +warning +violated +\S+ +(\S+)", printed, re.MULTILINE))
    # A table ends after 1,000 rows.
    assert shown <= behind
    assert len(shown) == min(len(behind), 1000) > 100


def numbers(version: object) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", str(version))]


def products(printed: str, truth: Truth) -> None:
    found = truth.ask(
        f"SELECT attributes['product_name'], count(*) {BEHIND.replace('modules', 'modules JOIN fleet USING (account, product_key, device_name)')} GROUP BY 1"
    )
    assert len(found) > 1
    assert {(name, int(number)) for name, number in re.findall(r"^(\S.*?) +(\d+)$", printed, re.MULTILINE)} == set(
        found
    )


def versions(printed: str, truth: Truth) -> None:
    found = truth.ask("SELECT DISTINCT module_name, module_version FROM modules")
    assert {tuple(line.split()) for line in printed.splitlines()[1:]} == set(found)


def verified(printed: str, truth: Truth) -> None:
    assert re.search(rf"{truth.runs[-1].name}: verified; the run is complete$", printed.strip())


ANSWERS: dict[str, Callable[[str, Truth], None]] = {
    "How many devices run which version?": inventory,
    "Which devices run an older version than 4.0?": older,
    "Did the last run go well, and what is to be done?": last_run,
    "What changed since the run before?": changes,
    "What does one device run, since when, and what before?": device,
    "Which rollouts are stalled, and when are the others done?": rollouts,
    "Which devices violate our rules?": violations,
    "Which products have devices behind, and how many?": products,
    "Which versions exist at all?": versions,
    "Is the run complete, and are its numbers right?": verified,
}


def test_there_are_ten_questions() -> None:
    assert [question for question, _ in ROWS] == list(ANSWERS)


@pytest.mark.parametrize(("question", "command"), ROWS, ids=[question for question, _ in ROWS])
@pytest.mark.slow
def test_a_question_is_answered(question: str, command: str, demonstration: Path) -> None:
    done = forked.run(*shlex.split(command)[1:], cwd=demonstration, env=ENVIRONMENT | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    ANSWERS[question](done.stdout + done.stderr, Truth(demonstration))


@pytest.mark.slow
def test_commands_that_work_on_a_run_in_progress_are_named(examples_folder: Path) -> None:
    named = re.findall(r"`(\w+)`", re.findall(r"^(`inventory`.*) also read a run in progress", README, re.MULTILINE)[0])
    settings = examples_folder / "nightly.toml"
    settings.write_text(settings.read_text().replace("calls_per_second = 2000", "calls_per_second = 40"))
    before = set(Truth(examples_folder).runs)
    audit = forked.CapturedCommand("run", "nightly.toml", cwd=examples_folder, env=ENVIRONMENT)
    newest, answered = None, {}
    while newest is None or not (newest / "devices.jsonl").is_file() or not (newest / "devices.jsonl").stat().st_size:
        time.sleep(0.02)
        newest = next((run for run in Truth(examples_folder).runs if run not in before), None)
    audit.command.send_signal(signal.SIGKILL)
    for _, command in ROWS:
        words = shlex.split(command.replace("audits/demo-rules.toml", "rules.toml"))[1:]
        words = [str(newest) if word == "audits" else word for word in words]
        answered[words[0]] = forked.run(*words, cwd=examples_folder, env=ENVIRONMENT).returncode in {0, 4}
    audit.result()
    assert {name for name, done in answered.items() if done} == set(named)
