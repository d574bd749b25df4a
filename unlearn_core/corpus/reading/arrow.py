"""Tables of Arrow -> rows: value by value where a column has some that Python cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unlearn_core.corpus.reading.document import ReadReport

if TYPE_CHECKING:
    from pyarrow import Array, ChunkedArray, RecordBatch, Scalar, Table

UNREADABLE = (ArithmeticError, ValueError, KeyError, ImportError)  # a date after 9999, an unknown zone, no UTF-8


def rows_of(table: RecordBatch | Table, name: str, report: ReadReport) -> Iterator[dict[str, Any]]:
    """The rows of a table. A value that Python cannot hold, such as a date after the year 9999, is None, and noted."""
    columns = [_values(column, f"{name}: values of {field}", report) for field, column in _named(table)]
    for values in zip(*columns, strict=True):
        yield dict(zip(table.schema.names, values, strict=True))


def _named(table: RecordBatch | Table) -> list[tuple[str, Array | ChunkedArray]]:
    return list(zip(table.schema.names, table.columns, strict=True))


def _values(column: Array | ChunkedArray, what: str, report: ReadReport) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UNREADABLE:
        return [_value(scalar, what, report) for scalar in column]


def _value(scalar: Scalar, what: str, report: ReadReport) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        report.note(f"{what} with bytes that cannot be decoded")
        return scalar.as_buffer().to_pybytes().decode("utf-8", "replace") if hasattr(scalar, "as_buffer") else None
    except UNREADABLE:
        report.note(f"{what} that Python has no value for, such as dates after 9999, left empty")
        return None
