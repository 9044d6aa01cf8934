"""Envoy's secret discovery: certificates and validation contexts for the sidecars on this machine."""
