"""Which store the configuration asks for."""

from __future__ import annotations

from collections.abc import Callable

from egress_proxy.config.model import FileState, MemoryState, SharedState, State
from egress_proxy.limits.local import LocalStore
from egress_proxy.limits.persistent import PersistentStore
from egress_proxy.limits.store import Near, Store

#: Seconds that the start waits for a shared store: for a name, a connection and TLS.
_FIRST = 2.0


def open_store(
    state: State, on_near: Callable[[Near], None], on_trouble: Callable[[str | None], None]
) -> Store:
    """Open the store of ``state``. Called in the event loop's thread, before anything is served.

    ``on_near`` is told of each tenant that has used most of a limit; ``on_trouble`` when the store fails (why, in a few
    words of our own) and when it works again (None). Raises StateError where it cannot be used.
    """
    match state:
        case FileState(path):
            return PersistentStore(path, on_near, on_trouble)
        case SharedState():
            # Without it, nothing of it is loaded.
            from egress_proxy.limits.shared import SharedStore  # noqa: PLC0415

            store = SharedStore(
                state, on_near, lambda change: on_trouble(None if change.up else change.why)
            )
            store.start()
            return store
        case MemoryState():
            return LocalStore(on_near)


async def ready(store: Store) -> None:
    """Wait for a shared store, for a moment: what comes before it is there would be counted without it."""
    wait = getattr(store, "ready", None)
    if wait is not None:
        await wait(_FIRST)


def status_of(store: Store) -> Callable[[], tuple[bool, int]] | None:
    """Says whether a shared store answers, and how often it was lost or not reached; None for the others."""
    return getattr(store, "status", None)
