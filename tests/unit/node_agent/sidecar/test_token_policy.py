"""`--request-authentication`: which policies of a file a sidecar takes, what is refused, and what an operator hears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from istio_auth.envoy.bootstrap import sidecar_bootstrap
from istio_auth.envoy.endpoint import HostPort, UnixPath
from istio_auth.envoy.spec import Inbound, Mode, Protocol, SidecarSpec
from istio_auth.envoy.token_rules import DEFAULT_REFRESH, TokenRules
from istio_auth.errors import ConfigurationError
from istio_auth.pem import write_certificates
from istio_auth.policy.jwt_rule import JWTRule
from istio_auth.spiffe_id import SpiffeID
from node_agent.sidecar.file import read_sidecar
from node_agent.sidecar.token_policy import cautions, read_token_rules
from tests.fakes.authority import FakeAuthority
from tests.unit.node_agent.sidecar.test_command import run

WEB = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")
MINIMAL = ("--id", str(WEB), "--agent-socket", "/run/agent.sock", "--inbound", "0.0.0.0:8443=127.0.0.1:8080")
POLICY = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  {scope}
  jwtRules:
  - issuer: https://{name}.test
    jwksUri: {scheme}://keys.test/{name}
"""


def policy(name: str, namespace: str = "shop", scope: str = "", scheme: str = "http") -> str:
    return POLICY.format(name=name, namespace=namespace, scope=scope, scheme=scheme)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(policy("a"))
    return path


def read(file: Path, *labels: str, ca_file: Path | None = None) -> tuple[list[str], list[str]]:
    told: list[str] = []
    rules = read_token_rules(file, WEB, labels=labels, ca_file=ca_file, tell=told.append).rules
    return [rule.issuer for rule in rules], told


def test_policies_of_others_are_left_out_aloud(file: Path) -> None:
    app = "selector: {matchLabels: {app: %s}}"
    target = "targetRef: {kind: Service, name: web}"
    file.write_text(
        policy("own", scope=app % "web")
        + policy("other", scope=app % "db")
        + policy("root", "istio-system")
        + policy("bank", "bank")
        + policy("waypoint", scope=target)
    )
    issuers, told = read(file, "app=web")
    assert issuers == ["https://own.test", "https://root.test"]
    assert [line.split(":")[0] for line in told] == [
        "policy shop/other is left out",
        "policy bank/bank is left out",
        "policy shop/waypoint is left out",
    ]


def test_a_selector_is_never_passed_over(file: Path) -> None:
    file.write_text(policy("a", scope="selector: {matchLabels: {app: web}}"))
    with pytest.raises(ConfigurationError, match="which labels this one has"):
        read(file)
    assert read(file, "app=web") == (["https://a.test"], [])


def test_a_file_in_which_nothing_is_for_the_workload_is_refused(file: Path) -> None:
    file.write_text(policy("a", "bank"))
    with pytest.raises(ConfigurationError, match="no rule in it is for"):
        read(file)


@pytest.mark.parametrize("labels", [("app",), ("=web",), ("app=a", "app=b")])
def test_a_label_is_a_name_and_a_value(file: Path, labels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="label"):
        read(file, *labels)


def test_authorities_for_https_are_read_before_envoy_has_to(file: Path, authority: FakeAuthority) -> None:
    file.write_text(policy("a", scheme="https"))
    ca = file.with_name("ca.pem")
    with pytest.raises(ConfigurationError, match=str(ca)):
        read(file, ca_file=ca)
    ca.write_text("nothing")
    with pytest.raises(ConfigurationError, match=str(ca)):
        read(file, ca_file=ca)
    ca.write_bytes(write_certificates(authority.bundle().x509_authorities))
    assert read(file, ca_file=ca)[0] == ["https://a.test"]
    printed = json.loads(run(*MINIMAL, "--request-authentication", str(file), "--jwks-ca", str(ca)).stdout)
    assert str(ca) in json.dumps(printed)


def test_flags_and_file_say_the_same(file: Path) -> None:
    file.write_text(policy("a", scope="selector: {matchLabels: {app: web}}"))
    sidecar = file.with_name("sidecar.toml")
    sidecar.write_text(f"""
id = "{WEB}"
agent_socket = "/run/agent.sock"
request_authentication = "tokens.yaml"
labels = ["app=web"]
jwks_refresh = "1m"

[[inbound]]
listen = "0.0.0.0:8443"
forward = "127.0.0.1:8080"
require_token = true
""")
    flags = ("--request-authentication", str(file), "--label", "app=web", "--jwks-refresh", "1m", "--require-token")
    by_flags, by_file = run(*MINIMAL, *flags), run("--file", str(sidecar))
    assert by_flags.stdout == by_file.stdout == json.dumps(sidecar_bootstrap(read_sidecar(sidecar)), indent=2) + "\n"
    assert by_flags.stderr == by_file.stderr != ""
    assert '"origins-0"' in by_flags.stdout
    assert "allow_missing" not in by_flags.stdout
    assert "allow_missing" in run(*MINIMAL, *flags[:-1]).stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--require-token",), "requires a token: say whose"),
        (("--protocol", "tcp", "--require-token", "--request-authentication", "FILE"), "TCP has no place for a token"),
        (("--protocol", "tcp", "--request-authentication", "FILE"), "no inbound listener takes any"),
        (("--request-authentication", "/nowhere/tokens.yaml"), "/nowhere/tokens.yaml"),
        (("--request-authentication", "FILE", "--jwks-refresh", "1ms"), "once a second"),
        (("--label", "app=web"), "which is missing"),
        (("--jwks-ca", "FILE"), "which is missing"),
    ],
)
def test_tokens_where_they_can_not_be_are_refused(arguments: tuple[str, ...], told: str, file: Path) -> None:
    done = run(*MINIMAL, *(str(file) if word == "FILE" else word for word in arguments))
    assert isinstance(done.exception, ConfigurationError)
    assert told in str(done.exception)
    assert done.stdout == ""


def test_settings_that_would_do_nothing_are_refused(file: Path) -> None:
    sidecar = file.with_name("sidecar.toml")
    sidecar.write_text(f'id = "{WEB}"\nagent_socket = "/run/agent.sock"\nlabels = ["app=web"]\n')
    with pytest.raises(ConfigurationError, match="which is not set"):
        read_sidecar(sidecar)


def test_flags_for_tokens_do_not_go_with_a_file(file: Path) -> None:
    given = (
        ("--require-token",),
        ("--request-authentication", str(file)),
        ("--label", "a=b"),
        ("--jwks-ca", str(file)),
    )
    for flags in given:
        done = run("--file", "/dev/null", *flags)
        assert "not by both" in str(done.exception)


def test_what_tokens_do_not_do_is_told() -> None:
    def told(mode: Mode, protocol: Protocol, uri: str = "https://keys.test") -> list[str]:
        web = Inbound(HostPort("0.0.0.0", 1), HostPort("127.0.0.1", 9), protocol, mode)
        other = Inbound(HostPort("0.0.0.0", 2), HostPort("127.0.0.1", 9))
        rules = TokenRules((JWTRule(issuer="https://a.test", jwks_uri=uri),), "/ca.pem", DEFAULT_REFRESH)
        return list(cautions(SidecarSpec(WEB, UnixPath("/run/a.sock"), (web, other), tokens=rules)))

    assert told(Mode.STRICT, Protocol.HTTP) == []
    for mode in (Mode.PERMISSIVE, Mode.DISABLE):
        (line,) = told(mode, Protocol.HTTP2)
        assert "vouches for no peer" in line
    assert "no token is looked for" in told(Mode.STRICT, Protocol.TCP)[0]
    assert "without TLS" in told(Mode.STRICT, Protocol.HTTP, "http://keys.test")[0]
    assert (
        list(cautions(SidecarSpec(WEB, UnixPath("/run/a.sock"), (Inbound(HostPort("::", 1), HostPort("::1", 2)),))))
        == []
    )
