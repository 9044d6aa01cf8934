"""The standalone platform: what is wired together works, and says how it fares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ca.certificate_authority import Settings
from ca.metrics import CAMetrics
from ca.platform.standalone import Standalone
from istio_auth.errors import ConfigurationError, IstioAuthError
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.clock import FakeClock
from tests.fakes.standalone import NOBODY, StandaloneCA, call, csr, istio_request, new_key, pem


@pytest.fixture
async def ca(tmp_path: Path, clock: FakeClock) -> AsyncIterator[StandaloneCA]:
    ca = StandaloneCA(tmp_path, clock)
    yield ca
    await ca.platform.close()


def scraped(ca: StandaloneCA) -> dict[str, float]:
    registry = CollectorRegistry()
    CAMetrics(registry, ca.platform.counts, ca.platform.gauges())
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def test_the_names_of_citadels_metrics_are_kept(ca: StandaloneCA) -> None:
    await ca.enrolled()
    with pytest.raises(IstioAuthError):
        await ca.istio.create_certificate(istio_request("x"), call(NOBODY))
    with pytest.raises(IstioAuthError):
        await ca.istio.create_certificate(istio_request("x"), call(NOBODY, f"Bearer {ca.token()}"))
    found = scraped(ca)
    assert found["citadel_server_csr_count"] == 3
    assert found["citadel_server_authentication_failure_count"] == 1
    assert found["citadel_server_success_cert_issuance_count"] == 1
    assert found['citadel_server_csr_sign_err_count{error="CSR_ERROR"}'] == 1
    assert found["citadel_server_root_cert_expiry_timestamp"] == ca.platform.authority.not_after.timestamp()
    assert found['istio_auth_ca_certificates_issued_total{method="join-token"}'] == 1
    assert found['istio_auth_ca_certificates_refused_total{method="none",reason="not_authenticated"}'] == 1
    assert found['istio_auth_ca_certificates_refused_total{method="join-token",reason="malformed"}'] == 1


async def test_gauges_are_looked_up_when_asked(ca: StandaloneCA) -> None:
    before = scraped(ca)
    ca.clock.advance(timedelta(hours=1))
    after = scraped(ca)
    assert (
        before["istio_auth_ca_authority_remaining_seconds"] - after["istio_auth_ca_authority_remaining_seconds"] == 3600
    )
    await ca.enrolled()
    ca.platform.sync_book.opened("node-1", ca.clock.now())
    found = scraped(ca)
    assert found["istio_auth_ca_agents_synced"] == 1
    assert found['istio_auth_ca_agent_sync_lag{agent="node-1"}'] == 1
    ca.platform.agents.evict("node-1", ca.clock.now())
    await ca.platform.reload_if_changed()
    found = scraped(ca)
    assert found["istio_auth_ca_agents_evicted"] == 1
    assert 'istio_auth_ca_agent_sync_lag{agent="node-1"}' not in found


async def test_a_bad_registrations_file_is_told_and_does_not_make_us_unready(ca: StandaloneCA) -> None:
    _write(ca.registrations, "[[")
    await ca.platform.reload_if_changed()
    assert ca.platform.not_ready() is None
    assert any("registrations" in warning for warning in ca.platform.warnings())
    found = scraped(ca)
    assert (found["istio_auth_ca_registrations_stale"], found["istio_auth_ca_registrations"]) == (1, 1)
    assert found["istio_auth_ca_registrations_reload_failures"] == 1
    _write(ca.registrations, "")
    await ca.platform.reload_if_changed()
    assert not ca.platform.warnings()
    assert scraped(ca)["istio_auth_ca_registrations_stale"] == 0


def _write(path: Path, text: str) -> None:
    path.write_text(text)


async def test_it_is_not_ready_when_it_can_not_tell_who_is_evicted(ca: StandaloneCA) -> None:
    evicted = ca.folder / "agents" / "evicted"
    evicted.rename(ca.folder / "away")
    assert ca.platform.not_ready() is not None
    (ca.folder / "away").rename(evicted)
    assert ca.platform.not_ready() is None


async def test_a_second_start_has_the_same_authority_and_agents(
    ca: StandaloneCA, tmp_path: Path, clock: FakeClock
) -> None:
    agent = await ca.enrolled()
    roots = ca.platform.authority.root_pem()
    await ca.platform.close()
    again = StandaloneCA(tmp_path, clock)
    assert again.platform.authority.root_pem() == roots
    await again.istio.create_certificate(istio_request(pem(csr(new_key()))), call(agent))
    await again.platform.close()


async def test_the_state_of_another_trust_domain_stops_the_start(
    ca: StandaloneCA, tmp_path: Path, clock: FakeClock
) -> None:
    await ca.platform.close()
    foreign = Settings(TrustDomain("other.test"), ca.folder, tmp_path / "none.toml")
    with pytest.raises(ConfigurationError):
        Standalone(foreign, clock)


async def test_the_cas_own_server_name_can_not_be_registered(tmp_path: Path, clock: FakeClock) -> None:
    text = (
        '[[registration]]\nspiffe_id = "spiffe://cluster.local/ns/default/sa/web"\nagents = ["node-1"]\n'
        'selectors = ["unix:uid:1"]\ndns_names = ["NAME"]\n'
    )
    with pytest.raises(ConfigurationError):
        StandaloneCA(tmp_path / "a", clock, registrations=text.replace("NAME", "istio-ca.test"))
    ca = StandaloneCA(tmp_path / "b", clock, registrations=text.replace("NAME", "web.test"))
    await ca.platform.close()
