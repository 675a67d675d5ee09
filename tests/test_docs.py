"""The documentation names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from gankd.methods import METHODS

DOCS = Path(__file__).parent.parent / "docs"


def test_every_method_has_its_line_and_every_line_a_method() -> None:
    text = (DOCS / "methods.md").read_text()
    lines = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) - {"method"}
    ours = {
        name for name, method in METHODS.items() if method.__module__.startswith("gankd.")
    }  # and not those of tests
    assert lines | {"combined"} == ours and "name: combined" in text  # a list of others, which no table holds
