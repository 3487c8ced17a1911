"""Git over smart HTTP, and a package index: two extensions of the origin for the tools that are behind a proxy most."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import tempfile
import zipfile
from pathlib import Path

from tests.support.origin import Exchange
from tests.support.tools import write_blocks

BLOB = 20 * (1 << 20)


class GitBackend:
    """Bare repositories below a folder as ``/git/NAME.git``, open to push; ``git http-backend`` does the work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, name: str, *, blob: int = 0) -> str:
        """A bare repository, with one commit that holds a file of random bytes where a size is given; its commit."""
        bare = self.folder / name
        git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        git("-C", str(bare), "config", "http.receivepack", "true")
        if not blob:
            return ""
        work = self.folder / f"{name}-work"
        git("clone", "--quiet", str(bare), str(work))
        return commit_blob(work, blob)

    def __call__(self, exchange: Exchange) -> None:
        path = exchange.path.removeprefix("/git")
        with tempfile.TemporaryFile() as spool:
            for piece in exchange.body():
                spool.write(piece)
            length = spool.tell()
            spool.seek(0)
            env = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(self.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_NOSYSTEM": "1",
                "HOME": str(self.folder),
                "PATH_INFO": path,
                "QUERY_STRING": exchange.query,
                "REQUEST_METHOD": exchange.method,
                "CONTENT_TYPE": exchange.fields.get("content-type", ""),
                "CONTENT_LENGTH": str(length),
                "HTTP_CONTENT_ENCODING": exchange.fields.get("content-encoding", ""),
                "GIT_PROTOCOL": exchange.fields.get("git-protocol", ""),
                "REMOTE_ADDR": "127.0.0.1",
            }
            done = subprocess.run(
                ["git", "http-backend"], env=env, stdin=spool, capture_output=True, check=False
            )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = [line for line in head.decode().split("\r\n") if line]
        status = "200 OK"
        kept = ""
        for line in fields:
            if line.startswith("Status: "):
                status = line.removeprefix("Status: ")
            else:
                kept += f"{line}\r\n"
        exchange.start(f"{kept}Content-Length: {len(body)}\r\n", status=status)
        exchange.connection.sendall(body)


def git(*arguments: str) -> str:
    """Git without this machine's configuration; its output."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{role}_NAME": "Test" for role in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{role}_EMAIL": "test@origin.test" for role in ("AUTHOR", "COMMITTER")},
    }
    done = subprocess.run(["git", *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit_blob(work: Path, size: int, name: str = "blob") -> str:
    """Commit a file that does not compress, and push it if the work tree's origin is a path; the commit."""
    write_blocks(work / name, size)
    git("-C", str(work), "add", name)
    git("-C", str(work), "-c", "core.compression=0", "commit", "--quiet", "-m", name)
    if git("-C", str(work), "remote", "get-url", "origin").startswith("/"):
        git("-C", str(work), "push", "--quiet", "origin", "HEAD:main")
    return git("-C", str(work), "rev-parse", "HEAD")


class PackageIndex:
    """One wheel, made on the spot, as ``/simple/`` (PEP 503)."""

    PROJECT = "egress-test-package"

    def __init__(self, folder: Path) -> None:
        self.wheel = _wheel(
            folder, self.PROJECT, "1.0", {"egress_test_package.py": b"ANSWER = 42\n"}
        )

    def __call__(self, exchange: Exchange) -> None:
        content = self.wheel.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if exchange.path == f"/simple/{self.PROJECT}/":
            link = (
                f'<a href="/simple/files/{self.wheel.name}#sha256={digest}">{self.wheel.name}</a>'
            )
            page = f"<!DOCTYPE html><html><body>{link}</body></html>"
            exchange.answer(page.encode(), kind="text/html")
        elif exchange.path == f"/simple/files/{self.wheel.name}":
            exchange.answer(content, kind="application/zip")
        else:
            exchange.answer(status="404 Not Found")


def _wheel(folder: Path, project: str, version: str, modules: dict[str, bytes]) -> Path:
    name = project.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = modules | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel
