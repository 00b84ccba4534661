"""What doctor says is optional is there to be used."""

import re

import pytest

from models.scan.backends import Backend
from scaling.cli.doctor import OPTIONAL, doctor
from tests.scaling.runs import HOME


@pytest.mark.parametrize("package", OPTIONAL)
def test_each_optional_package_is_used(package: str) -> None:
    sources = [path.read_text() for room in ("scaling", "analysis", "tests") for path in (HOME / room).rglob("*.py")]
    used = re.compile(rf"^ *(import|from) [\w.]*\b{package}\b|importorskip\(.{package}\b", re.MULTILINE)
    assert any(used.search(text) for text in sources)


def test_reasons_are_printed_as_they_stand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Loaders name libraries in brackets, which are no markup."""
    reason = "ImportError: [/usr/lib/libcudart.so] undefined symbol"
    monkeypatch.setattr("models.scan.available_backends", lambda: [Backend("triton", False, reason)])
    monkeypatch.setattr("scaling.cli.doctor.import_error", lambda _: reason)
    monkeypatch.setattr("scaling.cli.doctor.metadata.version", lambda _: "1.0")
    monkeypatch.setenv("COLUMNS", "200")
    doctor(cluster=False)
    assert capsys.readouterr().out.count(reason) == 2
