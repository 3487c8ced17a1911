"""Loaded by mitmproxy: allows one host and port, given in ALLOWED, and logs a line for each request to ACCESS_LOG."""

import os
import time
from pathlib import Path

from mitmproxy import http

HOST, _, PORT = os.environ["ALLOWED"].partition(":")
#: A line at a time: it may be killed before it has closed what is open. Beside the rest of a request that is nothing.
LOG = Path(os.environ["ACCESS_LOG"]).open("a", buffering=1)  # noqa: SIM115 - as long as the process


def decide(flow: http.HTTPFlow) -> None:
    request = flow.request
    allowed = (request.host, request.port) == (HOST, int(PORT))
    if not allowed:
        flow.response = http.Response.make(403, b"denied")
    LOG.write(f"{time.time():.3f} {request.method} {request.host}:{request.port} {allowed}\n")


http_connect = request = decide


def done() -> None:
    LOG.close()
