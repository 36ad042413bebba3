"""What a zoo shows of itself: tables and views, as text, as HTML in a notebook, as JSON.

Nothing here reads a zoo's files; `zoo` and the command line hand over plain data. No rich, no
pandas, no torch.
"""

from blockzoo.explore.table import Column, Table
from blockzoo.explore.view import BlockView, ModelView

__all__ = ["BlockView", "Column", "ModelView", "Table"]
