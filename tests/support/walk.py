"""The page that walks through all error codes, run against the real proxy.

``.venv/bin/python -m tests.support.walk`` runs every command of docs/errors-walk.md and writes what came of it
beneath. Prose, files and commands are written by hand:

- a fenced block behind ``<!-- file: NAME -->`` is a file of the folder in which everything runs;
- in a ``console`` block, ``$ `` begins a command, and what stands below it is what it printed;
- behind ``<!-- proxy: defective -->`` the proxy is the one of :mod:`tests.support.defective`.

Ports are those of the page; what differs from one run to the next is left out.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.proxy import COMMAND, Proxy, clean_environment

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors-walk.md"
DEFECTIVE = (sys.executable, str(Path(__file__).with_name("defective.py")), "serve")

#: Where the proxy of the page listens, as it does by default.
PROXY, ADMIN = "127.0.0.1:3128", "127.0.0.1:9090"

# On the page it listens on its default ports, which may be in use where this runs.
_HERE = 'listen: {proxy: "127.0.0.1:0", admin: "127.0.0.1:0"}\n'
_FILE = re.compile(r"^<!-- file: ([a-z.]+) -->\n```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n", re.MULTILINE)
#: What differs from one run to the next: the ids of requests, and how long a limit still holds.
_MASKED = (
    (re.compile(r'"request_id":"[0-9a-f]{16}"'), '"request_id":"…"'),
    (re.compile(r"(?s)(?<=^HTTP/1\.1 429 )(.*?\nRetry-After: )[0-9]+$", re.MULTILINE), r"\1…"),
)
_DEFECTIVE_FROM = "<!-- proxy: defective -->"


def walked(page: str, folder: Path) -> str:
    """The page with what its commands print by now."""
    for name, text in _FILE.findall(page):
        (folder / name).write_text(_HERE + text if name == "policy.yaml" else text)
    sound, mark, defective = page.partition(_DEFECTIVE_FROM)
    with _running(folder, COMMAND) as run:
        sound = _CONSOLE.sub(lambda block: _transcript(block[0], run), sound)
    if defective:
        with _running(folder, DEFECTIVE) as run:
            defective = _CONSOLE.sub(lambda block: _transcript(block[0], run), defective)
    return sound + mark + defective


def _transcript(block: str, run: Callable[[str], str]) -> str:
    """Commands, each with what it prints."""
    return "".join(f"$ {command}\n{run(command)}" for command in _COMMAND.findall(block))


@contextmanager
def _running(folder: Path, command: tuple[str, ...]) -> Iterator[Callable[[str], str]]:
    proxy = Proxy(folder / "policy.yaml", command=command)

    def run(command: str) -> str:
        """What a command of the page prints, as the page would show it."""
        here = command.replace(PROXY, proxy.address).replace(ADMIN, proxy.admin)
        done = subprocess.run(
            ["bash", "-c", here],
            cwd=folder,
            env=clean_environment(HOME=str(folder)),
            capture_output=True,
            timeout=30,
            check=False,
        )
        said = (done.stdout + done.stderr).decode().replace("\r\n", "\n")
        assert said, f"{here} printed nothing, exit {done.returncode}; the proxy: {proxy.stderr}"
        for pattern, mask in _MASKED:
            said = pattern.sub(mask, said)
        said = said.replace(proxy.address, PROXY).replace(proxy.admin, ADMIN)
        return said if said.endswith("\n") else f"{said}\n"

    try:
        proxy.wait_until_listening()
        yield run
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0, proxy.stderr
    finally:
        proxy.dispose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(walked(PAGE.read_text(encoding="utf-8"), Path(name)), encoding="utf-8")
