"""What each error code means, and what to do about it."""

import ast
from pathlib import Path

OWN_CODES: dict[str, tuple[str, str]] = {
    "auditor.Timeout": (
        "The platform did not answer within `timeout` seconds, or the connection took more than `connect_timeout`.",
        "Nothing, if few devices have it. If many do, reduce `concurrency`, or increase `timeout`.",
    ),
    "auditor.TLS": (
        "The certificate of the platform is not trusted, or no TLS connection can be made.",
        "Check the endpoint and the clock of this machine. With a private authority, set `ca_file`.",
    ),
    "auditor.DNS": (
        "The host in `endpoint` has no address.",
        "Check the spelling of `endpoint`, and the name server of this machine.",
    ),
    "auditor.Unreachable": (
        "The host refuses the connection, or no route leads to it.",
        "Check the port in `endpoint`, the firewall, and whether the account needs a `proxy`.",
    ),
    "auditor.Proxy": (
        "The proxy cannot be reached, denies access, or breaks the connection. The message names the proxy.",
        "Check `proxy`. A proxy that rejects the password stops the account immediately.",
    ),
    "auditor.Disconnected": (
        "The platform, or something between, closed the connection before the response.",
        "Nothing, if few devices have it. If many do, something limits the number of connections: reduce `concurrency`.",
    ),
    "auditor.IncompleteBody": (
        "The connection was closed within a response, or its compressed body ends too early.",
        "As for `auditor.Disconnected`.",
    ),
    "auditor.InvalidHTTP": (
        "The response is not valid HTTP.",
        "Check that `endpoint` has the right scheme and port. Something else may answer there.",
    ),
    "auditor.InvalidJSON": (
        "The response is neither JSON nor a documented error, such as a page of a proxy.",
        "Read the message: it quotes the beginning. A portal or a proxy may have answered in place of the platform.",
    ),
    "auditor.InvalidEncoding": (
        "The body has a compression that auditor did not request, or that is damaged.",
        "Search for a proxy that changes responses. gzip and deflate are read.",
    ),
    "auditor.ResponseTooLarge": (
        "A response has more than 8 MiB, headers of more than 64 KiB, or all that arrive together more than 64 MiB.",
        "Reduce `page_size` or `concurrency`. No documented response is that large, so a proxy may answer in place of the platform.",
    ),
    "auditor.InconsistentPages": (
        "The pages of a device contradict each other, themselves or the request in four readings. Nothing of it is stored.",
        "Run `auditor resume` later. If it stays, report the request id in the message to the platform.",
    ),
}
"""Codes of devices for which no response of the platform could be used."""

PLATFORM_CODES: dict[str, str] = {
    "iot.device.NotExistedDevice": "there is no such device",
    "iot.device.InvalidIotId": "there is no device of this `iot_id`",
    "iot.prod.NotExistedProduct": "there is no such product",
    "iot.device.InactiveDevice": "the device was never activated",
    "iot.device.NullDeviceName": "the request names no device",
    "InvalidParameter": "a parameter is wrong",
    "iot.common.AuthActionPermissionDeny": "the key may not read this device, or no device",
    "NoPermission": "the user or role of the key lacks a permission",
    "Forbidden.RAM": "a policy denies the operation",
    "InvalidAccessKeyId.NotFound": "there is no such access key",
    "InvalidAccessKeyId.Inactive": "the access key was disabled",
    "SignatureDoesNotMatch": "the secret does not belong to the key",
    "InvalidSecurityToken.Expired": "the security token of a temporary key has expired",
    "InvalidTimeStamp.Expired": "the time of the request is too far from the platform's",
    "SignatureNonceUsed": "the platform has seen the request before",
    "Throttling.User": "the account exceeds its quota",
    "Throttling": "the platform is over its limit",
    "iot.system.QpsLimit": "the account exceeds its quota",
    "InvalidRegionId": "the region does not exist",
    "InvalidAction.NotFound": "the service at this address does not have the operation",
    "MissingParameter": "the service at this address expects other parameters",
    "UnsupportedProtocol": "the service requires https",
    "iot.system.BillIsOverdue": "the account has unpaid bills",
    "ServiceUnavailable": "the platform is unavailable for the moment",
    "InternalError": "the platform failed",
    "iot.system.SystemException": "the platform failed",
}
"""Codes that the platform's documentation has, or that were seen. What auditor does with each is decided by the code."""


def own_codes(package: Path) -> set[str]:
    """Return the codes that begin with ``auditor.`` in the texts of a package."""
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                prefix, _, word = node.value.partition(".")
                if prefix == "auditor" and word.isalpha() and word[:1].isupper():
                    found.add(node.value)
    return found
