"""Each of the ten questions of the README is answered by its command, as a query over the run's files answers it."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from tests import forked
from tests.documents.examples import ENVIRONMENT
from tests.documents.pages import ROOT

ROWS = re.findall(r"^\| ([A-Z][^|]*\?) \| `(auditor [^`]*)` \|$", (ROOT / "README.md").read_text(), re.MULTILINE)


class Truth:
    """The newest runs of a workspace, read without auditor."""

    def __init__(self, folder: Path) -> None:
        self.runs = sorted((folder / "audits").iterdir())

    def ask(self, query: str) -> list[tuple[object, ...]]:
        new, old = self.runs[-1], self.runs[-2]
        with duckdb.connect() as database:
            database.execute(f"CREATE VIEW modules AS FROM '{new}/modules.parquet'")
            database.execute(f"CREATE VIEW old_modules AS FROM '{old}/modules.parquet'")
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
    found = truth.ask("SELECT module_name, module_version FROM modules WHERE device_name = 'dev-00000160'")
    assert len(found) > 1
    for module, version in found:
        assert re.search(rf" {module} +{re.escape(str(version))} ", printed)


def rollouts(printed: str, truth: Truth) -> None:
    modules = truth.number("SELECT count(*) FROM (SELECT DISTINCT product_key, module_name FROM modules)")
    assert f"{modules} rollouts: " in printed
    assert " stalled " in printed


def violations(printed: str, truth: Truth) -> None:
    running = truth.ask("SELECT product_key, device_name, module_version FROM modules WHERE module_name = 'default'")
    newest: dict[object, list[int]] = {}
    for product, _, version in running:
        newest[product] = max(newest.get(product, []), numbers(version))
    behind = {name for product, name, version in running if numbers(version) < newest[product]}
    assert set(re.findall(r"^default up to date +error +violated +\S+ +(\S+)", printed, re.MULTILINE)) == behind


def numbers(version: object) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", str(version))]


def sites(printed: str, truth: Truth) -> None:
    found = truth.ask(
        f"SELECT attributes['site'], count(*) {BEHIND.replace('modules', 'modules JOIN fleet USING (account, product_key, device_name)')} GROUP BY 1"
    )
    assert len(found) == 3
    assert {(site, int(number)) for site, number in re.findall(r"^(\w\d) +(\d+)$", printed, re.MULTILINE)} == set(found)


def versions(printed: str, truth: Truth) -> None:
    found = truth.ask("SELECT DISTINCT module_name, module_version FROM modules")
    assert {tuple(line.split()) for line in printed.splitlines()[1:]} == set(found)


def verified(printed: str, truth: Truth) -> None:
    assert re.search(rf"{truth.runs[-1].name}: verified; the run is complete$", printed.strip())


ANSWERS: dict[str, Callable[[str, Truth], None]] = {
    "How many devices run which version?": inventory,
    "Which devices run an older version than 4.0?": older,
    "Did the last run go well, and what is to be done?": last_run,
    "What changed since yesterday?": changes,
    "What does one device run, since when, and what before?": device,
    "Which rollouts are stalled, and when are the others done?": rollouts,
    "Which devices violate our rules?": violations,
    "How many sites have devices behind, and which?": sites,
    "Which versions exist at all?": versions,
    "Are the numbers right?": verified,
}


def test_there_are_ten_questions() -> None:
    assert [question for question, _ in ROWS] == list(ANSWERS)


@pytest.mark.parametrize(("question", "command"), ROWS, ids=[question for question, _ in ROWS])
def test_a_question_is_answered(question: str, command: str, built_workspace: tuple[Path, str]) -> None:
    folder, _ = built_workspace
    done = forked.run(*shlex.split(command)[1:], cwd=folder, env=ENVIRONMENT | {"COLUMNS": "200"})
    assert done.returncode == (4 if "policy" in command else 0), done.stderr
    ANSWERS[question](done.stdout + done.stderr, Truth(folder))
