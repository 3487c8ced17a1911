"""Workers read what the supervisor has read, whatever stands in the files by then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from egress_proxy.config.errors import ConfigError
from egress_proxy.config.load import load, parse
from egress_proxy.config.model import Audit, Dns, FileState, MemoryState, SharedState, State
from egress_proxy.config.reload import NEEDS_RESTART
from egress_proxy.supervise.snapshot import Kept, Recorded, Recording, Snapshot

MAIN = """\
version: 1
include: [more.d, single.yaml]
credentials: {users_file: users}
upstream: {proxy: "http://192.0.2.1:3128", credentials_file: secret}
policies:
  - {name: one, allow: [example.com]}
"""
#: Of "secret", as htpasswd -B writes it.
USERS = "batch:$2y$05$C6UzMDM.H6dfI/f/IKcEeO4TIhfMZJ1qQDoQHFxPk9Jxj7uXnHSbW\n"


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "more.d" / "inner").mkdir(parents=True)
    (tmp_path / "more.d" / "a.yaml").write_text(
        "version: 1\npolicies: [{name: a, allow: [a.test]}]\n"
    )
    (tmp_path / "more.d" / "inner" / "b.yaml").write_text(
        "version: 1\npolicies: [{name: b, allow: [b.test]}]\n"
    )
    (tmp_path / "single.yaml").write_text("version: 1\npolicies: [{name: c, deny: [c.test]}]\n")
    (tmp_path / "users").write_text(USERS)
    (tmp_path / "secret").write_text("user:password\n")
    main = tmp_path / "main.yaml"
    main.write_text(MAIN)
    return str(main)


def test_the_same_configuration_comes_of_it(path: str, tmp_path: Path) -> None:
    recording = Recording()
    read = load(path, recording).config
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(recording.snapshot), type=Snapshot)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.write_text("broken: [")
    again = load(path, Recorded(sent)).config
    assert again.digest == read.digest
    assert [each.name for each in again.policy.policies] == ["one", "a", "b", "c"]
    assert again.policy.rule_count == read.policy.rule_count
    assert again.credentials == read.credentials
    assert again.parent_credentials == read.parent_credentials
    assert again.parent_credentials


def test_a_file_that_was_not_read_is_not_read_now(path: str) -> None:
    recording = Recording()
    load(path, recording)
    (left_out,) = [file for file in recording.snapshot.files if file.endswith("single.yaml")]
    del recording.snapshot.files[left_out]
    with pytest.raises(ConfigError, match=r"single\.yaml: the supervisor did not read this file"):
        load(path, Recorded(recording.snapshot))


@pytest.mark.parametrize(
    "state",
    [MemoryState(), FileState("/var/lib/x.db"), SharedState("redis.test", password="secret")],
)
def test_sections_that_wait_for_a_restart(state: State) -> None:
    """A worker that is started again has what the others have, whatever the file says by now."""
    first = replace(
        parse(b"version: 1\npolicies: [{name: one, allow: [a.test]}]\n", "a.yaml").config,
        dns=Dns(servers=("192.0.2.1:53",), timeout=3.0),
        audit=Audit(queue_lines=7),
        state=state,
    )
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Kept.of(first)), type=Kept)
    now = parse(b"version: 1\npolicies: [{name: two, allow: [b.test]}]\n", "a.yaml").config
    found = sent.in_place(now)
    assert found.policy is now.policy
    # Where to listen, a worker is told anyway.
    for section in set(NEEDS_RESTART) - {"listen"}:
        assert getattr(found, section) == getattr(first, section), section
