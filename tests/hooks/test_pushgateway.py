"""Metrics that are pushed: to a real Pushgateway, and to receivers that refuse them."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from auditor.config.sections import PushgatewaySettings
from auditor.config.settings import SecretSource
from auditor.errors import SettingsError, WebhookError
from auditor.hooks.http_post import PostLimits
from auditor.hooks.prometheus import render_metrics
from auditor.hooks.pushgateway import Pushgateway, open_pushgateway
from auditor.resilience.retry import Backoff
from tests.hooks.pushgateway_server import PASSWORD, USER, Gateway, needs_pushgateway, serving_pushgateway
from tests.hooks.receiver import receiving
from tests.runs.run_folders import every_status

NOW = PostLimits(seconds=0.5, attempt_seconds=0.5)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serving_pushgateway(tmp_path_factory.mktemp("pushgateway")) as found:
        yield found


def opened(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    password: str = PASSWORD,
    run: str = "nightly",
    job: str = "auditor",
) -> Pushgateway:
    monkeypatch.setenv("GATEWAY_PASSWORD", password)
    source = SecretSource(env="GATEWAY_PASSWORD")
    return open_pushgateway(
        PushgatewaySettings(address=address, job=job, username=USER, password=source), run, "x.toml"
    )


def push(gateway: Pushgateway, text: bytes, **options: object) -> None:
    anyio.run(lambda: gateway.push(text, **options))  # type: ignore[arg-type]


@needs_pushgateway
def test_a_pushgateway_has_each_sample_of_a_run(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = render_metrics(every_status(tmp_path / "run").folder)
    push(opened(gateway.address, monkeypatch), text)
    expected = {
        (sample.name, tuple(sorted((sample.labels | {"job": "auditor"}).items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    assert len(expected) > 80
    found = gateway.samples()
    # A label without text is no label, for the Pushgateway as for Prometheus.
    assert {(n, tuple((k, v) for k, v in labels if v)): value for (n, labels), value in found.items()} == {
        (n, tuple((k, v) for k, v in labels if v)): value for (n, labels), value in expected.items()
    }


@needs_pushgateway
def test_a_push_at_the_end_replaces_all_metrics_and_one_meanwhile_its_own(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = opened(gateway.address, monkeypatch, run="a/b ü", job="jobs/x")
    push(target, b"auditor_old 1\nauditor_now 0\n")
    push(target, b"auditor_now 1\n", method="POST")
    labels = (("job", "jobs/x"), ("run", "a/b ü"))
    found = {key: value for key, value in gateway.samples().items() if key[1] == labels}
    assert found == {("auditor_old", labels): 1, ("auditor_now", labels): 1}
    push(target, b"auditor_now 0\n")
    assert {key: v for key, v in gateway.samples().items() if key[1] == labels} == {("auditor_now", labels): 0}


@needs_pushgateway
def test_a_refusal_is_an_error_without_address_and_password(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = opened(gateway.address, monkeypatch, password="wr0ng-password")
    with pytest.raises(WebhookError) as refused:
        push(wrong, b"auditor_running 1\n")
    assert str(refused.value) == "the Pushgateway answered 401: the request was rejected"
    assert "wr0ng" not in repr(wrong)
    assert "127.0.0.1" not in repr(wrong)
    with pytest.raises(WebhookError, match="answered 400: the request was rejected"):
        push(opened(gateway.address, monkeypatch), b"auditor_running one\n")


def test_a_push_is_repeated_after_a_failure_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.hooks.http_post.BACKOFF", Backoff(max_attempts=4, initial_delay=0.01, max_delay=0.01))
    with receiving(503, 200) as receiver:
        push(opened(receiver.address.partition("?")[0], monkeypatch), b"auditor_running 1\n", method="POST")
    assert receiver.bodies == [b"auditor_running 1\n"] * 2
    assert receiver.headers[0]["Content-Type"].startswith("text/plain; version=0.0.4")


def test_a_redirect_does_not_get_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(307) as receiver, pytest.raises(WebhookError, match="redirects are not allowed"):
        push(opened(receiver.address.partition("?")[0], monkeypatch), b"", method="POST", limits=NOW)


def test_a_server_that_is_down_takes_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WebhookError, match="the Pushgateway cannot be reached: Connection refused"):
        push(opened("http://127.0.0.1:9", monkeypatch), b"", limits=NOW)


def test_a_password_that_is_not_there_is_named() -> None:
    settings = PushgatewaySettings(address="http://x", username="a", password=SecretSource(env="GATEWAY_NONE"))
    with pytest.raises(SettingsError, match=r"x\.toml: password: the environment variable GATEWAY_NONE is not set"):
        open_pushgateway(settings, "nightly", "x.toml")
