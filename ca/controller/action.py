"""The vocabulary of a plan: what is to be done to which secret, why, and what an operator should hear."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from istio_auth.spiffe_id import SpiffeID


class Kind(enum.Enum):
    """What is done to a secret."""

    CREATE = "create"
    RENEW = "renew"  # a new key and certificate, in time
    REPAIR = "repair"  # a new key and certificate, because those in it are wrong or damaged
    UPDATE = "update"  # root bundle, mark, annotation and owner; key and chain are kept
    DELETE = "delete"

    @property
    def issues(self) -> bool:
        """Whether a new key and certificate are made for it."""
        return self in (Kind.CREATE, Kind.RENEW, Kind.REPAIR)


class Reason(enum.Enum):
    """Why; the label of metrics and the words of Events."""

    ABSENT = "there is no secret yet"
    DUE = "due for renewal"
    INCOMPLETE = "key or chain missing"
    UNPARSABLE = "key or chain unparsable"
    WRONG_KEY = "the key is not that of the certificate"
    UNUSABLE = "the certificate breaks a rule of X509-SVID"
    WRONG_NAMES = "the certificate has other names"
    NOT_YET_VALID = "not yet valid"
    UNTRUSTED = "the certificate does not chain to the trust bundle"
    FOREIGN_ISSUER = "none of our issuers signed the certificate"
    ACCOUNT_RECREATED = "the service account was made anew"
    ROOT_CHANGED = "the trust bundle is another"
    METADATA_CHANGED = "mark, annotation or owner missing or changed"
    ACCOUNT_GONE = "the service account is gone"
    UNMANAGED = "the namespace is not managed, and the secret fell due"


class Concern(enum.Enum):
    """What kind of thing an operator should hear; the label of metrics."""

    FOREIGN = "a secret of that name is not ours"
    CONTENDED = "somebody keeps changing the secret back"
    ISSUER_ENDS_FIRST = "the issuer ends first"
    ISSUER_NOT_VALID = "the issuer is not valid now"
    NAME_TOO_LONG = "the name is too long for a secret"
    NO_IDENTITY = "the name makes no SPIFFE ID"


@dataclass(frozen=True, slots=True)
class Subject:
    """The service account an action or a finding is about, and its secret.

    Args:
        namespace: of both.
        service_account: its name.
        account_uid: its UID; empty when it is gone.
        secret: the name of its secret.
    """

    namespace: str
    service_account: str
    account_uid: str
    secret: str


@dataclass(frozen=True, slots=True)
class Precondition:
    """The state that a secret must still have when an action is done to it."""

    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class Action:
    """One write, or deletion, of a secret.

    Args:
        kind: what is done.
        reason: why.
        subject: to whose secret.
        detail: the reason at length, for people.
        precondition: the state of the secret it was planned for; None if there was no secret, and must still be none.
        spiffe_id: the identity to issue, for those that issue.
        dns_names: the names to put beside it.
    """

    kind: Kind
    reason: Reason
    subject: Subject
    detail: str
    precondition: Precondition | None = None
    spiffe_id: SpiffeID | None = None
    dns_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What an operator should hear.

    Args:
        concern: what kind of thing it is.
        subject: about whose secret.
        message: in words.
    """

    concern: Concern
    subject: Subject
    message: str
