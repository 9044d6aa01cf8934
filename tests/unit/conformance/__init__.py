"""The SPIFFE standards, requirement by requirement, as whoever reads an SVID or a bundle must keep them.

The name of each test carries the handle of its requirement; `tests/architecture/test_conformance.py` lists the handles.
"""
