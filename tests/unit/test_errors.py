"""Errors say their whole reason to us and next to nothing to strangers; no value prints a secret."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import traceback
from datetime import timedelta

import pytest

from istio_auth import errors
from istio_auth.bundle import BundleSet
from istio_auth.errors import Code, Fault, IstioAuthError, VerificationError
from istio_auth.pem import read_private_key
from istio_auth.sources.memory import MemorySource
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority


def every_class(base: type[IstioAuthError] = IstioAuthError) -> list[type[IstioAuthError]]:
    return [base, *(below for child in base.__subclasses__() for below in every_class(child))]


@pytest.mark.parametrize("kind", [kind for kind in every_class() if kind.__module__ == errors.__name__])
class TestEveryError:
    def make(self, kind: type[IstioAuthError]) -> IstioAuthError:
        if issubclass(kind, VerificationError):
            return kind(Fault.EXPIRED, "of /secret/path")
        return kind("of /secret/path", retry_after=timedelta(seconds=3))

    def test_tells_strangers_only_the_meaning(self, kind: type[IstioAuthError]) -> None:
        error = self.make(kind)
        assert "/secret/path" in str(error)
        assert "/secret/path" not in error.public
        assert isinstance(error.code, Code)

    def test_is_the_same_in_another_process(self, kind: type[IstioAuthError]) -> None:
        error = self.make(kind)
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own bytes
            assert type(again) is kind
            assert (str(again), again.public, again.retry_after) == (str(error), error.public, error.retry_after)
            assert getattr(again, "fault", None) is getattr(error, "fault", None)


def test_a_public_text_can_be_given() -> None:
    assert errors.NotReady("the disk is full", public="try again").public == "try again"
    assert errors.NotReady("the disk is full").public == "not ready"


def test_every_meaning_has_an_error() -> None:
    assert {kind.code for kind in every_class()} == set(Code)


def secrets_of(pem: bytes) -> list[str]:
    lines = pem.decode().splitlines()
    return [line[:16] for line in lines[1:-1]]


def test_no_value_that_holds_a_key_prints_it(authority: FakeAuthority) -> None:
    svid = authority.svid()
    context = X509Context((svid,), BundleSet((authority.bundle(),)))
    source = MemorySource(context)
    number = f"{svid.private_key.private_numbers().private_value:x}"  # type: ignore[union-attr]  # it is an EC key
    for value in (svid, context, source, [svid], {"svid": svid}, dataclasses.replace(svid, hint="x")):
        for text in (f"{value}", repr(value), f"{value!a}", str(vars(value)) if hasattr(value, "__dict__") else ""):
            assert "PRIVATE" not in text
            assert "private_key" not in text
            assert number not in text
            assert not any(secret in text for secret in secrets_of(svid.key_pem()))


def test_a_key_does_not_leave_by_pickle(authority: FakeAuthority) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(authority.svid())


def test_no_error_around_a_key_quotes_it(authority: FakeAuthority) -> None:
    key = authority.svid().key_pem()
    for broken in (key + key, key[:-40], key.replace(b"PRIVATE", b"PUBLIC"), key[:60] + b"\n" + key[60:90]):
        try:
            read_private_key(broken)
        except IstioAuthError as error:
            text = "".join(traceback.format_exception(error))  # with causes, as a log would show it
            assert not any(secret in text for secret in secrets_of(key))
        else:
            pytest.fail("a broken key was read")
