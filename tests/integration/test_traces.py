"""A whole audit with its hooks as a collector sees it: each part has a span in its place, and no span has a secret."""

import re
from pathlib import Path

import anyio
import pytest

import auditor
from auditor.cli.execution import trace_command
from auditor.config.settings import PublishSettings
from auditor.engine import slow_devices
from auditor.fleet.discovery import discover_fleets
from auditor.hooks.prepare import prepare_hooks
from auditor.hooks.runner import run_hooks
from auditor.publish import publisher
from auditor.publish.publisher import publish_run
from auditor.resilience.retry import Backoff
from auditor.simulator.faults import Faults
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from auditor.tracing import use_tracer
from tests.collector import ReceivedSpan, collector
from tests.integration.test_audit import account_table, settings_for
from tests.test_tracing import Recorder

DOCUMENT = Path(__file__).parents[2] / "docs" / "tracing.md"
TOKEN = "canary-token"


def below(spans: list[ReceivedSpan], span: ReceivedSpan) -> list[str]:
    """Return the names of the spans directly below a span, in the order of their beginning."""
    return [each.name for each in sorted(spans, key=lambda each: each.began) if each.parent == span.id]


def assert_requests_of_slow_devices(spans: list[ReceivedSpan]) -> None:
    """Check that each slow device has a span for each of its requests, by the conventions for HTTP."""
    for device in (each for each in spans if each.name == "device"):
        requests = [each for each in spans if each.parent == device.id]
        assert len(requests) == device.attributes["auditor.device.attempts"]
        assert all(each.is_client and each.attributes["http.request.method"] == "POST" for each in requests)
        assert all(device.began <= each.began <= each.ended <= device.ended for each in requests)
    requests = [each for each in spans if each.name == "POST"]
    assert [each for each in requests if "http.request.resend_count" in each.attributes]
    assert {each.attributes["http.response.status_code"] for each in requests} == {200, 503}


@pytest.mark.slow
@pytest.mark.anyio
async def test_every_part_of_an_audit_has_a_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_devices, "SLOW_NANOSECONDS", 0)
    world = World(30, large=0, missing=0, silent=0, inactive=0)
    world.write_fleet(tmp_path / "fleet.csv")
    keys = [SimulatedAccount(key, DEFAULT_ACCOUNT.secret) for key in ("eu", "us")]
    with collector() as received, collector(status=400) as webhook:
        monkeypatch.setenv("WEBHOOK", f"http://user:{TOKEN}@127.0.0.1:{webhook.port}/{TOKEN}?sig={TOKEN}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={TOKEN}")
        async with Simulator(world, accounts=keys, faults=Faults(unavailable=0.1), seed=3) as platform:
            listed = {"products": "all"}
            tables = [
                account_table(platform.endpoint, tmp_path, name="eu", access_key_id="eu", fleet=listed),
                account_table(platform.endpoint, tmp_path, name="us", access_key_id="us"),
                account_table(platform.endpoint, tmp_path, name="dead", access_key_id="dead"),
            ]
            settings = settings_for(
                tmp_path,
                *tables,
                max_calls=500,
                released=True,
                report={"metrics": str(tmp_path / "auditor.prom")},
                notify=[{"name": "ops", "webhook": {"env": "WEBHOOK"}}],
                publish=[{"name": "lake", "type": "files", "options": {"to": str(tmp_path / "lake")}}],
            )
            hooks = prepare_hooks(settings, source="test")
            with trace_command("run") as command:
                result = await auditor.run_audit(settings, with_hooks=True)
                run_hooks(result.folder, hooks, exit_code=result.exit_code)
                command.set({"process.exit.code": result.exit_code})
    spans = received.spans
    assert len({each.trace for each in spans}) == 1
    (root,), (run,) = received.named("auditor run"), received.named("run")
    assert below(spans, root)[:1] == ["run"]
    assert set(below(spans, root)[1:]) == {"hook"}
    assert sorted(set(below(spans, run))) == ["account", "releases", "seal", "verify"]
    accounts = {str(each.attributes["auditor.account.name"]): each for each in received.named("account")}
    assert below(spans, accounts["eu"])[0] == "discovery"
    assert set(below(spans, accounts["us"])) == {"device", "selection"}
    assert below(spans, accounts["us"]).count("device") == slow_devices.MAX_SPANS
    assert accounts["us"].attributes["auditor.devices.slow"] == 30
    assert accounts["us"].attributes["auditor.devices.done"] == 30
    assert accounts["dead"].attributes["error.type"] == "refused_account"
    assert run.attributes["auditor.run.exit_reason"] == run.attributes["error.type"] == "refused_account"
    assert run.attributes["auditor.devices.fleet"] == result.manifest.fleet.devices
    assert run.attributes["auditor.requests.sent"] == result.manifest.requests.sent
    assert_requests_of_slow_devices(spans)
    hooks_run = {str(each.attributes["auditor.hook.name"]): each for each in received.named("hook")}
    assert {"metrics", "notify"} <= hooks_run.keys()
    (sending,) = received.named("notify")
    assert sending.parent == hooks_run["notify"].id
    assert (sending.failed, sending.attributes["auditor.messages.failed"]) == (True, 1)
    assert not hooks_run["metrics"].failed
    content = b"".join(received.bodies)
    for secret in (TOKEN, DEFAULT_ACCOUNT.secret.reveal(), "Signature", "AccessKeyId"):
        assert secret.encode() not in content
    assert sum(each.texts for each in spans) == 0
    documented = set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", DOCUMENT.read_text()))
    assert {each.name for each in spans} - documented == set()
    assert {name for each in spans for name in each.attributes} - documented == set()


@pytest.mark.slow
def test_listing_a_fleet_and_publishing_a_run_have_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "BACKOFF", Backoff(max_attempts=1))
    world = World(5, large=0, missing=0, silent=0, inactive=0)
    recorder = Recorder()
    (tmp_path / "work").mkdir()

    async def audit() -> auditor.AuditResult:
        async with Simulator(world) as platform:
            fleet = {"products": "all"}
            settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path, fleet=fleet))
            await discover_fleets(settings, tmp_path / "work")
            world.write_fleet(tmp_path / "fleet.csv")
            return await auditor.run_audit(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)))

    with use_tracer(recorder):
        folder = anyio.run(audit).folder
        here = PublishSettings("lake", "files", {"to": str(tmp_path / "lake")})
        nowhere = PublishSettings("away", "files", {"to": f"{folder / 'run.json'}/lake"})
        assert publish_run(folder, here).error is None
        assert publish_run(folder, nowhere).error is not None
    names = [line[1] for line in recorder.lines if isinstance(line, tuple) and line[0] == "begin"]
    assert names == ["discovery", "run", "account", "seal", "verify", "publish", "publish"]
    assert recorder.lines[-2:] == [("fail", "not_published"), ("end", "publish")]
    assert [line for line in recorder.lines if line == ("fail", "not_published")] == [("fail", "not_published")]
