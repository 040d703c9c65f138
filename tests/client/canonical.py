"""The canonical query of parameters, written plainly: what the signer must sign and send."""

from collections.abc import Mapping

from auditor.client.signing import percent_encode


def canonical_query(parameters: Mapping[str, str]) -> str:
    """Return the parameters sorted by name, escaped, joined by ``=`` and ``&``."""
    return "&".join(f"{percent_encode(name)}={percent_encode(parameters[name])}" for name in sorted(parameters))
