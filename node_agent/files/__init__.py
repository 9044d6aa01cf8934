"""Certificates in files, for software that reads nothing else: written as one whole, then the software is told."""
