"""Loaded by proxy.py: allows one host and port, given in ALLOWED, and logs a line for each request.

proxy.py's own log has a line for each connection, whatever number of requests came over it. This one takes its place,
and goes where that would.
"""

import logging
import os
from typing import Any

from proxy.http.exception import HttpRequestRejected
from proxy.http.parser import HttpParser
from proxy.http.proxy import HttpProxyBasePlugin

HOST, _, PORT = os.environ["ALLOWED"].encode().partition(b":")
log = logging.getLogger(__name__)


def record(request: HttpParser, verdict: str) -> None:
    log.info("%r %r %r %s", request.method, request.host, request.port, verdict)


class AllowList(HttpProxyBasePlugin):
    def before_upstream_connection(self, request: HttpParser) -> HttpParser:
        if (request.host, request.port) != (HOST, int(PORT)):
            record(request, "denied")
            raise HttpRequestRejected(status_code=403, reason=b"Forbidden", body=b"denied")
        return request

    def handle_client_request(self, request: HttpParser) -> HttpParser:
        record(request, "allowed")
        return request

    def on_access_log(self, context: dict[str, Any]) -> None:
        """Nothing: ours has it already."""
