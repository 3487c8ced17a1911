"""The real proxy with a defect that it does not have: what it decides about ``defect.example.org`` goes wrong.

Run as ``python tests/support/defective.py serve …``.
"""

from __future__ import annotations

import sys
from typing import Any

from egress_proxy.cli import main
from egress_proxy.net import session

_decide: Any = vars(session)["decide"]


def decide(policy: Any, identity: Any, destination: Any, *more: Any) -> Any:
    if destination.host.text == "defect.example.org":
        raise ZeroDivisionError("put there by a test")
    return _decide(policy, identity, destination, *more)


if __name__ == "__main__":
    vars(session)["decide"] = decide
    sys.exit(main())
