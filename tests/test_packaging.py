"""What is built holds what it should, works once installed, and rests on pinned files alone."""

from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import egress_proxy

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("run", "build", "dev")

# Written in halves, so that this file does not name them either.
REGISTRY_HOSTS = tuple(
    f"{name}.{domain}"
    for name, domain in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("deb.debian", "org"),
        ("security.debian", "org"),
    ]
)


def source_files() -> set[str]:
    """Every file of the project, as git sees it, or, in an unpacked sdist, all that is there."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        names = listed.stdout.rstrip("\0").split("\0")
        return {name for name in names if (ROOT / name).is_file()}
    made = re.compile(
        r"(^|/)(__pycache__|node_modules|build|dist|\.venv[^/]*|\.[a-z_]+_cache|\.hypothesis)/"
    )
    names = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    return {name for name in names if not made.search(name)} - {"PKG-INFO"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a command that must succeed; what it said is in the failure if it does not."""
    env = {**os.environ, **environment}
    done = subprocess.run(command, check=False, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of the tree as it is now, from a copy, so that nothing is left in the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in source_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", cwd=tree)
    (built,) = (tree / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel as a distributor would build it: from the sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    run("tar", "-xzf", sdist, cwd=folder)
    (tree,) = folder.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", cwd=tree)
    (built,) = (tree / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel, and nothing else, was installed."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-index", "--no-deps", "--target", target, wheel, cwd=target)
    return target


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_sdist_holds_every_source_file(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    assert held == {name for name in source_files() if not name.startswith(".ci/")} | {"PKG-INFO"}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {name for name in source_files() if name.startswith("egress_proxy/")}
    assert {"egress_proxy/default.yaml", "egress_proxy/py.typed"} <= held


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    said = metadata(wheel)
    assert said["Name"] == "egress-proxy"
    assert said["Version"] == egress_proxy.__version__
    assert said["Requires-Python"] == ">=3.11"
    assert said["License-Expression"] == "Apache-2.0"
    assert said.get_all("Requires-Dist") == sorted(PYPROJECT["project"]["dependencies"])
    has_readme = (ROOT / "README.md").exists()
    assert said["Description-Content-Type"] == ("text/markdown" if has_readme else None)


def test_the_wheel_carries_its_licence_and_its_command(wheel: Path) -> None:
    info = f"egress_proxy-{egress_proxy.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        entry_points = configparser.ConfigParser()
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"egress-proxy": "egress_proxy.cli:main"}


def test_the_installed_package_is_the_one_that_runs(installed: Path) -> None:
    where = "import egress_proxy; print(egress_proxy.__file__)"
    found = run(sys.executable, "-c", where, cwd=installed.parent, PYTHONPATH=str(installed))
    assert Path(found.strip()) == installed / "egress_proxy" / "__init__.py"


@pytest.mark.parametrize("start", [["-m", "egress_proxy"], ["bin/egress-proxy"]])
def test_the_installed_package_accepts_its_default_policy(
    installed: Path, start: list[str]
) -> None:
    policy = installed / "egress_proxy" / "default.yaml"
    environment = {"PYTHONPATH": str(installed)}
    run(sys.executable, *start, "check", policy, cwd=installed, **environment)


def test_no_file_names_a_package_registry() -> None:
    """Builds use the index that the reader's machine is set to; ours is nobody else's business."""
    found = [
        f"{name}: {host}"
        for name in sorted(source_files())
        for host in REGISTRY_HOSTS
        if host.encode() in (ROOT / name).read_bytes()
    ]
    assert found == []


def lock_entries(lock: str) -> list[str]:
    """The lock's logical lines, without comments."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def pins(lock: str) -> dict[str, str]:
    requirements = [Requirement(entry.split(" --hash")[0]) for entry in lock_entries(lock)]
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in requirements
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_by_hash_and_names_no_index(lock: str) -> None:
    pinned = re.compile(r"[a-z0-9-]+==[^ ]+( ; [^-]+?)?( +--hash=sha256:[0-9a-f]{64})+ *")
    assert [entry for entry in lock_entries(lock) if not pinned.fullmatch(entry)] == []
    assert "://" not in (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")


def test_the_locks_agree() -> None:
    """They share an environment: what two of them pin, they pin alike."""
    assert pins("run").items() <= pins("dev").items()
    assert pins("build").items() <= pins("dev").items()


def declared(*groups: str) -> list[Requirement]:
    found: list[Requirement] = []
    for group in groups:
        for item in PYPROJECT["dependency-groups"][group]:
            found += (
                [Requirement(item)] if isinstance(item, str) else declared(item["include-group"])
            )
    return found


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("run", [Requirement(item) for item in PYPROJECT["project"]["dependencies"]]),
        ("build", [Requirement(item) for item in PYPROJECT["build-system"]["requires"]]),
        ("build", declared("build")),
        ("dev", declared("dev")),
    ],
    ids=["run", "build-system", "build", "dev"],
)
def test_a_lock_follows_pyproject(lock: str, wanted: list[Requirement]) -> None:
    """Fails when a dependency was named and `make lock` was not run."""
    locked = pins(lock)
    stale = [
        str(item)
        for item in wanted
        if not item.specifier.contains(locked.get(canonicalize_name(item.name), "0"))
    ]
    assert stale == []
