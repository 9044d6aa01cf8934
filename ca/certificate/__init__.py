"""Certificates: one module builds them from constant parts, another checks them and shares no code with the first."""
