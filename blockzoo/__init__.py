"""blockzoo: many fine-tunes from one set of weights.

A content-addressed zoo of model blocks. ``Zoo`` is the front door::

    import blockzoo

    zoo = blockzoo.Zoo("zoo")
    zoo.ingest("models/base", name="base")

Serving is in the package ``blockzoo_runtime``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzoo.errors import BlockzooError

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

__version__ = "0.1.0"
__all__ = ["BlockzooError", "Zoo", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Zoo":
        from blockzoo.zoo import Zoo

        return Zoo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
