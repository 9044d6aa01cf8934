"""Certificates in files."""
