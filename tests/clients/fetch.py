"""``LIBRARY URL``: fetches through the proxy that the environment names; prints what came of it as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any


def with_requests(url: str) -> dict[str, Any]:
    import requests

    response = requests.get(url, timeout=20)
    return {
        "status": response.status_code,
        "headers": {name.lower(): value for name, value in response.headers.items()},
        "body": response.text,
    }


def with_httpx(url: str) -> dict[str, Any]:
    import httpx

    response = httpx.get(url, timeout=20)
    return {
        "status": response.status_code,
        "headers": {name.lower(): value for name, value in response.headers.items()},
        "body": response.text,
    }


def with_aiohttp(url: str) -> dict[str, Any]:
    import aiohttp

    async def get() -> dict[str, Any]:
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as response:
            return {
                "status": response.status,
                "headers": {name.lower(): value for name, value in response.headers.items()},
                "body": await response.text(),
            }

    return asyncio.run(get())


def main(library: str, url: str) -> int:
    libraries: dict[str, Callable[[str], dict[str, Any]]] = {
        "requests": with_requests,
        "httpx": with_httpx,
        "aiohttp": with_aiohttp,
    }
    try:
        print(json.dumps(libraries[library](url)))
    except Exception as error:  # noqa: BLE001 - which one it is is what the test wants to know
        said: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
        headers = getattr(error, "headers", None)  # aiohttp tells what the proxy said
        if headers is not None:
            said["headers"] = {name.lower(): value for name, value in headers.items()}
        print(json.dumps(said))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
