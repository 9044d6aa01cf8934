"""The EventSink of Kubernetes: writes what goes wrong with a secret as an Event on its service account."""

from __future__ import annotations

from ca.controller.action import Subject
from ca.platform.kubernetes.api.resources import SERVICE_ACCOUNTS
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.events.series import Regarding


class AccountEvents:
    """Writes Events on service accounts.

    Args:
        recorder: writes Events.
    """

    def __init__(self, recorder: EventRecorder) -> None:
        self._recorder = recorder

    def emit(self, subject: Subject, *, action: str, reason: str, note: str) -> None:
        """Have a warning about a service account written later (see `EventSink`)."""
        account = Regarding(SERVICE_ACCOUNTS, subject.service_account, subject.namespace, subject.account_uid)
        self._recorder.record(account, reason, note, action=action)
