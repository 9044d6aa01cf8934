"""How hypothesis runs here."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: a loaded machine is no finding.
settings.register_profile("istio-auth", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("istio-auth")
