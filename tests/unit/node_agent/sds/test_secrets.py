"""Which name gives which secret, and what is in it."""

from __future__ import annotations

import pytest
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig

from istio_auth.bundle import BundleSet
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.sds.secrets import Renderer, resolve
from tests.fakes.authority import FakeAuthority

LOCAL = TrustDomain("cluster.local")


@pytest.fixture
def context(authority: FakeAuthority, foreign_authority: FakeAuthority) -> X509Context:
    svids = (FakeAuthority(parent=authority).svid("/web"), authority.svid("/db"))
    return X509Context(svids, BundleSet((authority.bundle(), foreign_authority.bundle())))


def secret(name: str, context: X509Context, render: Renderer | None = None) -> Secret:
    resource = resolve(name, context, render or Renderer(), LOCAL)
    assert resource is not None
    found = Secret.FromString(resource.body)
    assert resource.name == found.name == name
    assert resource.content.roots is None or (found.WhichOneof("type") == "validation_context")
    return found


@pytest.mark.parametrize(
    ("name", "index"), [("default", 0), ("spiffe://cluster.local/web", 0), ("spiffe://cluster.local/db", 1)]
)
def test_a_certificate_is_the_whole_chain_and_its_key(context: X509Context, name: str, index: int) -> None:
    certificate = secret(name, context).tls_certificate
    svid = X509SVID.parse(certificate.certificate_chain.inline_bytes, certificate.private_key.inline_bytes)
    assert svid.chain == context.svids[index].chain


def test_rootca_is_our_own_roots_and_no_others(context: X509Context, authority: FakeAuthority) -> None:
    found = secret("ROOTCA", context).validation_context
    assert found.trusted_ca.inline_bytes == authority.bundle().to_pem()


def validator(found: Secret) -> dict[str, bytes]:
    custom = found.validation_context.custom_validator_config
    assert custom.name == "envoy.tls.cert_validator.spiffe"
    assert not found.validation_context.trusted_ca.inline_bytes
    config = SPIFFECertValidatorConfig()
    assert custom.typed_config.Unpack(config)
    return {domain.name: domain.trust_bundle.inline_bytes for domain in config.trust_domains}


def test_a_trust_domain_is_bound_to_its_own_roots(
    context: X509Context, authority: FakeAuthority, foreign_authority: FakeAuthority
) -> None:
    own, foreign = authority.bundle().to_pem(), foreign_authority.bundle().to_pem()
    assert validator(secret("spiffe://cluster.local", context)) == {"cluster.local": own}
    assert validator(secret("spiffe://foreign.test", context)) == {"foreign.test": foreign}
    assert validator(secret("ALL", context)) == {"cluster.local": own, "foreign.test": foreign}


@pytest.mark.parametrize(
    "name",
    ["", "Default", "spiffe://cluster.local/other", "spiffe://unknown.test", "spiffe://cluster.local/", "file-root:/x"],
)
def test_every_other_name_gives_nothing(context: X509Context, name: str) -> None:
    assert resolve(name, context, Renderer(), LOCAL) is None


@pytest.mark.parametrize("name", ["default", "ROOTCA", "ALL", "spiffe://cluster.local"])
def test_who_has_no_identity_gets_nothing_at_all(context: X509Context, name: str) -> None:
    assert resolve(name, X509Context((), context.bundles), Renderer(), LOCAL) is None


def test_what_was_rendered_is_shared_until_it_changes(context: X509Context, authority: FakeAuthority) -> None:
    render = Renderer()
    for name in ("default", "ROOTCA", "ALL", "spiffe://cluster.local"):
        assert resolve(name, context, render, LOCAL) is resolve(name, context, render, LOCAL)
    renewed = X509Context((authority.svid("/web"),), context.bundles)
    before, after = resolve("default", context, render, LOCAL), resolve("default", renewed, render, LOCAL)
    assert before is not None
    assert after is not None
    assert before.digest != after.digest


def test_another_workloads_default_is_another_secret(context: X509Context) -> None:
    render = Renderer()
    other = X509Context(context.svids[1:], context.bundles)
    assert secret("default", context, render) != secret("default", other, render)
    assert secret("default", context, render) == secret("default", context, Renderer())


def test_a_key_does_not_outlive_its_registration(context: X509Context) -> None:
    render = Renderer()
    web, db = (resolve(str(svid.id), context, render, LOCAL) for svid in context.svids)
    render.keep({context.svids[1].id})
    assert resolve(str(context.svids[1].id), context, render, LOCAL) is db
    assert resolve(str(context.svids[0].id), context, render, LOCAL) is not web
