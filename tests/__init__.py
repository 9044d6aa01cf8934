"""Tests, by what they need: see the folders."""
