"""Reports: tells an operator about a secret, in the log and by an Event on its service account; each news only once."""

from __future__ import annotations

from typing import Protocol

import structlog

from ca.controller.action import Concern, Finding, Kind, Subject
from ca.controller.snapshot import AccountKey
from istio_auth.errors import IstioAuthError

_log = structlog.get_logger()
_EVENT = {
    Concern.FOREIGN: "ForeignSecret",
    Concern.CONTENDED: "SecretContended",
    Concern.ISSUER_ENDS_FIRST: "IssuerEndsFirst",
    Concern.ISSUER_NOT_VALID: "IssuerNotValid",
    Concern.NAME_TOO_LONG: "NameTooLong",
    Concern.NO_IDENTITY: "NoIdentity",
}
_FAILED = "SecretFailed"


class EventSink(Protocol):
    """Tells people of something by Events of Kubernetes."""

    def emit(self, subject: Subject, *, action: str, reason: str, note: str) -> None:
        """Have a warning about a service account written later. Never waits, and never fails.

        Args:
            subject: the service account.
            action: what was tried, in one word.
            reason: the kind of warning, in one word.
            note: the warning in words.
        """
        ...


class Reports:
    """Tells what is new.

    Args:
        events: where Events go.
    """

    def __init__(self, events: EventSink) -> None:
        self._events = events
        self._told: dict[AccountKey, tuple[str, str]] = {}

    def finding(self, key: AccountKey, finding: Finding) -> None:
        """Something that the plan found."""
        self._tell(key, finding.subject, "Plan", _EVENT[finding.concern], finding.message)

    def failure(self, key: AccountKey, subject: Subject, kind: Kind | None, error: IstioAuthError) -> None:
        """Something that could not be done."""
        self._tell(key, subject, kind.name.capitalize() if kind else "Look", _FAILED, str(error)[:1000])

    def well(self, key: AccountKey) -> None:
        """All is well: any later trouble is news again."""
        self._told.pop(key, None)

    def _tell(self, key: AccountKey, subject: Subject, action: str, reason: str, note: str) -> None:
        if self._told.get(key) == (reason, note):
            return
        self._told[key] = reason, note
        where = f"{subject.namespace}/{subject.secret}"
        _log.warning("a secret is not as it shall be", secret=where, action=action, kind=reason, reason=note)
        if subject.account_uid:
            self._events.emit(subject, action=action, reason=reason, note=note)
