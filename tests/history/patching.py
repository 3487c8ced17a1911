"""Log lines to read, and a second reader of unified diffs beside ``patch`` and git."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

TIME = "2026-01-31T12:00:00.123Z"


def line(
    host: str,
    port: int = 443,
    client: str = "10.20.0.7",
    *,
    event: str = "DENIED",
    reason: str | None = "host_not_allowed",
    timestamp: str = TIME,
    **more: Any,
) -> str:
    """An audit line, as the proxy writes it."""
    fields = {
        "timestamp": timestamp,
        "level": "warning",
        "event": event,
        "request_id": "0",
        "client": client,
        "method": "CONNECT",
        "host": host,
        "port": port,
        "reason": reason,
        **more,
    }
    kept = {key: value for key, value in fields.items() if value is not None}
    return json.dumps(kept, separators=(",", ":"))


def allowed(host: str, port: int = 443, client: str = "10.20.0.7", **more: Any) -> str:
    return line(host, port, client, **{"event": "ALLOWED", "reason": None, "policy": "p", **more})


_HUNK = re.compile(r"@@ -(\d+),(\d+) \+(\d+),(\d+) @@")


def apply_diff(diff: str, root: Path) -> None:
    """Apply a unified diff with ``-p0``, to the letter: no fuzz, no offset, every count right."""
    # Each line with its end, which a line without newline in a diff says behind it.
    parts = re.sub(r"\n\\ No newline at end of file\n", "\0", diff)
    lines = iter([each.removesuffix("\0") for each in re.findall(r"[^\n\0]*[\n\0]", parts)])
    path, old, new, done = Path(), [""], [""], 0
    for text in lines:
        if text.startswith("--- "):
            if path.name:
                path.write_bytes("".join([*new, *old[done:]]).encode())
            assert next(lines) == f"+++ {text[4:]}"
            path = root / text[4:].rstrip("\t\n")
            old, new, done = re.findall(r"[^\n]*\n|[^\n]+", path.read_bytes().decode()), [], 0
            continue
        hunk = _HUNK.fullmatch(text.rstrip("\n"))
        if hunk is None:
            assert text.startswith("# "), text
            continue
        start, removed, target, added = (int(number) for number in hunk.groups())
        new += old[done : start - 1]
        done = start - 1
        assert len(new) == target - 1
        while removed or added:
            body = next(lines)
            if body[0] in " -":
                assert old[done] == body[1:]
                done, removed = done + 1, removed - 1
            if body[0] in " +":
                new.append(body[1:])
                added -= 1
        assert (removed, added) == (0, 0)
    if path.name:
        path.write_bytes("".join([*new, *old[done:]]).encode())


def apply_with_tools(diff: str, root: Path) -> int:
    """Apply a diff with ``patch``, take it back, and apply it with git. Returns how many of the two there are."""
    used = 0
    if shutil.which("patch"):
        used += 1
        for options in ([], ["-R"]):
            command = ["patch", "-p0", "--binary", "--fuzz=0", "--no-backup-if-mismatch", *options]
            run = subprocess.run(
                command, input=diff.encode(), cwd=root, capture_output=True, check=False
            )
            assert run.returncode == 0, run.stdout + run.stderr
            assert b"offset" not in run.stdout, run.stdout
    if shutil.which("git"):
        used += 1
        run = subprocess.run(
            ["git", "apply", "-p0", "--whitespace=nowarn", "-"],
            input=diff.encode(),
            cwd=root,
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
    return used
