"""Configuration files of the demo, written in TOML: strings, numbers and lists of them look there as in JSON."""

from __future__ import annotations

import json


def table(name: str = "", /, **values: object) -> str:
    """One table, with its head if it has a name: `table("[socket]", ...)` is a row of an array of tables."""
    head = f"[{name}]\n" if name else ""
    return head + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()) + "\n"
