"""The token of a pod, as a NodePublishVolume brings it. Pure. Nothing of a token is in any message, log or file."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from istio_auth.errors import MalformedError
from istio_auth.proto.csi_pb2 import NodePublishVolumeRequest
from istio_auth.strict_json import parse_json
from node_agent.csi.attributes import refused

TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
_MAX_TOKENS = 64 << 10


@dataclass(frozen=True, slots=True)
class Token:
    """A pod's token for our audience.

    Args:
        value: itself; never printed, never written down.
        ends: when it does.
    """

    value: str = field(repr=False)
    ends: datetime


def pod_token(request: NodePublishVolumeRequest, audience: str) -> Token:
    """The pod's token for our audience: from the secrets, or from the context where the API server puts it there.

    Raises:
        MalformedError: there is none.
    """
    text = request.secrets.get(TOKENS) or request.volume_context.get(TOKENS)
    if not text:
        raise refused(f"no token came with the pod: the CSIDriver needs tokenRequests with the audience {audience!r}")
    try:
        tokens = parse_json(text, limit=_MAX_TOKENS)
    except MalformedError as error:
        raise refused(f"the pod's tokens are malformed: {error}") from None
    entry = tokens.get(audience) if isinstance(tokens, dict) else None
    if not isinstance(entry, dict):
        raise refused(f"no token for the audience {audience!r} came with the pod: see tokenRequests of the CSIDriver")
    value, end = entry.get("token"), entry.get("expirationTimestamp")
    if not (isinstance(value, str) and value and value.isascii() and value.isprintable() and isinstance(end, str)):
        raise refused("the pod's token is malformed: token or expirationTimestamp is missing")
    try:
        ends = datetime.fromisoformat(end)
    except ValueError:
        raise refused("the pod's token is malformed: expirationTimestamp is no instant") from None
    return Token(value, ends if ends.tzinfo else ends.replace(tzinfo=UTC))
