"""The hosts file: what it says, and when it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from egress_proxy.net.hosts_file import HostsFile, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# nothing\n\n   \n", {}),
        ("192.0.2.1 a.test\n", {"a.test": ("192.0.2.1",)}),
        ("192.0.2.1\ta.test b.test # c.test", {"a.test": ("192.0.2.1",), "b.test": ("192.0.2.1",)}),
        ("192.0.2.1 a.test\r\n", {"a.test": ("192.0.2.1",)}),
        ("192.0.2.1 A.Test. ", {"a.test": ("192.0.2.1",)}),
        ("192.0.2.1 bücher.test", {"xn--bcher-kva.test": ("192.0.2.1",)}),
        ("192.0.2.1 a.test\n192.0.2.2 a.test\n", {"a.test": ("192.0.2.1", "192.0.2.2")}),
        ("192.0.2.1 a.test a.test\n192.0.2.1 a.test\n", {"a.test": ("192.0.2.1",)}),
        (
            "2001:db8::2 a.test\n192.0.2.2 a.test\n2001:DB8::1 a.test\n192.0.2.1 a.test",
            {"a.test": ("192.0.2.2", "192.0.2.1", "2001:db8::2", "2001:db8::1")},
        ),
        ("192.0.2.1", {}),
        ("a.test 192.0.2.1", {}),
        ("192.0.2.300 a.test", {}),
        ("127.1 a.test", {}),
        ("192.0.2.1 *.test -- a..test ok.test", {"--": ("192.0.2.1",), "ok.test": ("192.0.2.1",)}),
        ("192.0.2.1 10.0.0.1 0x7f.1", {}),
        ("\x00\x00 \ufffd\n192.0.2.1 a.test", {"a.test": ("192.0.2.1",)}),
        ("# note\x0c192.0.2.66 a.test\n# note\u2028192.0.2.66 b.test", {}),
    ],
)
def test_what_it_says(text: str, expected: dict[str, tuple[str, ...]]) -> None:
    assert parse(text) == expected


def test_it_is_read_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    file = HostsFile(str(path))
    assert file.look() == {}
    assert file.look() is None
    path.write_text("192.0.2.1 a.test\n")
    assert file.look() == {"a.test": ("192.0.2.1",)}
    assert file.look() is None
    path.write_text("192.0.2.2 a.test\n")
    os.utime(path, ns=(1, 1))
    assert file.look() == {"a.test": ("192.0.2.2",)}
    path.unlink()
    assert file.look() == {}
    assert file.look() is None
    path.write_bytes(b"192.0.2.3 \xff.test a.test\n")
    assert file.look() == {"a.test": ("192.0.2.3",)}


def test_one_that_takes_the_place_of_another_is_seen(tmp_path: Path) -> None:
    """As Kubernetes does it; of the same size, and of the same time too."""
    path, new = tmp_path / "hosts", tmp_path / "new"
    path.write_text("192.0.2.1 a.test\n")
    os.utime(path, ns=(1, 1))
    file = HostsFile(str(path))
    assert file.look() == {"a.test": ("192.0.2.1",)}
    new.write_text("192.0.2.2 a.test\n")
    os.utime(new, ns=(1, 1))
    new.replace(path)
    assert file.look() == {"a.test": ("192.0.2.2",)}


def test_one_that_cannot_be_read_leaves_what_was_known(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("192.0.2.1 a.test\n")
    file = HostsFile(str(path))
    assert file.look() == {"a.test": ("192.0.2.1",)}
    path.unlink()
    path.mkdir()
    assert file.look() is None
    path.rmdir()
    path.write_text("192.0.2.2 a.test\n")
    assert file.look() == {"a.test": ("192.0.2.2",)}
