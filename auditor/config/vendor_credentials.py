"""Get an access key from the vendor's library, in a process of its own: ``-m auditor.config.vendor_credentials``.

A JSON request comes from standard input, and the key, or why there is none, is printed as JSON. The library has no time
limit for a complete request, writes answers with keys to the log, starts threads, and takes proxies from the
environment whatever NO_PROXY says. A process can be killed, its log is dropped, and its environment is ours.
"""

import json
import os
import re
import sys
from typing import Any

_SAFE_SENTENCES = re.compile(
    r"unable to open credentials file|failed to parse credential form cli|unable to get profile with"
    r"|unsupported profile mode|cli credentials file is disabled|invalid profile name|IMDS credentials is disabled"
)
"""Beginnings of the library's sentences that quote no answer, but file names and names of profiles."""

_CODE = re.compile(r'"Code"\s*:\s*"([\w.-]{1,80})"', re.ASCII)
_STATUS = re.compile(r"http_?code\W{1,3}(\d{3})", re.IGNORECASE | re.ASCII)
_EXIT_STATUS = re.compile(r"exit status -?\d+", re.ASCII)

_FAILURES = {
    "ProxyError": "its proxy cannot be reached, or refuses",
    "SSLError": "its certificate is not trusted",
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "no answer in time",
    "ConnectionError": "it cannot be reached",
}
"""What happened, by the names of the exceptions of ``requests``. Their texts contain the signed address."""

TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500


def main() -> None:
    """Answer the request on standard input."""
    os.umask(0o077)  # aliyun's file of profiles is rewritten after some logins
    request = json.load(sys.stdin)
    for name in [each for each in os.environ if each.lower() in {"http_proxy", "https_proxy", "all_proxy"}]:
        del os.environ[name]
    os.environ.update({f"{scheme.upper()}_PROXY": url for scheme, url in request["proxies"].items()})
    if authorities := os.environ.get("SSL_CERT_FILE"):
        import certifi

        certifi.where = lambda: authorities  # behind a proxy the library trusts nothing else
    try:
        answer = _get_key(request["credentials"])
    except Exception as error:  # noqa: BLE001  whatever the library raises
        answer = _describe(error)
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # the library's threads would be waited for


def _get_key(table: dict[str, Any]) -> dict[str, Any]:
    provider = _provider(table)
    key = provider.get_credentials()
    inner = _innermost(provider)
    if inner is not provider:  # chains and profiles drop the expiration that the provider in them returns
        key = inner.get_credentials()
    return {
        "key_id": key.get_access_key_id(),
        "secret": key.get_access_key_secret(),
        "token": key.get_security_token(),
        "expires_at": (getattr(key, "get_expiration", lambda: None)() or None),
    }


def _innermost(provider: Any) -> Any:  # noqa: ANN401  a class of the library, which has no types
    """Return the provider that a chain or a profile has selected; the provider itself if it is none of them."""
    from alibabacloud_credentials import provider as library
    from alibabacloud_credentials_api import ICredentialsProvider

    wrappers = (
        library.DefaultCredentialsProvider, library.CLIProfileCredentialsProvider, library.ProfileCredentialsProvider,
    )  # fmt: skip
    while isinstance(provider, wrappers):
        inner = next((each for each in vars(provider).values() if isinstance(each, ICredentialsProvider)), None)
        if inner is None:
            break
        provider = inner
    return provider


def _provider(table: dict[str, Any]) -> Any:  # noqa: ANN401  likewise
    """Return the library's provider for credentials; it requests nothing yet."""
    from alibabacloud_credentials import provider as library

    kind = table["type"]
    if kind == "static":
        static = {"access_key_id": table["key_id"], "access_key_secret": table["secret"]}
        if not table["token"]:
            return library.StaticAKCredentialsProvider(**static)
        return library.StaticSTSCredentialsProvider(**static, security_token=table["token"])
    if kind in {"ram_role_arn", "oidc_role_arn"}:
        return _role_provider(table)
    providers = {
        # Without a thread of its own that would renew the key.
        "ecs_ram_role": lambda: library.EcsRamRoleCredentialsProvider(
            role_name=table.get("role_name"), async_update_enabled=False
        ),
        "credentials_uri": lambda: library.URLCredentialsProvider(uri=table["credentials_uri"]),
        "profile": lambda: library.CLIProfileCredentialsProvider(profile_name=table["profile"]),
        "default": library.DefaultCredentialsProvider,
    }
    return providers[kind]()


def _role_provider(table: dict[str, Any]) -> Any:  # noqa: ANN401  likewise
    from alibabacloud_credentials import provider as library

    session = {
        "role_arn": table["role_arn"],
        "role_session_name": table.get("role_session_name", "auditor"),
        "duration_seconds": table.get("role_session_expiration"),
        "sts_endpoint": table.get("sts_endpoint"),
    }
    if table["type"] == "ram_role_arn":
        return library.RamRoleArnCredentialsProvider(
            credentials_provider=_provider(table["source"]), external_id=table.get("external_id"), **session
        )
    return library.OIDCRoleArnCredentialsProvider(
        oidc_provider_arn=table["oidc_provider_arn"], oidc_token_file_path=table["oidc_token_file"], **session
    )


def _describe(error: Exception) -> dict[str, Any]:
    """Return why there is no key, without what an answer or an address contains."""
    cause, text = type(error.__context__ or error).__name__, str(error)
    if cause in _FAILURES:
        return {"error": _FAILURES[cause], "refused": False}
    code, status, exited = _CODE.search(text), _STATUS.search(text), _EXIT_STATUS.search(text)
    if text.startswith("unable to load credentials from any"):
        return {"error": "none of its providers has one", "refused": False}
    if _SAFE_SENTENCES.match(text):
        return {"error": text[:300], "refused": True}
    if exited is not None:
        return {"error": f"its command ends with {exited[0]}", "refused": False}
    number = 0 if status is None else int(status[1])
    if code is None and number == 0:
        return {"error": f"the answer is none that the vendor's library reads ({cause})", "refused": False}
    of_status = f"HTTP {number}" if number else "no HTTP status"
    shown = of_status if code is None else f"{code[1]} ({of_status})"
    refused = number < SERVER_ERROR and number != TOO_MANY_REQUESTS and not shown.lower().startswith("throttling")
    return {"error": f"it is refused: {shown}" if refused else f"its answer is {shown}", "refused": refused}


if __name__ == "__main__":
    main()
