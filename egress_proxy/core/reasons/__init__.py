"""The table of reasons: each row is written once, and read everywhere.

``from egress_proxy.core import reasons`` has every row under its name, such as ``reasons.HOST_NOT_ALLOWED``, and
``reasons.REASONS`` all of them by what log lines and metrics call them. The rows stand in the files of this folder, by
what they are about; :mod:`egress_proxy.core.reason` says what a row consists of. ``docs/reference/reasons.md`` is
generated from them.
"""

from __future__ import annotations

# A star brings every row of a file. The order is that of the reference's pages.
# ruff: noqa: F403, I001
from egress_proxy.core.reasons.refused import *
from egress_proxy.core.reasons.requests import *
from egress_proxy.core.reasons.failed import *
from egress_proxy.core.reasons.admin import *
from egress_proxy.core.reasons.limits import *
from egress_proxy.core.reasons.rows import REASONS as REASONS
