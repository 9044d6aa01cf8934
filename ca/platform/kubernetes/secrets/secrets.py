"""The secrets of service accounts at the API server: read into facts, and written if still as they were planned for.

Only secrets of our type are listed and watched; no others are read. A secret of another type with the name of ours is
noticed when ours can not be created. Then it is looked at, but not its content.

Secrets are changed by merge patches, so that whatever others wrote beside our own data stays; the resource version in
the patch is the precondition.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ca.controller.action import Action, Kind, Reason
from ca.controller.material import CHAIN, KEY, ROOT, Damaged, Material, read_material
from ca.controller.sink import Content
from ca.controller.snapshot import (
    ACCOUNT_ANNOTATION,
    MARK_LABEL,
    SECRET_PREFIX,
    SECRET_TYPE,
    AccountKey,
    WorkloadSecret,
    secret_name,
)
from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.objects import Key, Object, object_of, text
from ca.platform.kubernetes.api.resources import SECRETS, SERVICE_ACCOUNTS
from istio_auth.bundle import JSON, TrustBundle
from istio_auth.errors import ConflictError, MissingError, NotReady

OUR_TYPE = Selection(fields=f"type={SECRET_TYPE}")
_PARTS = (CHAIN, KEY, ROOT)
_Texts = tuple[JSON, ...]
_UNREAD = Damaged(Reason.INCOMPLETE, "it is of another type, and was not read", "")


@dataclass(slots=True)
class _Expected:
    """What we are writing to a secret, and the facts about it, until both the answer and the event have come back."""

    texts: _Texts
    material: Material | Damaged | None
    answered: bool = False
    seen: bool = False


class WorkloadSecrets:
    """Reads and writes the secrets: the `SecretSink` of the API server, and the decoder of the reflector.

    What we write comes back twice, as an answer and as an event. Its PEM texts are parsed at most once for both.

    Args:
        api: the API server.
        mark: the name of this CA, in a label of everything it makes.
        bundle: gives the present trust bundle.
    """

    def __init__(self, api: KubernetesAPI, mark: str, bundle: Callable[[], TrustBundle]) -> None:
        self._api = api
        self._mark = mark
        self._bundle = bundle
        self._expected: dict[Key, _Expected] = {}

    def decode(self, item: Object) -> WorkloadSecret | None:
        """The facts about a watched secret; None for one whose name is not that of a service account's secret."""
        key = Key.of(item)
        if not key.name.startswith(SECRET_PREFIX):
            return None
        secret = self._facts(key, item)
        if (expected := self._expected.get(key)) is not None:
            expected.seen = True
            self._settle(key, expected)
        return secret

    async def apply(self, action: Action, content: Content | None) -> WorkloadSecret | None:
        """Do what was planned (see `SecretSink`)."""
        if action.kind is Kind.DELETE:
            return await self._delete(action)
        assert content is not None, action.kind
        key = Key(action.subject.namespace, action.subject.secret)
        expected = self._expected[key] = _expected(content)
        try:
            secret = self._facts(key, await self._write(action, content, expected.texts))
        except BaseException:
            self._expected.pop(key, None)
            raise
        expected.answered = True
        self._settle(key, expected)
        return secret

    async def look(self, key: AccountKey) -> WorkloadSecret | None:
        """The secret of a service account as it is at this moment (see `SecretSink`)."""
        namespace, name = key[0], secret_name(key[1])
        try:
            return self._facts(Key(namespace, name), await self._api.get(SECRETS, name, namespace=namespace))
        except MissingError:
            return None

    async def _write(self, action: Action, content: Content, texts: _Texts) -> Object:
        subject = action.subject
        metadata = _metadata(action, self._mark)
        data: Object = dict(zip(_PARTS, texts, strict=True)) if texts else {ROOT: _base64(content.root)}
        try:
            if action.precondition is None:
                body: Object = {"metadata": metadata, "type": SECRET_TYPE, "data": data}
                return await self._api.create(SECRETS, body, namespace=subject.namespace)
            metadata |= {"uid": action.precondition.uid, "resourceVersion": action.precondition.resource_version}
            patch: Object = {"metadata": metadata, "data": data}
            return await self._api.patch(SECRETS, subject.secret, patch, namespace=subject.namespace)
        except MissingError as error:
            if action.precondition is None:
                raise NotReady(f"the namespace is gone: {error}") from error
            raise ConflictError(str(error)) from error

    async def _delete(self, action: Action) -> WorkloadSecret | None:
        subject, precondition = action.subject, action.precondition
        assert precondition is not None, "only what is there is deleted"
        if action.reason is Reason.ACCOUNT_GONE:
            await self._make_sure_it_is_gone(subject.namespace, subject.service_account)
        version = precondition.resource_version
        with suppress(MissingError):  # the garbage collector was faster
            await self._api.delete(
                SECRETS, subject.secret, namespace=subject.namespace, uid=precondition.uid, version=version
            )
        return None

    async def _make_sure_it_is_gone(self, namespace: str, name: str) -> None:
        """Ask the API server for a service account: the watch may be late, and its key would be lost for nothing."""
        try:
            await self._api.get(SERVICE_ACCOUNTS, name, namespace=namespace)
        except MissingError:
            return
        raise NotReady(f"the service account {namespace}/{name} is there, though it was not seen yet")

    def _facts(self, key: Key, item: Object) -> WorkloadSecret:
        metadata, kind = object_of(item.get("metadata")), text(item, "type")
        return WorkloadSecret(
            key.namespace,
            key.name,
            text(metadata, "uid"),
            text(metadata, "resourceVersion"),
            SECRET_TYPE if kind == SECRET_TYPE else kind,
            self._material(key, object_of(item.get("data"))) if kind == SECRET_TYPE else _UNREAD,
            text(metadata, "annotations", ACCOUNT_ANNOTATION),
            _owner(metadata.get("ownerReferences")),
            text(metadata, "labels", MARK_LABEL),
            item.get("immutable") is True,
            "deletionTimestamp" in metadata,
        )

    def _material(self, key: Key, data: Object) -> Material | Damaged:
        texts = tuple(data.get(part) for part in _PARTS)
        expected = self._expected.get(key)
        if expected is not None and expected.material is not None and expected.texts == texts:
            return expected.material
        pairs = zip(_PARTS, texts, strict=True)
        material = read_material({p: base64.b64decode(t) for p, t in pairs if isinstance(t, str)}, self._bundle())
        if expected is not None and (expected.material is None or expected.answered):
            expected.texts, expected.material = texts, material  # the later of the two need not read it again
        return material

    def _settle(self, key: Key, expected: _Expected) -> None:
        if expected.answered and expected.seen and self._expected.get(key) is expected:
            del self._expected[key]


def _expected(content: Content) -> _Expected:
    if content.pair is None:
        return _Expected((), None)
    return _Expected(_texts(content), content.pair.material)


def _texts(content: Content) -> _Texts:
    assert content.pair is not None
    return tuple(map(_base64, (content.pair.chain, content.pair.key, content.root)))


def _metadata(action: Action, mark: str) -> Object:
    subject = action.subject
    owner: JSON = {
        "apiVersion": SERVICE_ACCOUNTS.api_version,
        "kind": SERVICE_ACCOUNTS.kind,
        "name": subject.service_account,
        "uid": subject.account_uid,
    }
    return {
        "name": subject.secret,
        "namespace": subject.namespace,
        "labels": {MARK_LABEL: mark},
        "annotations": {ACCOUNT_ANNOTATION: subject.service_account},
        "ownerReferences": [owner],
    }


def _owner(references: JSON) -> str:
    """The UID of the service account that owns a secret."""
    for each in references if isinstance(references, list) else ():
        if text(each, "kind") == SERVICE_ACCOUNTS.kind and text(each, "apiVersion") == SERVICE_ACCOUNTS.api_version:
            return text(each, "uid")
    return ""


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
