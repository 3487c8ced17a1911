"""Users of a proxy: their file, and what a client sends."""

from __future__ import annotations

import base64
from pathlib import Path

import bcrypt

#: The cheapest there is: tests are not about breaking it.
COST = 4


def hashed(password: str, *, cost: int = COST) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def write_users(path: Path, *, cost: int = COST, **passwords: str) -> Path:
    """A users file, which takes the old one's place in one step."""
    new = path.with_name(f".{path.name}.new")
    lines = [f"{user}:{hashed(password, cost=cost)}\n" for user, password in passwords.items()]
    new.write_text("".join(lines), encoding="utf-8")
    new.replace(path)
    return path


def authorization(user: str, password: str) -> str:
    """The header line, with its CRLF."""
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return f"Proxy-Authorization: Basic {token}\r\n"
