"""Reloading: every way in which a file is replaced is seen, and nothing broken ever takes effect."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from egress_proxy.config import reload as reload_module
from egress_proxy.config.errors import ConfigError, Problem
from egress_proxy.config.load import Loaded, load
from egress_proxy.config.model import Config
from egress_proxy.config.reload import Reloader, ReloadOutcome
from egress_proxy.config.sources import Sources

POLL = 0.01


def text(host: str, extra: str = "") -> str:
    return f"version: 1\n{extra}policies: [{{name: everyone, allow: [{host}]}}]\n"


def hosts(config: Config) -> str:
    return " ".join(str(rule.target) for policy in config.policy.policies for rule in policy.rules)


class Watched:
    """A reloader and all that it told."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.swaps: list[tuple[str, int]] = []
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.threads: set[int] = set()
        self.reloader = Reloader(
            str(path),
            load(str(path)).config,
            self.on_swap,
            self.on_error,
            on_warnings=self.on_warnings,
            poll_interval=options.get("poll_interval", POLL),
        )

    def on_swap(self, config: Config, generation: int) -> None:
        self.threads.add(threading.get_ident())
        self.swaps.append((hosts(config), generation))

    def on_error(self, error: ConfigError) -> None:
        self.threads.add(threading.get_ident())
        self.errors.append(str(error).replace(str(self.path), "FILE"))

    def on_warnings(self, problems: tuple[Problem, ...]) -> None:
        self.warnings += [str(problem).replace(str(self.path), "FILE") for problem in problems]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        watch = asyncio.ensure_future(self.reloader.watch())
        try:
            await self.settle()
            yield
            # Whatever happened, the watch goes on.
            assert not watch.done()
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def settle(self) -> None:
        """Wait for several looks at the file, so that what must not happen has had its time."""
        await asyncio.sleep(8 * POLL)

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, (self.swaps, self.errors)
            await asyncio.sleep(POLL / 2)

    async def until_swapped(self, host: str) -> None:
        await self.until(lambda: bool(self.swaps) and self.swaps[-1][0] == host)
        assert self.reloader.generation == self.swaps[-1][1]
        assert hosts(self.reloader.config) == host


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "egress.yaml"
    path.write_text(text("one.example"))
    return path


# Every way to replace a file. -------------------------------------------------------------------------------------


async def test_writing_in_place(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        file.write_text(text("two.example"))
        await watched.until_swapped("two.example")
    assert watched.swaps == [("two.example", 2)]
    assert watched.errors == []
    assert watched.threads == {threading.get_ident()}


async def test_renaming_over_it(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        for number, host in enumerate(("two.example", "six.example", "ten.example"), start=2):
            other = file.with_name("new")
            other.write_text(text(host))
            # As rsync and cp -p do: neither the size nor the time tells.
            os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
            other.rename(file)
            await watched.until_swapped(host)
            assert watched.reloader.generation == number
    assert watched.errors == []


async def test_writing_in_place_with_the_time_set_back(file: Path) -> None:
    watched = Watched(file)
    before = file.stat()
    async with watched.watching():
        file.write_text(text("two.example"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        await watched.until_swapped("two.example")
    now = file.stat()
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


async def test_an_editor_that_moves_the_old_file_away(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        file.rename(file.with_name("egress.yaml~"))
        file.write_text(text("two.example"))
        await watched.until_swapped("two.example")
    assert watched.errors == []


def fill_volume(volume: Path, stamp: str, content: str) -> None:
    """Update a ConfigMap's volume as the kubelet does: a new directory, and a symlink renamed over the old one."""
    data = volume / stamp
    data.mkdir()
    (data / "egress.yaml").write_text(content)
    old = (volume / "..data").readlink() if (volume / "..data").is_symlink() else None
    (volume / "..data_tmp").symlink_to(stamp)
    (volume / "..data_tmp").rename(volume / "..data")
    if not (volume / "egress.yaml").is_symlink():
        (volume / "egress.yaml").symlink_to("..data/egress.yaml")
    if old is not None:
        (volume / old / "egress.yaml").unlink()
        (volume / old).rmdir()


async def test_a_configmap(tmp_path: Path) -> None:
    fill_volume(tmp_path, "..2026_01_31_12_00_00.1", text("one.example"))
    watched = Watched(tmp_path / "egress.yaml")
    async with watched.watching():
        fill_volume(tmp_path, "..2026_01_31_12_01_00.2", text("two.example"))
        await watched.until_swapped("two.example")
        fill_volume(tmp_path, "..2026_01_31_12_02_00.3", text("six.example"))
        await watched.until_swapped("six.example")
        # Another key of the ConfigMap changed: the directory is new, and the content is not.
        fill_volume(tmp_path, "..2026_01_31_12_03_00.4", text("six.example"))
        await watched.settle()
    assert watched.swaps == [("two.example", 2), ("six.example", 3)]
    assert watched.errors == []


# What must not take effect. ---------------------------------------------------------------------------------------


async def test_unchanged_content_is_no_reload(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        file.touch()
        await watched.settle()
        file.write_text(file.read_text())
        await watched.settle()
        file.chmod(0o600)
        await watched.settle()
    assert (watched.swaps, watched.errors) == ([], [])


async def test_a_broken_file_is_told_once_and_changes_nothing(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        file.write_text(text(".example"))
        await watched.until(lambda: bool(watched.errors))
        await watched.settle()
        # Touched, but no better and no worse.
        file.touch()
        await watched.settle()
        assert watched.errors == [
            'FILE:2:37: `.example` starts with a dot; write "*.example" [bad-host]'
        ]
        assert (watched.reloader.generation, hosts(watched.reloader.config)) == (1, "one.example")
        file.write_text(text("https://other/"))
        await watched.until(lambda: len(watched.errors) == 2)
        file.write_text(text("two.example"))
        await watched.until_swapped("two.example")
        file.write_text(text(".example"))
        await watched.until(lambda: len(watched.errors) == 3)
    assert watched.swaps == [("two.example", 2)]


async def test_a_broken_file_that_is_put_back(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        for count in (1, 2):
            file.write_text(text(".example"))
            await watched.until(lambda count=count: len(watched.errors) == count)  # type: ignore[misc]
            file.write_text(text("one.example"))
            await watched.settle()
    assert watched.swaps == []


async def test_a_file_that_vanishes_and_comes_back(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        file.unlink()
        await watched.until(lambda: bool(watched.errors))
        await watched.settle()
        assert watched.errors == [
            "FILE: there is no such file; name an existing one [unreadable-file]"
        ]
        assert hosts(watched.reloader.config) == "one.example"
        file.mkdir()
        await watched.until(lambda: len(watched.errors) == 2)
        assert watched.errors[1] == (
            "FILE: this is a directory; name the configuration file in it [unreadable-file]"
        )
        file.rmdir()
        file.write_text(text("two.example"))
        await watched.until_swapped("two.example")
    assert len(watched.errors) == 2


async def test_half_a_file_does_not_take_effect(file: Path) -> None:
    """A policy without its last lines is a policy as well, one that denies less."""
    whole = (
        "version: 1\npolicies:\n  - name: everyone\n    allow:\n      - '*.example'\n    deny:\n"
        + "".join(f"      - d{number}.example\n" for number in range(12))
    )
    # Slow looks, so that a slow machine does not make the writer seem to have ended.
    watched = Watched(file, poll_interval=0.1)
    async with watched.watching():
        with file.open("w") as out:
            for line in whole.splitlines(keepends=True):
                out.write(line)
                out.flush()
                await asyncio.sleep(POLL / 2)
        await watched.until(lambda: bool(watched.swaps))
    assert [generation for _, generation in watched.swaps] == [2]
    assert watched.swaps[0][0].endswith("d11.example")
    assert watched.errors == []


# On demand. -------------------------------------------------------------------------------------------------------


async def test_reload_on_demand(file: Path) -> None:
    watched = Watched(file)
    result = await watched.reloader.reload()
    assert (result.outcome, result.generation) == (ReloadOutcome.UNCHANGED, 1)
    file.write_text(text("two.example"))
    result = await watched.reloader.reload()
    assert (result.outcome, result.generation, result.error) == (ReloadOutcome.SWAPPED, 2, None)
    file.write_text(text(".example"))
    for count in (1, 2):
        result = await watched.reloader.reload()
        assert (result.outcome, result.generation) == (ReloadOutcome.FAILED, 2)
        assert result.error is not None
        # Who asks is answered each time.
        assert len(watched.errors) == count
    assert watched.swaps == [("two.example", 2)]


async def test_what_was_told_on_demand_is_not_told_again(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        file.write_text(text(".example"))
        await watched.reloader.reload()
        await watched.settle()
    assert len(watched.errors) == 1


async def test_reloads_do_not_overlap(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = 0
    most = 0

    def slow(path: str, sources: Sources) -> Loaded:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return load(path, sources)

    watched = Watched(file)
    monkeypatch.setattr(reload_module, "load", slow)
    async with watched.watching():
        file.write_text(text("two.example"))
        results = await asyncio.gather(*(watched.reloader.reload() for _ in range(8)))
    assert most == 1
    assert [result.outcome for result in results].count(ReloadOutcome.SWAPPED) == 1
    assert {result.generation for result in results} == {2}
    assert watched.swaps == [("two.example", 2)]


async def test_the_event_loop_goes_on_while_a_file_is_parsed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def slow(path: str, sources: Sources) -> Loaded:
        assert release.wait(10)
        return load(path, sources)

    watched = Watched(file)
    monkeypatch.setattr(reload_module, "load", slow)
    file.write_text(text("two.example"))
    task = asyncio.ensure_future(watched.reloader.reload())
    await asyncio.sleep(0.02)
    assert not task.done()
    release.set()
    assert (await task).outcome is ReloadOutcome.SWAPPED


async def test_a_file_that_never_stands_still(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(path: str, sources: Sources) -> Loaded:
        found = load(path, sources)
        Path(path).write_bytes(Path(path).read_bytes() + b"#\n")
        return found

    watched = Watched(file)
    monkeypatch.setattr(reload_module, "load", restless)
    result = await watched.reloader.reload()
    assert result.outcome is ReloadOutcome.FAILED
    assert watched.errors == [
        "FILE: the file changes while it is read; write it elsewhere and rename it over this one [unreadable-file]"
    ]


# Further files. ---------------------------------------------------------------------------------------------------


async def test_every_file_is_followed(tmp_path: Path) -> None:
    main, hosts_file, folder = tmp_path / "main.yaml", tmp_path / "hosts.txt", tmp_path / "d"
    folder.mkdir()
    hosts_file.write_text("one.example\n")
    main.write_text(
        "version: 1\ninclude: [d]\nsets: {a: {file: hosts.txt}}\n"
        "policies: [{name: p, allow: ['@a']}]\n"
    )
    watched = Watched(main)

    def known() -> set[str]:
        policies = watched.reloader.config.policy.policies
        return {
            text
            for policy in policies
            for rule in policy.rules
            for text in getattr(rule.target, "patterns", (str(rule.target),))
        }

    async with watched.watching():
        assert known() == {"one.example"}
        hosts_file.write_text("two.example\n")
        await watched.until(lambda: known() == {"two.example"})
        # A file that was not there before.
        (folder / "more.yaml").write_text(
            "version: 1\ninclude: [gone.yaml]\npolicies: [{name: q, allow: [more.example]}]\n"
        )
        await watched.until(lambda: len(watched.errors) == 1)
        assert "gone.yaml: there is no such file" in watched.errors[0]
        assert known() == {"two.example"}
        # What is wrong is mended in another file than the one that changed last.
        (folder / "gone.yaml").write_text("version: 1\nsets: {b: [b.example]}\n")
        await watched.until(lambda: len(watched.errors) == 2)
        assert "included twice" in watched.errors[1]
        (folder / "more.yaml").write_text(
            "version: 1\npolicies: [{name: q, allow: [more.example, '@b']}]\n"
        )
        await watched.until(lambda: known() == {"two.example", "more.example", "b.example"})
        (folder / "gone.yaml").unlink()
        (folder / "more.yaml").unlink()
        await watched.until(lambda: known() == {"two.example"})


async def test_an_unchanged_configuration_is_not_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, a large one would be parsed twice."""
    loads = 0

    def counting(path: str, sources: Sources) -> Loaded:
        nonlocal loads
        loads += 1
        return load(path, sources)

    watched = Watched(file)
    monkeypatch.setattr(reload_module, "load", counting)
    async with watched.watching():
        await watched.settle()
        assert loads == 0
        file.touch()
        await watched.until(lambda: loads == 1)
        await watched.settle()
        assert loads == 1


# What needs a restart. --------------------------------------------------------------------------------------------


async def test_what_needs_a_restart_keeps_its_value(file: Path) -> None:
    watched = Watched(file)
    before = watched.reloader.config
    changed = (
        'listen: {proxy: "127.0.0.1:9"}\n'
        "dns: {timeout: 1s}\n"
        "audit: {queue_lines: 1}\n"
        "timeouts: {idle: 2s}\n"
        "limits: {connections: 5}\n"
    )
    file.write_text(text("two.example", changed))
    result = await watched.reloader.reload()
    assert result.outcome is ReloadOutcome.SWAPPED
    said = [
        f"FILE:{line}:1: warning: `{key}` has changed, which takes effect at the next start alone; "
        "restart the proxy [needs-restart]"
        for line, key in ((2, "listen"), (3, "dns"), (4, "audit"))
    ]
    assert [str(problem).replace(str(file), "FILE") for problem in result.warnings] == said
    assert watched.warnings == said
    config = watched.reloader.config
    assert (config.listen, config.dns, config.audit) == (before.listen, before.dns, before.audit)
    assert (config.timeouts.idle, config.limits.connections) == (2, 5)
    assert hosts(config) == "two.example"
    # Removed again, it is what it was all the time.
    file.write_text(text("six.example"))
    assert (await watched.reloader.reload()).warnings == ()


async def test_a_section_that_was_removed(file: Path) -> None:
    file.write_text(text("one.example", "audit: {queue_lines: 5}\n"))
    watched = Watched(file)
    file.write_text(text("two.example"))
    (warning,) = (await watched.reloader.reload()).warnings
    assert str(warning).startswith(f"{file}: warning: `audit` has changed")
    assert watched.reloader.config.audit.queue_lines == 5


async def test_warnings_of_the_file_itself(file: Path) -> None:
    watched = Watched(file)
    async with watched.watching():
        file.write_text(text('"*"'))
        await watched.until_swapped("*")
    assert len(watched.warnings) == 1


# Defects. ---------------------------------------------------------------------------------------------------------


async def test_a_defect_of_the_loader_is_told_once_and_survived(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(path: str, sources: Sources) -> Loaded:
        if b"two" in sources.read(path):
            raise ZeroDivisionError
        return load(path, sources)

    watched = Watched(file)
    monkeypatch.setattr(reload_module, "load", defective)
    async with watched.watching():
        file.write_text(text("two.example"))
        await watched.until(lambda: bool(watched.errors))
        await watched.settle()
        (said,) = watched.errors
        assert said.startswith(
            "FILE: the configuration could not be loaded because of a defect of the program: Zero"
        )
        assert hosts(watched.reloader.config) == "one.example"
        result = await watched.reloader.reload()
        assert result.error is not None
        assert isinstance(result.error.__cause__, ZeroDivisionError)
        file.write_text(text("six.example"))
        await watched.until_swapped("six.example")


async def test_a_configuration_that_nobody_takes_is_not_in_force(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(file)

    def refuse(config: Config, generation: int) -> None:
        raise RuntimeError

    monkeypatch.setattr(watched.reloader, "_on_swap", refuse)
    file.write_text(text("two.example"))
    result = await watched.reloader.reload()
    assert (result.outcome, result.generation) == (ReloadOutcome.FAILED, 1)
    assert hosts(watched.reloader.config) == "one.example"
    monkeypatch.setattr(watched.reloader, "_on_swap", watched.on_swap)
    assert (await watched.reloader.reload()).outcome is ReloadOutcome.SWAPPED


async def test_a_callback_s_defect_does_not_end_the_watch(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(file)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def fail(error: ConfigError) -> None:
        raise RuntimeError

    monkeypatch.setattr(watched.reloader, "_on_error", fail)
    async with watched.watching():
        file.write_text(text(".example"))
        await watched.until(lambda: bool(told))
        await watched.settle()
        assert [type(context["exception"]) for context in told] == [RuntimeError]
        file.write_text(text("two.example"))
        await watched.until_swapped("two.example")
