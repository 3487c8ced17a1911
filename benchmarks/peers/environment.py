"""The peers that come as Python packages: in an environment of their own, so that ours has none of their dependencies.

`benchmarks/install` fills it from `requirements.txt` beside this file.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2] / ".venv-peers"
ABSENT = "not installed: bash benchmarks/install"


def executable(name: str) -> str:
    """The path of a command in it, or nothing."""
    path = ROOT / "bin" / name
    return str(path) if path.exists() else ""


def package_file(path: str) -> str:
    """The path of a file that a package brings, or nothing."""
    return next((str(found) for found in ROOT.glob(f"lib/python*/site-packages/{path}")), "")


def version(distribution: str) -> str:
    """Of an installed package, by the name of its directory of metadata."""
    found = package_file(f"{distribution}-*.dist-info")
    return found.rpartition("/")[2].removesuffix(".dist-info").partition("-")[2]


def addon(name: str) -> Path:
    """A file of ours that a peer loads."""
    return Path(__file__).parent / "addons" / name
