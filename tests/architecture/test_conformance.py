"""Every requirement of the SPIFFE standards on whoever reads an SVID, a bundle or a Workload API has a test.

A test says in its name which requirement it holds, by a handle: `test_xl_01_...`. Requirements on others than a reader
are listed with the reason why no such test is asked for.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# The documents, with the words that tell which requirement a handle stands for.
REQUIREMENTS: dict[str, dict[str, str]] = {
    "SPIFFE-ID": {
        "ID-01": "the scheme is spiffe",
        "ID-02": "a trust domain is there",
        "ID-03": "no query, no fragment",
        "ID-04": "no user, no port",
        "ID-05": "a trust domain in lower case",
        "ID-06": "characters of a trust domain",
        "ID-07": "no percent-encoding in a trust domain",
        "ID-08": "IPv4 is a name like any other, IPv6 is none",
        "ID-09": "a trust domain is opaque",
        "ID-10": "no percent-encoding in a path",
        "ID-11": "no empty, '.' or '..' segment",
        "ID-12": "no slash at the end",
        "ID-13": "characters of a segment",
        "ID-14": "2048 bytes are read",
        "ID-15": "no more than 2048 bytes are written",
        "ID-16": "255 bytes of trust domain",
        "ID-17": "what case means in a comparison",
        "ID-18": "an empty path names the trust domain",
        "ID-19": "a trust domain has an authority with an SVID of its own",
        "ID-20": "the authority's ID has no path",
        "ID-21": "only defined kinds of SVID are SVIDs",
        "ID-22": "ID and key are in the signed part",
    },
    "X509-SVID 4: leaf": {
        "XL-01": "exactly one URI name",
        "XL-02": "names of other kinds",
        "XL-03": "the ID has a path",
        "XL-04": "critical names beside an empty subject",
        "XL-05": "no CA",
        "XL-06": "a critical key usage",
        "XL-07": "digitalSignature",
        "XL-08": "encipherment and agreement",
        "XL-09": "neither keyCertSign nor cRLSign",
        "XL-10": "an extended key usage",
        "XL-11": "serverAuth and clientAuth",
        "XL-12": "a critical extended key usage",
    },
    "X509-SVID 4: signing certificate": {
        "XC-01": "a CA",
        "XC-02": "critical key usage with keyCertSign",
        "XC-03": "cRLSign",
        "XC-04": "usages of leaves on a CA",
        "XC-05": "a bounded path",
        "XC-06": "an SVID itself",
        "XC-07": "an ID without path",
        "XC-08": "an ID of the leaves' trust domain",
        "XC-09": "further CAs",
        "XC-10": "never for authentication",
        "XC-11": "an extended key usage",
        "XC-12": "name constraints",
    },
    "X509-SVID 5: validation": {
        "XV-A": "a path to the bundle",
        "XV-B": "the leaf is no CA",
        "XV-C": "the leaf's key signs no certificates",
        "XV-D": "the scheme",
        "XV-E": "the path of the ID",
        "XV-F": "several URI names",
        "XV-G": "the bundle of the peer's trust domain alone",
        "XV-H": "no bundle, no trust",
    },
    "X509-SVID 6: bundle": {
        "XB-01": "an entry for each CA certificate",
        "XB-02": "no kid",
        "XB-03": "one x5c value",
        "XB-04": "self-signed",
        "XB-05": "no x5c, no entry",
        "XB-06": "the first x5c value",
        "XB-07": "no entries, no X509-SVIDs",
    },
    "JWT-SVID": {
        "JW-01": "compact serialization",
        "JW-02": "a closed header",
        "JW-03": "nine algorithms",
        "JW-04": "an optional kid",
        "JW-05": "the types",
        "JW-06": "the subject",
        "JW-07": "an audience",
        "JW-08": "we are in the audience",
        "JW-09": "an end",
        "JW-10": "the algorithm first",
        "JW-11": "jti",
        "JW-12": "other claims",
        "JW-13": "bearer tokens",
        "JW-14": "use and kid of an entry",
        "JW-15": "keys for JWT-SVIDs alone",
        "JW-16": "the bundle of the subject's trust domain alone",
        "JW-17": "a beginning",
    },
    "WIT-SVID": {f"WT-{number:02}": "the WIT profile" for number in range(1, 20)},
    "Trust Domain and Bundle": {
        "BD-01": "a JWK Set",
        "BD-02": "the sequence",
        "BD-03": "the refresh hint",
        "BD-04": "an array of keys",
        "BD-05": "no usable key, no valid SVID",
        "BD-06": "entries of unknown type",
        "BD-07": "entries of unknown use",
        "BD-08": "other members",
        "BD-09": "other members of entries",
        "BD-10": "the usual refresh",
        "BD-11": "no trust domain in the document",
    },
    "Bundle Map": {
        "BM-01": "an object of trust domains",
        "BM-02": "names of trust domains",
        "BM-03": "no name twice",
        "BM-04": "members without hints",
        "BM-05": "members' hints are their own",
        "BM-06": "whole or not at all",
    },
    "Workload Endpoint": {
        "WE-01": "gRPC over a Unix socket or TCP",
        "WE-02": "TCP where addresses prove who calls",
        "WE-03": "one endpoint, one host",
        "WE-04": "no TLS is asked for",
        "WE-05": "the security header",
        "WE-06": "no client authenticates itself",
        "WE-07": "SPIFFE_ENDPOINT_SOCKET",
        "WE-08": "the form of a Unix address",
        "WE-09": "the form of a TCP address",
        "WE-10": "services are not extended",
        "WE-11": "reflection",
    },
    "Workload API": {
        "WA-01": "X.509 and JWT profiles",
        "WA-02": "WIT profile",
        "WA-03": "a first response at once",
        "WA-04": "each message is complete",
        "WA-05": "what is absent is redacted",
        "WA-06": "a push for each change",
        "WA-07": "a client keeps the stream and reconnects",
        "WA-08": "mandatory fields of requests",
        "WA-09": "mandatory fields of responses",
        "WA-10": "hints are unique",
        "WA-11": "hints of 1024 bytes",
        "WA-12": "the first SVID is the default",
        "WA-13": "no identity, PermissionDenied",
        "WA-14": "everything redacted, PermissionDenied",
        "WA-15": "the own trust domain's bundle is there",
        "WA-16": "JWT bundles hold JWT-SVID keys alone",
        "WA-17": "JWT-SVIDs of all identities",
        "WA-18": "ValidateJWTSVID",
        "WA-19": "bundles of one kind are for SVIDs of that kind",
        "WA-20": "the bundle of the peer's trust domain",
    },
    "Federation": {"FE-17": "bundles are never merged"},
}

_ISSUER = "on who issues: the CA's certificates are tried under tests/unit/ca"
_ENDPOINT = "on who runs an endpoint: ours listens on a Unix socket of its own host, and on nothing else"
_WIT = "the WIT profile is optional, and is not offered; its keys and its type of token are known and refused"
NOT_OF_A_READER = {
    "ID-19": _ISSUER,
    "ID-20": _ISSUER,
    "XC-04": f"{_ISSUER}; no rule of validation asks for it",
    "XC-06": f"{_ISSUER}; no rule of validation asks for it",
    "XC-07": f"{_ISSUER}; no rule of validation asks for it",
    "XC-08": f"{_ISSUER}; a validator has the bundle for it (XV-G)",
    "WE-02": _ENDPOINT,
    "WE-03": _ENDPOINT,
    **dict.fromkeys(REQUIREMENTS["WIT-SVID"], _WIT),
}
HANDLES = {handle: words for document in REQUIREMENTS.values() for handle, words in document.items()}
_NAMED = re.compile(r"^test_(id|x[lcvb]|jw|wt|bd|bm|we|wa|fe)_(\d\d|(?<=xv_)[a-h])(?=_)")


def named_by_handle() -> dict[str, list[str]]:
    """The tests that name a requirement."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (match := _NAMED.match(node.name)):
                handle = f"{match[1]}-{match[2]}".upper()
                found.setdefault(handle, []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


FOUND = named_by_handle()


@pytest.mark.parametrize("handle", sorted(HANDLES.keys() - NOT_OF_A_READER.keys()))
def test_a_requirement_has_a_test(handle: str) -> None:
    assert FOUND.get(handle), f"no test holds {handle}: {HANDLES[handle]}"


def test_what_needs_no_test_is_listed_with_a_reason_and_has_none() -> None:
    assert set(NOT_OF_A_READER) <= set(HANDLES)
    assert all(NOT_OF_A_READER.values())
    assert set(NOT_OF_A_READER) & set(FOUND) == set()


def test_no_test_names_a_requirement_that_is_not_there() -> None:
    assert {handle for handle in FOUND if handle not in HANDLES} == set()
