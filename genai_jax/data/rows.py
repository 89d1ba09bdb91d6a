"""What a data set is to everyone else: rows by number, dictionaries of arrays of equal shapes."""

from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

Row = dict[str, np.ndarray]


@runtime_checkable
class Rows(Protocol):
    """Rows by number: `rows[i]` for any i >= 0; `len(rows)` of them are an epoch."""

    def __len__(self) -> int:
        """Count the rows of an epoch."""
        ...

    def __getitem__(self, i: int) -> Row:
        """Make row i."""
        ...


class NumberedRows(grain.MapDataset[Row]):
    """Random access in Grain's manner: any i >= 0, where numbers beyond an epoch are later ones.

    Those who inherit from it define `__len__` and `_row`.
    """

    def _row(self, i: int) -> Row:
        raise NotImplementedError

    def __iter__(self) -> Any:
        """Iterate over one epoch, in this thread."""
        return map(self._row, range(len(self)))

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.slice(i)
        if i < 0:
            raise IndexError(f"rows are numbered from 0 on; got {i}.")
        return self._row(int(i))
