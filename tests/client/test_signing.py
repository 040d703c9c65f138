"""Signatures: the published vector, and the vendor's SDK as the reference for everything else."""

import random
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import pytest
from alibabacloud_openapi_util.client import Client as OpenApiUtil
from aliyunsdkcore.auth.composer import rpc_signature_composer as vendor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.client.signing import Signer, percent_encode, signature, string_to_sign
from auditor.models import Secret
from tests.client.canonical import canonical_query

VECTOR = {
    "AccessKeyId": "testid",
    "Action": "DescribeRegions",
    "Format": "XML",
    "SignatureMethod": "HMAC-SHA1",
    "SignatureNonce": "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf",
    "SignatureVersion": "1.0",
    "Timestamp": "2016-02-23T12:46:24Z",
    "Version": "2014-05-26",
}
PUBLISHED = "OLeaidS1JvxuMvnyHOwuJ+uX5qY="

# Outside a class the double underscores are plain names, but only getattr says so without mangling being a question.
compose = getattr(vendor, "__compose_string_to_sign")
sign_by_vendor = getattr(vendor, "__get_signature")

AWKWARD = (
    "", " ", "  ", "*", "~", "+", "/", "%", "%7E", "%2A", "%20", "&", "=", "?", "#", "'", '"', "!", "(", ")", "-_.~",
     "a b", "\u6a21\u5757", "\u56fa\u4ef6 v2", "\U0001f600", "\u00e9", "e\u0301", "\n", "\x00", "\x7f", "\u200b", "\ufeff",
)  # fmt: skip
awkward = st.sampled_from(AWKWARD)
texts = st.one_of(
    awkward, st.text(max_size=12), st.lists(awkward | st.text("abAB09", max_size=4), max_size=5).map("".join)
).filter(lambda text: not re.search("[\ud800-\udfff]", text))
names = texts.filter(bool)


def test_the_published_vector() -> None:
    query = canonical_query(VECTOR)
    assert signature(Secret("testsecret"), string_to_sign("GET", query)) == PUBLISHED


def test_the_signer_puts_the_published_vector_together() -> None:
    signer = Signer("testid", Secret("testsecret"), {"Format": "XML"})
    own = {"Action": "DescribeRegions", "Version": "2014-05-26"}
    query, signed = signer.sign("GET", own, timestamp=VECTOR["Timestamp"], nonce=VECTOR["SignatureNonce"])
    assert signed == PUBLISHED
    assert query == f"{canonical_query(VECTOR)}&Signature=OLeaidS1JvxuMvnyHOwuJ%2BuX5qY%3D"


@settings(max_examples=400, deadline=None)
@given(
    parameters=st.dictionaries(names, texts, max_size=8),
    method=st.sampled_from(["GET", "POST"]),
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
)
@example(parameters={"a": "%7E", "A": "~", "a b": "*+ /", "\u8bbe\u5907": "\U0001f600"}, method="POST", secret="s")
def test_any_parameters_are_signed_as_the_vendors_sdk_signs_them(
    parameters: dict[str, str], method: str, secret: str
) -> None:
    theirs = compose(method, parameters)
    ours = string_to_sign(method, canonical_query(parameters))
    assert ours == theirs
    assert signature(Secret(secret), ours) == sign_by_vendor(theirs, secret)


def test_thousands_of_parameter_sets_are_signed_as_the_vendors_sdk_signs_them() -> None:
    draw = random.Random(20241119)
    pieces = (*AWKWARD, *"abcXYZ019", "Action", "IotId")

    def text(least: int) -> str:
        return "".join(draw.choices(pieces, k=draw.randint(least, 5)))

    for _ in range(3000):
        parameters = {text(1): text(0) for _ in range(draw.randint(0, 8))}
        method, secret = draw.choice(("GET", "POST")), draw.choice(("s", "testsecret", "a/b+c="))
        theirs = compose(method, parameters)
        ours = string_to_sign(method, canonical_query(parameters))
        assert ours == theirs, parameters
        assert signature(Secret(secret), ours) == sign_by_vendor(theirs, secret)


@settings(max_examples=100, deadline=None)
@given(parameters=st.dictionaries(names, texts, max_size=6), method=st.sampled_from(["GET", "POST"]))
def test_a_whole_request_of_the_sdk_gets_the_same_signature_from_the_signer(
    parameters: dict[str, str], method: str
) -> None:
    url_parameters: dict[str, Any] = {name: value for name, value in parameters.items() if name != "Signature"}
    vendor.get_signed_url(url_parameters, "key-id", "the secret", "JSON", method, {})
    theirs = url_parameters.pop("Signature")
    stamp, nonce = url_parameters.pop("Timestamp"), url_parameters.pop("SignatureNonce")
    constants = {"SignatureType": url_parameters["SignatureType"], "Format": "JSON"}
    own = {name: value for name, value in url_parameters.items() if name not in SET_BY_THE_SIGNER}
    _, signed = Signer("key-id", Secret("the secret"), constants).sign(method, own, timestamp=stamp, nonce=nonce)
    assert signed == theirs


TOKENS = st.text(st.characters(codec="ascii", categories=("L", "N")) | st.sampled_from("+/=-_~%& *"), min_size=1)


@settings(max_examples=100, deadline=None)
@given(parameters=st.dictionaries(names, texts, max_size=4), method=st.sampled_from(["GET", "POST"]), token=TOKENS)
@example(parameters={"SecurityToken": "of a parameter"}, method="POST", token="CAIS+/==")
def test_a_security_token_is_signed_and_sent_as_the_signers_of_both_sdks_do(
    parameters: dict[str, str], method: str, token: str
) -> None:
    common = {"Format": "JSON", "SignatureMethod": "HMAC-SHA1", "SignatureVersion": "1.0", "AccessKeyId": "STS.key"}
    own = {name: value for name, value in parameters.items() if name not in {*common, "SecurityToken", "Signature"}}
    moment = {"Timestamp": "2026-11-29T12:00:00Z", "SignatureNonce": "nonce"}
    whole = {**own, **common, **moment, "SecurityToken": token}
    signer = Signer("STS.key", Secret("the secret"), {"Format": "JSON"}, token=Secret(token))
    query, signed = signer.sign(method, own, timestamp=moment["Timestamp"], nonce=moment["SignatureNonce"])
    assert signed == sign_by_vendor(compose(method, whole), "the secret")
    assert signed == OpenApiUtil.get_rpcsignature(whole, method, "the secret")
    assert dict(parse_qsl(query, keep_blank_values=True))["SecurityToken"] == token


SET_BY_THE_SIGNER = {"AccessKeyId", "SignatureMethod", "SignatureVersion"}


@given(parameters=st.dictionaries(names, texts, max_size=6))
def test_what_is_sent_is_the_signed_query_and_the_signature_behind_it(parameters: Mapping[str, str]) -> None:
    secret = Secret("s")
    query, signed = Signer("id", secret, {"Format": "JSON"}).sign("GET", parameters, timestamp="t", nonce="n")
    canonical, between, end = query.rpartition("&Signature=")
    assert between
    assert end == percent_encode(signed)
    assert signature(secret, string_to_sign("GET", canonical)) == signed
    sent = dict(parse_qsl(canonical, keep_blank_values=True))
    assert canonical_query(sent) == canonical, "the server, which decodes and encodes again, must get the same text"
    fixed = {"Format", "AccessKeyId", "SignatureMethod", "SignatureVersion", "Timestamp", "SignatureNonce"}
    assert {name: sent[name] for name in parameters.keys() - fixed} == {
        name: parameters[name] for name in parameters.keys() - fixed
    }


stamps = st.one_of(st.sampled_from(["2024-11-19T09:47:43Z", "2024-11-19T09:47:44Z", "%s", "%%"]), texts)
SETS = st.lists(st.tuples(st.sampled_from(["GET", "POST"]), stamps, texts, st.dictionaries(names, texts, max_size=4)))


@settings(max_examples=300, deadline=None)
@given(sent=SETS, constants=st.dictionaries(names, texts, max_size=3))
@example(sent=[("GET", "t", "n", {"a%s": "%s"}), ("GET", "t", "n", {"a%s": "b"})], constants={"%d": "%(x)s"})
@example(sent=[("GET", "t", "n", {"Timestamp": "other", "SignatureNonce": "other", "Format": "XML"})], constants={})
@pytest.mark.slow
def test_one_signer_signs_one_request_after_another_as_each_for_itself(
    sent: list[tuple[str, str, str, dict[str, str]]], constants: dict[str, str]
) -> None:
    secret = Secret("s")
    signer = Signer("id", secret, constants)
    for method, stamp, nonce, parameters in sent:
        query, signed = signer.sign(method, parameters, timestamp=stamp, nonce=nonce)
        ours = {"AccessKeyId": "id", "SignatureMethod": "HMAC-SHA1", "SignatureVersion": "1.0"}
        whole = {**constants, **ours, **parameters, "Timestamp": stamp, "SignatureNonce": nonce}
        assert query == f"{canonical_query(whole)}&Signature={percent_encode(signed)}"
        assert signed == signature(secret, string_to_sign(method, canonical_query(whole)))


@given(text=texts)
def test_only_unreserved_characters_stay_as_they_are(text: str) -> None:
    assert re.fullmatch(r"([A-Za-z0-9._~-]|%[0-9A-F]{2})*", percent_encode(text))


def test_parameters_are_sorted_by_name_capitals_first() -> None:
    assert canonical_query({"b": "1", "B": "2", "a": "3", "Z": "4"}) == "B=2&Z=4&a=3&b=1"


def test_the_method_is_part_of_what_is_signed() -> None:
    assert string_to_sign("GET", "a=1") != string_to_sign("POST", "a=1")


def test_a_signer_never_shows_its_secret() -> None:
    signer = Signer("id", Secret("very-secret"), {}, token=Secret("very-secret-token"))
    signer.sign("POST", {"Action": "A"}, timestamp="t", nonce="n")
    assert "very-secret" not in repr(signer) + str(vars(signer))
