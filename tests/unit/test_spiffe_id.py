"""The grammar of SPIFFE IDs (SPIFFE-ID 2), byte by byte."""

from __future__ import annotations

import dataclasses
import string

import pytest

from istio_auth.errors import Code, InvalidSpiffeID
from istio_auth.spiffe_id import SpiffeID, TrustDomain

TD = TrustDomain("td")
LEGAL_IN_TRUST_DOMAIN = set(string.ascii_lowercase + string.digits + ".-_")
LEGAL_IN_SEGMENT = set(string.ascii_letters + string.digits + ".-_")
EVERY_BYTE = [chr(byte) for byte in range(256)]


@pytest.mark.parametrize("text", EVERY_BYTE, ids=lambda text: f"{ord(text):02x}")
class TestEveryByte:
    def test_in_a_trust_domain(self, text: str) -> None:
        for name in (text, f"a{text}b", f"{text}b", f"a{text}"):
            if text in LEGAL_IN_TRUST_DOMAIN:
                assert TrustDomain(name).name == name
                assert str(SpiffeID.parse(f"spiffe://{name}/x").trust_domain) == name
            else:
                with pytest.raises(InvalidSpiffeID):
                    TrustDomain(name)

    def test_in_a_path_after_parsing(self, text: str) -> None:
        legal = {f"/a{text}b": text in LEGAL_IN_SEGMENT | {"/"}, f"/{text}": text in LEGAL_IN_SEGMENT - {"."}}
        for path, expected in legal.items():
            if expected:
                assert SpiffeID.parse(f"spiffe://td{path}").path == path
            else:
                with pytest.raises(InvalidSpiffeID):
                    SpiffeID.parse(f"spiffe://td{path}")

    def test_in_a_path_given_as_such(self, text: str) -> None:
        if text in LEGAL_IN_SEGMENT:
            assert SpiffeID(TD, f"/a{text}").path == f"/a{text}"
        else:
            with pytest.raises(InvalidSpiffeID):
                SpiffeID(TD, f"/a{text}")

    def test_in_a_segment(self, text: str) -> None:
        legal = text in LEGAL_IN_SEGMENT
        for name in (text, f"a{text}b"):
            if legal and name != ".":
                assert SpiffeID.for_service_account(TD, name, name).path == f"/ns/{name}/sa/{name}"
                assert SpiffeID.for_agent(TD, name).path == f"/agent/{name}"
            else:
                with pytest.raises(InvalidSpiffeID):
                    SpiffeID.for_service_account(TD, name, "sa")
                with pytest.raises(InvalidSpiffeID):
                    SpiffeID.for_service_account(TD, "ns", name)
                with pytest.raises(InvalidSpiffeID):
                    SpiffeID.for_agent(TD, name)


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://td",
        "spiffe://td/x",
        "spiffe://cluster.local/ns/default/sa/web",
        "spiffe://1.2.3.4/x",  # ID-08: an opaque name like any other
        "spiffe://example..org/x",
        "spiffe://-.-/x",
        "spiffe://td/..x",
        "spiffe://td/...",
        "spiffe://td/x..",
        "spiffe://td/.x/y",
        "spiffe://td/A/a",
        "spiffe://" + "a" * 255,
        "spiffe://td/" + "a" * (2048 - len("spiffe://td/")),
    ],
)
def test_what_spells_a_spiffe_id_is_read_and_written_the_same(text: str) -> None:
    spiffe_id = SpiffeID.parse(text)
    assert str(spiffe_id) == text
    assert SpiffeID.normalized(text) == spiffe_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe",
        "spiffe:",
        "spiffe:/td/x",
        "spiffe:td/x",
        "spiffe://",
        "spiffe:///x",
        "//td/x",
        "http://td/x",
        "spiffes://td/x",
        " spiffe://td/x",
        "spiffe://td/x ",
        "spiffe://td/x\n",
        "spiffe://td\n",
        "spiffe://td/\n",
        "\nspiffe://td/x",
        "spiffe://td/x\x00",
        "spiffe://td/",
        "spiffe://td//x",
        "spiffe://td/x/",
        "spiffe://td/x//y",
        "spiffe://td/.",
        "spiffe://td/..",
        "spiffe://td/./x",
        "spiffe://td/x/../y",
        "spiffe://td/x/..",
        "spiffe://td/x?q=1",
        "spiffe://td/x#f",
        "spiffe://td?q=1",
        "spiffe://td#f",
        "spiffe://user@td/x",
        "spiffe://@td/x",
        "spiffe://td:80/x",
        "spiffe://td:/x",
        "spiffe://[::1]/x",
        "spiffe://td/%41",
        "spiffe://t%64/x",
        "spiffe://td/\N{LATIN SMALL LETTER E WITH ACUTE}",
        "spiffe://t\N{CYRILLIC SMALL LETTER ER}/x",
        "spiffe://td/\N{FULLWIDTH DIGIT ONE}",
        "spiffe://\N{KELVIN SIGN}ube/x",  # lower() makes a plain k of it
        "spiffe://td/x\\y",
        "spiffe://" + "a" * 256,
        "spiffe://td/" + "a" * (2049 - len("spiffe://td/")),
        "spiffe://td/" + "a" * 3000,
    ],
)
def test_what_spells_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeID) as caught:
        SpiffeID.parse(text)
    assert caught.value.code is Code.MALFORMED
    with pytest.raises(InvalidSpiffeID):
        SpiffeID.normalized(text)


@pytest.mark.parametrize("text", ["SPIFFE://td/x", "Spiffe://td/x", "spiffe://TD/x"])
def test_an_svid_spells_its_id_in_lower_case_while_a_person_may_write_as_they_like(text: str) -> None:
    with pytest.raises(InvalidSpiffeID):
        SpiffeID.parse(text)
    assert str(SpiffeID.normalized(text)) == "spiffe://td/x"


def test_the_case_of_a_path_always_counts() -> None:
    assert SpiffeID.normalized("SPIFFE://TD/Web").path == "/Web"
    assert SpiffeID.parse("spiffe://td/Web") != SpiffeID.parse("spiffe://td/web")


def test_the_bound_holds_for_made_ids_as_for_parsed_ones() -> None:
    longest = "a" * (2048 - len("spiffe://td/agent/"))
    assert len(str(SpiffeID.for_agent(TD, longest))) == 2048
    with pytest.raises(InvalidSpiffeID):
        SpiffeID.for_agent(TD, longest + "a")


def test_hostile_text_reaches_no_log_line_as_it_is() -> None:
    for text in ("spiffe://td/\n\x1b[31mforged", "x" * 5000):
        with pytest.raises(InvalidSpiffeID) as caught:
            SpiffeID.parse(text)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_a_service_account_is_known_by_exactly_its_form() -> None:
    web = SpiffeID.for_service_account(TD, "default", "web")
    assert str(web) == "spiffe://td/ns/default/sa/web"
    assert (web.namespace, web.service_account) == ("default", "web")
    for path in ("", "/ns/default", "/ns/default/sa/web/x", "/sa/web/ns/default", "/x/default/sa/web", "/a/b/c/d"):
        other = SpiffeID(TD, path)
        assert other.namespace is None
        assert other.service_account is None


def test_parts_of_a_made_id_can_not_smuggle_in_another_segment() -> None:
    for name in ("a/b", "", "a/sa/admin", "..", "."):
        with pytest.raises(InvalidSpiffeID):
            SpiffeID.for_service_account(TD, name, "web")
        with pytest.raises(InvalidSpiffeID):
            SpiffeID.for_agent(TD, name)


def test_the_ca_and_the_trust_domain_have_names_of_their_own() -> None:
    assert str(SpiffeID.for_ca(TD)) == "spiffe://td/ca"
    assert str(TD.id) == "spiffe://td"
    assert TD.id.path == ""
    assert SpiffeID.parse("spiffe://td") == TD.id


def test_values_are_immutable_and_equal_by_content() -> None:
    one, same = SpiffeID.parse("spiffe://td/x"), SpiffeID(TrustDomain("td"), "/x")
    assert one == same
    assert len({one, same}) == 1
    assert one != SpiffeID.parse("spiffe://td/y")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.path = "/y"  # type: ignore[misc]  # the point of the test
