"""What doctor says is optional is there to be used."""

import re

import pytest

from scaling.cli.doctor import OPTIONAL
from tests.scaling.runs import HOME


@pytest.mark.parametrize("package", OPTIONAL)
def test_each_optional_package_is_used(package: str) -> None:
    sources = [path.read_text() for room in ("scaling", "analysis", "tests") for path in (HOME / room).rglob("*.py")]
    used = re.compile(rf"^ *(import|from) [\w.]*\b{package}\b|importorskip\(.{package}\b", re.MULTILINE)
    assert any(used.search(text) for text in sources)
