"""Tests of deploy/kubernetes."""
