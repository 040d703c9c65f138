import time
from email.utils import parsedate_to_datetime
from urllib.parse import quote
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.client.signing import string_to_sign
from auditor.models import Dialect, Secret
from auditor.simulator.gateway import NonceMemory, read_parameters, signed_text
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.client.canonical import canonical_query
from tests.simulator.api_requests import ACTION, device_params, format_timestamp, get, signed_query

pytestmark = pytest.mark.anyio


async def assert_rejected(platform: Simulator, query: str, status: int, code: str, **how: str) -> None:
    seen = await get(platform, query, **how)
    assert (seen.status, seen.json["Code"]) == (status, code)
    assert set(seen.json) == {"RequestId", "HostId", "Code", "Message"}
    assert platform.counts.rejected_by_code[code] == 1


async def test_the_default_format_is_xml(platform: Simulator, world: World) -> None:
    device = world.device(1)
    seen = await get(platform, signed_query(device_params(device), constants={"Format": ""}))
    root = ET.fromstring(seen.body)
    assert seen.headers["Content-Type"].startswith("text/xml")
    assert (root.findtext("total"), root.findtext("success")) == ("3", "true")
    assert [entry.findtext("moduleName") for entry in root.iterfind("data/simpleOTAModuleInfo")] == [
        module.module_name for module in device.modules
    ]


async def test_errors_are_xml_by_default_too(platform: Simulator) -> None:
    seen = await get(platform, "Action=" + ACTION)
    root = ET.fromstring(seen.body)
    assert (root.tag, root.findtext("Code")) == ("Error", "MissingVersion")


@pytest.mark.parametrize(
    "name",
    ["Action", "Version", "AccessKeyId", "SignatureMethod", "SignatureVersion", "SignatureNonce", "Timestamp"],
)
async def test_a_missing_common_parameter_is_rejected(platform: Simulator, world: World, name: str) -> None:
    pieces = signed_query(device_params(world.device(1))).split("&")
    query = "&".join(piece for piece in pieces if not piece.startswith(f"{name}="))
    await assert_rejected(platform, query, 400, f"Missing{name}")


async def test_a_missing_signature_is_rejected(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1))).partition("&Signature=")[0]
    await assert_rejected(platform, query, 400, "MissingSignature")


async def test_an_unknown_key_is_rejected(platform: Simulator, world: World) -> None:
    stranger = SimulatedAccount("stranger", DEFAULT_ACCOUNT.secret)
    query = signed_query(device_params(world.device(1)), account=stranger)
    await assert_rejected(platform, query, 404, "InvalidAccessKeyId.NotFound")


async def test_each_account_has_its_own_secret(world: World) -> None:
    first, second = SimulatedAccount("first", Secret("one")), SimulatedAccount("second", Secret("two"))
    async with Simulator(world, accounts=[first, second]) as platform:
        for account in (first, second):
            assert (await get(platform, signed_query(device_params(world.device(1)), account=account))).status == 200
        swapped = SimulatedAccount("first", Secret("two"))
        await assert_rejected(
            platform, signed_query(device_params(world.device(1)), account=swapped), 400, "SignatureDoesNotMatch"
        )


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("SignatureMethod", "HMAC-SHA256", "InvalidSignatureMethod"),
        ("SignatureVersion", "2.0", "InvalidSignatureVersion"),
        ("Version", "2014-05-26", "InvalidVersion"),
    ],
)
async def test_another_version_or_method_is_rejected(
    platform: Simulator, world: World, name: str, value: str, code: str
) -> None:
    query = signed_query({**device_params(world.device(1)), name: value})
    pieces = [f"{name}={value}" if piece.startswith(f"{name}=") else piece for piece in query.split("&")]
    await assert_rejected(platform, "&".join(pieces), 400, code)


@pytest.mark.parametrize("text", ["now", "2026-11-22 02:00:00", "2026-11-22T02:00:00+00:00", "2026-13-01T00:00:00Z"])
async def test_a_malformed_timestamp_is_rejected(platform: Simulator, world: World, text: str) -> None:
    query = signed_query(device_params(world.device(1)), timestamp=text)
    await assert_rejected(platform, query, 400, "InvalidTimeStamp.Format")


@pytest.mark.parametrize("seconds", [-905, 905])
async def test_a_timestamp_over_15_minutes_off_is_rejected(platform: Simulator, world: World, seconds: int) -> None:
    query = signed_query(device_params(world.device(1)), timestamp=format_timestamp(time.time() + seconds))
    await assert_rejected(platform, query, 400, "InvalidTimeStamp.Expired")


@pytest.mark.parametrize("seconds", [-890, 890])
async def test_a_timestamp_under_15_minutes_off_is_accepted(platform: Simulator, world: World, seconds: int) -> None:
    query = signed_query(device_params(world.device(1)), timestamp=format_timestamp(time.time() + seconds))
    assert (await get(platform, query)).status == 200


async def test_an_error_response_has_the_time_of_the_server(world: World) -> None:
    async with Simulator(world, clock_offset=7200) as platform:
        seen = await get(platform, signed_query(device_params(world.device(1))))
        assert seen.code == "InvalidTimeStamp.Expired"
        server = parsedate_to_datetime(seen.headers["Date"]).timestamp()
        assert server == pytest.approx(time.time() + 7200, abs=3)
        assert (
            await get(platform, signed_query(device_params(world.device(1)), timestamp=format_timestamp(server)))
        ).status == 200


async def test_a_changed_parameter_breaks_the_signature(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1))).replace("CurrentPage=1", "CurrentPage=2")
    seen = await get(platform, query)
    assert (seen.status, seen.code) == (400, "SignatureDoesNotMatch")
    assert quote("CurrentPage%3D2", safe="%") in seen.json["Message"]


async def test_a_get_signed_as_a_post_is_rejected(platform: Simulator, world: World) -> None:
    await assert_rejected(
        platform, signed_query(device_params(world.device(1)), method="POST"), 400, "SignatureDoesNotMatch"
    )


async def test_an_added_parameter_must_be_signed_too(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1))) + "&RegionId=cn-shanghai"
    await assert_rejected(platform, query, 400, "SignatureDoesNotMatch")
    signed = signed_query({**device_params(world.device(1)), "RegionId": "cn-shanghai", "SignatureType": ""})
    assert (await get(platform, signed)).json["success"] is True


async def test_an_unescaped_plus_breaks_the_signature(platform: Simulator, world: World) -> None:
    for number in range(100):
        query = signed_query(device_params(world.device(1)), nonce=f"nonce-{number}")
        if "%2B" in query.partition("&Signature=")[2]:
            await assert_rejected(platform, query.replace("%2B", "+"), 400, "SignatureDoesNotMatch")
            break
    else:
        pytest.fail("no signature with a plus")


async def test_a_repeated_parameter_is_rejected(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1))) + "&PageSize=200"
    await assert_rejected(platform, query, 400, "InvalidParameter.Repeated")


async def test_a_used_nonce_is_rejected(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1)))
    assert (await get(platform, query)).status == 200
    await assert_rejected(platform, query, 400, "SignatureNonceUsed")


async def test_a_nonce_of_a_forged_request_is_not_used_up(platform: Simulator, world: World) -> None:
    forger = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, Secret("guessed"))
    await get(platform, signed_query(device_params(world.device(1)), nonce="once", account=forger))
    assert (await get(platform, signed_query(device_params(world.device(1)), nonce="once"))).status == 200


def test_a_nonce_is_stored_for_at_least_fifteen_minutes_and_not_forever() -> None:
    memory = NonceMemory()
    assert memory.is_new("key", "a", 1_000_000)
    assert memory.is_new("key", "b", 1_000_899)
    assert not memory.is_new("key", "a", 1_000_901)
    assert not memory.is_new("key", "b", 1_001_700)
    assert memory.is_new("key", "c", 1_001_900)
    assert memory.is_new("key", "a", 1_001_901)
    assert memory.is_new("other key", "c", 1_001_902)


def test_the_memory_of_nonces_is_bounded() -> None:
    memory = NonceMemory(max_nonces=10)
    for number in range(1_000):
        assert memory.is_new("key", str(number), 1_000_000)
    assert not memory.is_new("key", "995", 1_000_000)
    assert memory.is_new("key", "500", 1_000_000)


async def test_an_unknown_action_is_rejected(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1)), constants={"Action": "DeleteEverything"})
    await assert_rejected(platform, query, 404, "InvalidAction.NotFound")


async def test_another_method_is_rejected(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1)), method="PUT")
    await assert_rejected(platform, query, 405, "UnsupportedHTTPMethod", method="PUT")


async def test_the_parameters_of_a_post_may_be_in_its_body(platform: Simulator, world: World) -> None:
    query = signed_query(device_params(world.device(1)), method="POST")
    whole = await get(platform, "", method="POST", data=query)
    assert (whole.code, whole.json["total"]) == ("", 3)
    head, _, tail = signed_query(device_params(world.device(1)), method="POST").partition("&PageSize")
    assert (await get(platform, head, method="POST", data=f"PageSize{tail}")).json["total"] == 3


async def test_bytes_that_are_not_text_are_rejected_without_a_server_error(platform: Simulator) -> None:
    seen = await get(platform, "Format=JSON&Action=%FF%FE&Version=%ED%A0%80")
    assert (seen.status, seen.code) == (400, "MissingAccessKeyId")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20)), st.sampled_from(["GET", "POST"]))
def test_the_signed_text_of_the_server_is_that_of_the_signing_module(parameters: dict[str, str], method: str) -> None:
    parameters.pop("Signature", None)
    expected = string_to_sign(method, canonical_query(parameters))
    assert signed_text(method, {**parameters, "Signature": "x"}) == expected


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=20)))
def test_escaped_parameters_are_read_back_unchanged(parameters: dict[str, str]) -> None:
    read: dict[str, str] = {}
    read_parameters(canonical_query(parameters), read)
    assert read == parameters


@pytest.mark.parametrize("kind", ["fixed", "sliding", "bucket"])
async def test_a_request_over_the_quota_is_throttled(world: World, kind: str) -> None:
    account = SimulatedAccount("key", Secret("secret"), calls_per_second=0.01)
    async with Simulator(world, accounts=[account], window=kind, record_arrivals=True) as platform:  # type: ignore[arg-type]
        first = await get(platform, signed_query(device_params(world.device(1)), account=account))
        second = await get(platform, signed_query(device_params(world.device(1)), account=account))
    assert first.status == 200
    assert (second.status, second.code) == (400, "Throttling.User")
    assert "x-acs-retry-after" not in {name.lower() for name in second.headers}
    assert (platform.counts.received, platform.counts.answered, platform.counts.throttled) == (2, 1, 1)
    assert platform.arrivals is not None
    assert [abs(arrival - time.monotonic()) < 10 for arrival in platform.arrivals] == [True, True]


async def test_a_throttling_response_can_have_a_delay(world: World) -> None:
    account = SimulatedAccount("key", Secret("secret"), calls_per_second=1)
    async with Simulator(world, accounts=[account], send_retry_after=True) as platform:
        await get(platform, signed_query(device_params(world.device(1)), account=account))
        seen = await get(platform, signed_query(device_params(world.device(1)), account=account))
    assert 0 < int(seen.headers["x-acs-retry-after"]) <= 1001


async def test_unsigned_requests_do_not_use_up_the_quota(world: World) -> None:
    account = SimulatedAccount("key", Secret("secret"), calls_per_second=0.01)
    forger = SimulatedAccount("key", Secret("guessed"))
    async with Simulator(world, accounts=[account]) as platform:
        await get(platform, signed_query(device_params(world.device(1)), account=forger))
        assert (await get(platform, signed_query(device_params(world.device(1)), account=account))).status == 200


async def test_a_revoked_key_is_rejected_from_then_on_and_other_keys_are_not(world: World) -> None:
    one, two = (SimulatedAccount(name, Secret("secret")) for name in ("one", "two"))
    async with Simulator(world, accounts=[one, two]) as platform:
        assert (await get(platform, signed_query(device_params(world.device(1)), account=one))).status == 200
        platform.revoke("one")
        await assert_rejected(
            platform, signed_query(device_params(world.device(1)), account=one), 403, "InvalidAccessKeyId.Inactive"
        )
        assert (await get(platform, signed_query(device_params(world.device(1)), account=two))).status == 200
        with pytest.raises(KeyError):
            platform.revoke("three")


async def test_accounts_and_operations_have_separate_quotas(world: World) -> None:
    accounts = [SimulatedAccount(name, Secret("secret"), calls_per_second=0.01) for name in ("one", "two")]
    async with Simulator(world, accounts=accounts) as platform:
        for account in accounts:
            assert (await get(platform, signed_query(device_params(world.device(1)), account=account))).status == 200
        unknown = signed_query({}, account=accounts[0], constants={"Action": "Other"})
        assert (await get(platform, unknown)).code == "InvalidAction.NotFound"


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_the_gateway_uses_pascal_case_in_both_dialects(world: World, dialect: Dialect) -> None:
    async with Simulator(world, dialect=dialect) as platform:
        await assert_rejected(platform, "Format=JSON", 400, "MissingAction")
