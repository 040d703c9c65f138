"""Publishing: what is published, retries and time limits, catching up, hooks and commands, and secrets that stay hidden."""

import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from auditor.cli.app import main
from auditor.concurrency import TimeLimit
from auditor.config.loader import parse_settings
from auditor.config.serialization import settings_to_dict
from auditor.config.settings import OptionSetting, PublishSettings, SecretSource
from auditor.errors import DestinationError, RunFolderError, SettingsError
from auditor.hooks.prepare import prepare_hooks, prepare_resume_hooks
from auditor.hooks.runner import run_hooks
from auditor.publish import destinations, publisher
from auditor.publish.destinations import check_destination
from auditor.publish.publisher import PublisherClock, publish_missing, publish_run
from auditor.publish.tables import run_digest, run_name
from auditor.resilience.retry import Backoff
from auditor.runs.manifest import read_manifest
from auditor.runs.selection_info import ExitReason
from tests.runs.run_folders import build, edit_manifest, named, ok
from tests.storage.s3 import S3, needs_s3, simulated_s3

DAYS = ("20", "21", "22")


class RecordingSettings(msgspec.Struct, frozen=True):
    to: str = "memory"


class Recording:
    """A destination of another package, which fails as often as a test requests."""

    settings_type: ClassVar[type[msgspec.Struct]] = RecordingSettings
    failures: ClassVar[list[Exception]] = []
    runs: ClassVar[dict[str, str]] = {}
    calls: ClassVar[list[str]] = []

    def __init__(self, settings: RecordingSettings) -> None:
        self._to = settings.to

    def describe(self) -> str:
        return self._to

    def published_runs(self, names: Collection[str], limit: TimeLimit) -> Mapping[str, str]:
        self._fail()
        return {name: digest for name, digest in self.runs.items() if name in names}

    def publish(self, folder: Path, limit: TimeLimit) -> None:
        self.calls.append(folder.name)
        self._fail()
        self.runs[run_name(folder)] = run_digest(read_manifest(folder))

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    entry = EntryPoint("recording", f"{__name__}:Recording", destinations.ENTRY_POINTS)
    monkeypatch.setattr(
        destinations, "entry_points", lambda group: [entry] if group == destinations.ENTRY_POINTS else []
    )
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Recording.__module__])
    Recording.failures, Recording.runs, Recording.calls = [], {}, []
    return Recording


@pytest.fixture
def audits(tmp_path: Path) -> Path:
    fleet = [named(n) for n in range(3)]
    for day in DAYS:
        folder = tmp_path / "audits" / f"202611{day}T020000Z-nightly"
        build(folder, fleet, [ok(d, ("ble", f"1.{day}")) for d in fleet])
        edit_manifest(folder, lambda m, day=day: replace(m, started_at=f"2026-11-{day}T02:00:00Z"))  # type: ignore[misc]
    return tmp_path / "audits"


def run_of(audits: Path, day: str) -> Path:
    return audits / f"202611{day}T020000Z-nightly"


TO_RECORDING = PublishSettings(name="memory", type="recording", timeout="1h")


def clock(pauses: list[float] | None = None) -> PublisherClock:
    return PublisherClock(sleep=(pauses if pauses is not None else []).append, random=lambda: 0.5)


def test_a_run_and_the_earlier_ones_that_are_missing_are_published(audits: Path, recording: type[Recording]) -> None:
    published = publish_run(run_of(audits, "22"), TO_RECORDING)
    assert recording.calls == [run_of(audits, day).name for day in ("22", "21", "20")]
    assert re.fullmatch(r"memory: 3 runs published in \d\.\d s \(memory\)", published.sentence)
    assert publish_missing(audits, TO_RECORDING).sentence == "memory: has all runs (memory)"
    recording.runs[run_of(audits, "20").name] = "another digest: it was resumed since"
    assert publish_missing(audits, TO_RECORDING).runs == (run_of(audits, "20").name,)


def test_failures_that_may_pass_are_retried_with_growing_pauses(audits: Path, recording: type[Recording]) -> None:
    recording.failures[:] = [DestinationError("down") for _ in range(3)]
    pauses: list[float] = []
    assert publish_run(run_of(audits, "22"), TO_RECORDING, catch_up=False, clock=clock(pauses)).error is None
    assert pauses == [0.5, 1.0, 2.0]
    recording.failures[:] = [DestinationError("down") for _ in range(100)]
    failed = publish_run(run_of(audits, "22"), TO_RECORDING, clock=clock())
    assert (failed.error, failed.runs, failed.sentence) == ("down", (), "memory: down")
    assert len(recording.failures) == 100 - publisher.BACKOFF.max_attempts


def test_other_failures_are_not_retried_and_their_texts_not_shown(audits: Path, recording: type[Recording]) -> None:
    final = DestinationError("the password is wrong", retryable=False)
    recording.failures[:] = [final, ValueError("https://user:CANARY@host")]
    assert publish_run(run_of(audits, "22"), TO_RECORDING, clock=clock()).error == "the password is wrong"
    assert publish_run(run_of(audits, "22"), TO_RECORDING, clock=clock()).error == "an unexpected error (ValueError)"


def test_no_pause_goes_over_the_time_limit(audits: Path, recording: type[Recording]) -> None:
    recording.failures[:] = [DestinationError("down") for _ in range(100)]
    short = msgspec.structs.replace(TO_RECORDING, timeout="1s")
    pauses: list[float] = []
    assert publish_run(run_of(audits, "22"), short, clock=clock(pauses)).error == "down"
    assert pauses == [0.5]


def test_a_destination_that_was_down_is_caught_up_by_the_next_run(audits: Path, recording: type[Recording]) -> None:
    for day in DAYS[:2]:
        recording.failures[:] = [DestinationError("down") for _ in range(6)]
        assert publish_run(run_of(audits, day), TO_RECORDING, clock=clock()).error == "down"
    publish_run(run_of(audits, "22"), TO_RECORDING)
    assert set(recording.runs) == {path.name for path in audits.iterdir()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: replace(m, state="running"), "has not ended"),
        (lambda m: replace(m, state="aborted"), "was stopped; resume it"),
        (lambda m: replace(m, files=()), "has no sealed files"),
        (lambda m: replace(m, files=(replace(m.files[0], bytes=1),)), "is not the file that was sealed"),
    ],
)
def test_only_runs_that_verified_and_are_unchanged_are_published(
    audits: Path, recording: type[Recording], change: Callable[[Any], Any], sentence: str
) -> None:
    edit_manifest(run_of(audits, "21"), change)
    with pytest.raises(RunFolderError, match=sentence):
        publish_run(run_of(audits, "21"), TO_RECORDING)
    assert publish_missing(audits, TO_RECORDING).error is None  # it does not block the others
    assert set(recording.runs) == {run_of(audits, day).name for day in ("20", "22")}


def test_a_trial_is_published_by_hand_only_and_an_interrupted_run_after_a_resume(
    audits: Path, recording: type[Recording]
) -> None:
    edit_manifest(run_of(audits, "21"), lambda m: replace(m, trial=True))
    edit_manifest(run_of(audits, "20"), lambda m: replace(m, exit_reason=ExitReason("interrupted", "by SIGINT")))
    publish_missing(audits, TO_RECORDING)
    assert set(recording.runs) == {run_of(audits, "22").name}
    publish_run(run_of(audits, "21"), TO_RECORDING, catch_up=False)
    assert run_of(audits, "21").name in recording.runs
    with pytest.raises(RunFolderError, match="it was interrupted; resume it"):
        publish_run(run_of(audits, "20"), TO_RECORDING)


ACCOUNT = {"name": "eu", "endpoint": "https://x", "access_key_id": "a", "access_key_secret": {"env": "EU_SECRET"}}


def settings_with(*tables: dict[str, Any]) -> Any:
    return parse_settings({"account": [ACCOUNT], "publish": list(tables)})


class TestHook:
    def test_a_run_is_published_after_it_and_nothing_in_its_folder_changes(self, audits: Path, tmp_path: Path) -> None:
        hooks = prepare_hooks(
            settings_with({"name": "lake", "type": "files", "options": {"to": str(tmp_path / "lake")}})
        )
        run = run_of(audits, "22")
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        done = run_hooks(run, hooks)
        assert (done.exit_code, done.problems) == (0, ())
        assert re.fullmatch(rf"lake: 3 runs published in [\d.]+ s \({tmp_path}/lake\)", done.published[0])
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        assert len(list((tmp_path / "lake" / "runs").iterdir())) == 3

    def test_a_destination_that_fails_is_a_problem_and_the_exit_code_stays(
        self, audits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publisher, "BACKOFF", Backoff(max_attempts=1))
        (tmp_path / "lake").write_text("a file")
        tables = [
            {"name": name, "type": "files", "options": {"to": str(tmp_path / name)}} for name in ("lake", "other")
        ]
        done = run_hooks(run_of(audits, "22"), prepare_hooks(settings_with(*tables)))
        assert done.exit_code == 0
        (problem,) = done.problems
        assert re.fullmatch(r"the run could not be published: lake: .*/lake.* cannot be .*", problem)
        assert [sentence.partition(":")[0] for sentence in done.published] == ["other"]

    def test_a_run_that_did_not_verify_is_not_published(self, audits: Path, tmp_path: Path) -> None:
        hooks = prepare_hooks(
            settings_with({"name": "lake", "type": "files", "options": {"to": str(tmp_path / "lake")}})
        )
        edit_manifest(run_of(audits, "22"), lambda m: replace(m, state="aborted", exit_code=3))
        assert run_hooks(run_of(audits, "22"), hooks, exit_code=3).outcomes == ()
        assert not (tmp_path / "lake").exists()

    def test_a_trial_publishes_nothing(self) -> None:
        hooks = prepare_hooks(settings_with({"name": "lake", "type": "files", "options": {"to": "lake"}})).for_trial()
        assert (hooks.publish, hooks.withheld) == ((), ("publishing",))

    def test_a_mistake_is_reported_before_the_run_and_a_note_of_a_resume(self) -> None:
        wrong = settings_with({"name": "lake", "type": "files", "options": {"to": "ftp://x"}})
        with pytest.raises(SettingsError, match='publish "lake": ftp://x: give a directory'):
            prepare_hooks(wrong)
        hooks = prepare_resume_hooks(wrong)
        assert hooks.publish == ()
        assert "nothing will be published" in hooks.notes[0]

    def test_nothing_of_publishing_is_imported_without_a_destination(self, audits: Path) -> None:
        script = f"""
import sys
from auditor.config.loader import parse_settings
from auditor.hooks.prepare import prepare_hooks
from auditor.hooks.runner import run_hooks
import auditor.cli.app
run_hooks({str(run_of(audits, "22"))!r}, prepare_hooks(parse_settings({{"account": [{ACCOUNT!r}]}})))
assert not [name for name in sys.modules if name.startswith(("auditor.publish", "obstore"))]
from auditor.publish.publisher import publish_run
assert "obstore" not in sys.modules
"""
        import subprocess

        subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_settings_are_stored_without_secrets_and_are_the_same_again(tmp_path: Path) -> None:
    options = {
        "to": "s3://lake/x",
        "access_key_id": {"env": "ID"},
        "secret_access_key": {"file": str(tmp_path / "key")},
        "ca_file": "ca.pem",
    }
    settings = settings_with({"name": "lake", "type": "files", "options": options})
    stored = settings_to_dict(settings)
    assert stored["publish"][0]["options"]["secret_access_key"] == {"file": str(tmp_path / "key")}
    assert parse_settings(stored).publish == settings.publish
    assert settings.publish[0].options["ca_file"] == str(Path("ca.pem").absolute())
    assert isinstance(settings.publish[0].options["access_key_id"], SecretSource)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"name": "lake"}, "publish 1: has no type"),
        ({"name": "a b", "type": "files"}, "name: use up to 64"),
        ({"name": "l", "type": "files", "options": {"password": "CANARY"}}, "password: keep it out of the settings"),
        ({"name": "l", "type": "files", "options": {"account_key": "CANARY"}}, "account_key: keep it out"),
        (
            {"name": "l", "type": "files", "options": {"to": "s3://user:CANARY@lake"}},
            "leave password and parameters out",
        ),
        (
            {"name": "l", "type": "files", "options": {"to": "s3://lake?sig=CANARY"}},
            "leave password and parameters out",
        ),
        ({"name": "l", "type": "files", "timeout": "soon"}, "timeout: 'soon' is not a duration"),
        ({"name": "l", "type": "files", "options": {"x": {"env": "A", "file": "B"}}}, "give one of"),
        ({"name": "l", "type": "files", "options": {"to": 1.5}}, "options: to: give options such as"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_without_secrets(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(sentence)) as caught:
        settings_with(table)
    assert "CANARY" not in str(caught.value)


POSTGRESQL = {"host": "db.example.com", "database": "iot", "user": "publisher"}


@pytest.mark.parametrize(
    ("type_", "options", "sentence"),
    [
        ("files", {"to": "{folder}/missing/lake"}, "to: {folder}/missing: is no directory"),
        ("files", {"to": "{folder}/file"}, "to: {folder}/file: is no directory"),
        ("postgresql", {**POSTGRESQL, "password": SecretSource(env="PG_UNSET")}, "password: .*PG_UNSET is not set"),
        (
            "postgresql",
            {**POSTGRESQL, "certificate_file": "{folder}/file", "key_file": "{folder}/none"},
            "key_file: {folder}/none: is missing",
        ),
    ],
)
def test_what_a_destination_lacks_on_this_machine_is_a_sentence(
    type_: str, options: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PG_UNSET", raising=False)
    (tmp_path / "file").write_text("a file")
    options = {
        key: value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in options.items()
    }
    expected = rf'^nightly.toml: publish "there": {sentence.replace("{folder}", str(tmp_path))}'
    with pytest.raises(SettingsError, match=expected):
        check_destination(PublishSettings(name="there", type=type_, options=options), "nightly.toml")


def test_a_package_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    table = PublishSettings(name="there", type="postgresql", options=dict(POSTGRESQL))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r'publish "there": .* needs psycopg: pip install'):
        check_destination(table)


def test_a_destination_that_lacks_nothing_is_described(tmp_path: Path) -> None:
    table = PublishSettings(name="there", type="files", options={"to": str(tmp_path / "lake")})
    assert check_destination(table) == str(tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def test_two_destinations_of_one_name_are_refused() -> None:
    table = {"name": "lake", "type": "files", "options": {"to": "x"}}
    with pytest.raises(SettingsError, match="two destinations have this name"):
        settings_with(table, table)


class TestCommands:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Path:
        path = tmp_path / "nightly.toml"
        path.write_text(f"""
[[account]]
name = "eu"
endpoint = "https://x"
access_key_id = "a"
access_key_secret = {{ env = "EU_SECRET" }}
[[publish]]
name = "lake"
type = "files"
options = {{ to = "{tmp_path}/lake" }}
[[publish]]
name = "other"
type = "files"
options = {{ to = "{tmp_path}/other" }}
""")
        return path

    @pytest.mark.slow
    def test_publish_missing_fetch_and_sql(
        self, audits: Path, settings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["publish", str(audits), "--settings", str(settings), "--to", "lake"]) == 0
        assert re.fullmatch(r"lake: 20261122T020000Z-nightly published in .*\n", capfd.readouterr().err)
        assert main(["publish", str(audits), "--settings", str(settings), "--missing"]) == 0
        error = capfd.readouterr().err
        assert re.search(r"^lake: 2 runs published", error, re.MULTILINE)
        assert re.search(r"^other: 3 runs published", error, re.MULTILINE)
        assert main(["fetch", "lake", str(tmp_path / "copy"), "--settings", str(settings)]) == 0
        assert "20261122T020000Z-nightly: 3 devices fetched, digests verified" in capfd.readouterr().err
        assert (
            main(
                [
                    "sql",
                    "--dataset",
                    str(tmp_path / "copy"),
                    "SELECT run, count(*) AS n FROM modules GROUP BY run",
                    "--format",
                    "csv",
                ]
            )
            == 0
        )
        assert capfd.readouterr().out.splitlines()[-1] == "20261122T020000Z-nightly,3"
        assert (
            main(["fetch", str(tmp_path / "other"), str(tmp_path / "copy"), "--run", "20261120T020000Z-nightly"]) == 0
        )

    def test_of_a_directory_the_newest_run_is_published_that_is_no_trial(
        self, audits: Path, settings: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        publish = ["publish", "--settings", str(settings), "--to", "lake"]
        edit_manifest(run_of(audits, "22"), lambda m: replace(m, trial=True))
        edit_manifest(run_of(audits, "21"), lambda m: replace(m, exit_reason=ExitReason("interrupted", "by SIGINT")))
        assert main([*publish, str(audits)]) == 0
        assert "lake: 20261120T020000Z-nightly published" in capfd.readouterr().err
        assert main([*publish, str(run_of(audits, "22"))]) == 0
        error = capfd.readouterr().err
        assert "20261122T020000Z-nightly is a trial" in error
        assert "lake: 20261122T020000Z-nightly published" in error
        assert main([*publish, str(run_of(audits, "21"))]) == 2
        assert "it was interrupted; resume it" in capfd.readouterr().err
        edit_manifest(run_of(audits, "20"), lambda m: replace(m, trial=True))
        assert main([*publish, str(audits)]) == 2
        assert "contains no run that ended, verified" in capfd.readouterr().err

    def test_check_prints_a_line_for_each_destination(
        self, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EU_SECRET", "s")
        (tmp_path / "fleet.csv").write_text("product_key,device_name\np1,d1\n")
        content = settings.read_text().replace("https://x", "http://127.0.0.1:9")
        content = content.replace(f"{tmp_path}/other", f"{tmp_path}/missing/other")
        settings.write_text(f"max_attempts = 1\ngive_up_after = 1\n{content}")
        assert main(["check", str(settings), "--fleet", str(tmp_path / "fleet.csv")]) == 3
        lines = capfd.readouterr().out.splitlines()
        assert f"ok   publish lake: {tmp_path}/lake" in lines
        assert any(
            re.match(rf'FAIL .*publish "other": to: {tmp_path}/missing: is no directory', line) for line in lines
        )

    def test_mistakes_are_a_sentence_and_2(
        self, audits: Path, settings: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["publish", str(audits), "--settings", str(settings), "--to", "sea"]) == 2
        assert "--to sea: is no destination; the settings have lake, other" in capfd.readouterr().err
        assert main(["publish", str(audits / "none"), "--settings", str(settings)]) == 2
        settings.write_text(settings.read_text().partition("[[publish]]")[0])
        assert main(["publish", str(audits), "--settings", str(settings)]) == 2
        assert "have no [[publish]]" in capfd.readouterr().err

    def test_a_destination_that_fails_is_3(
        self, audits: Path, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publisher, "BACKOFF", Backoff(max_attempts=1))
        (tmp_path / "lake").write_text("a file")
        assert main(["publish", str(audits), "--settings", str(settings)]) == 3
        assert (tmp_path / "other" / "latest" / "nightly.json").exists()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with simulated_s3(tmp_path_factory.mktemp("s3")) as simulated:
        yield simulated


def s3_settings(s3: S3, folder: str, **changed: Any) -> PublishSettings:
    keys: dict[str, OptionSetting] = {"access_key_id": SecretSource(env="LAKE_ID"), "secret_access_key": SecretSource(env="LAKE_SECRET"),
            "session_token": SecretSource(env="LAKE_TOKEN")}  # fmt: skip
    options: dict[str, OptionSetting] = {"to": f"s3://lake/{folder}", **s3.options, **keys}
    return PublishSettings(name="lake", type="files", options=options, **changed)


@needs_s3
class TestS3:
    @pytest.fixture(autouse=True)
    def keys(self, monkeypatch: pytest.MonkeyPatch, s3: S3) -> None:
        for name in ("ID", "SECRET", "TOKEN"):
            monkeypatch.setenv(f"LAKE_{name}", f"CANARY{name}")
        s3.failures = 0.0

    def test_a_run_is_published_in_spite_of_503s_and_cut_connections(
        self, audits: Path, s3: S3, tmp_path: Path
    ) -> None:
        s3.failures = 0.15
        assert publish_run(run_of(audits, "22"), s3_settings(s3, tmp_path.name), clock=clock()).error is None
        s3.failures = 0.0
        assert publish_missing(audits, s3_settings(s3, tmp_path.name)).runs == ()

    @pytest.mark.slow
    def test_no_secret_is_in_an_error_a_log_or_a_run(
        self,
        audits: Path,
        s3: S3,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        monkeypatch.setattr("auditor.storage.cloud_store.MAX_RETRIES", 0)
        table = s3_settings(s3, "x", timeout="2s")
        shown = [repr(table), str(settings_to_dict(msgspec.structs.replace(settings_with(), publish=(table,))))]
        for failures, status in ((1.0, 403), (1.0, 503), (0.3, 500)):
            s3.failures, s3.status = failures, status
            failed = publish_run(run_of(audits, "22"), table)
            shown += [repr(failed), failed.sentence]
        s3.failures, s3.status = 0.0, 503
        hooks = prepare_hooks(
            msgspec.structs.replace(settings_with(), publish=(msgspec.structs.replace(table, timeout="30s"),))
        )
        shown.append(repr((hooks, run_hooks(run_of(audits, "22"), hooks))))
        shown += [path.read_bytes().decode("latin-1") for path in audits.rglob("*") if path.is_file()]
        captured = capfd.readouterr()
        for text in (*shown, caplog.text, captured.out, captured.err):
            assert "CANARY" not in text
        assert any("CANARYID" in str(headers) for *_, headers in s3.requests)  # the keys were used


def test_a_secret_that_is_not_there_is_a_sentence(audits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAKE_SECRET", raising=False)
    options: dict[str, OptionSetting] = {"to": "s3://lake/x", "secret_access_key": SecretSource(env="LAKE_SECRET")}
    pytest.importorskip("obstore")
    failed = publish_run(run_of(audits, "22"), PublishSettings(name="lake", type="files", options=options))
    assert failed.error == "secret_access_key: the environment variable LAKE_SECRET is not set, or empty"
