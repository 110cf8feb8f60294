"""Columns of the files that ratings are published in: CSV, Excel, MATLAB, `.npy`. Nothing in them is run."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from numpy.typing import NDArray
from scipy.io import loadmat


def share(path: Path) -> str:
    """The one number of a `.npy` file."""
    try:
        share = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"Expected an array in {path}, got {error}. Get the file again.") from None
    if share.size != 1 or share.dtype.kind not in "fiu":
        raise ValueError(f"Expected one number in {path}, got {share.dtype} {share.shape}. Get the file again.")
    return text(share.reshape(-1)[0])


def text(value: float) -> str:
    """Shortest text that stands for the number."""
    return repr(float(value))


def table(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """Columns of a CSV file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            names = list(reader.fieldnames or [])
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected a CSV file in UTF-8, got {path} ({error}). Get it again.") from None
    _columns(path, columns, names)
    return [tuple((row[name] or "").strip() for name in columns) for row in rows]


def sheet(path: Path, title: str | None, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Columns of a sheet (by default the first), below the line that names them; lines without the first are left."""
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            lines = list((book[title] if title else book.worksheets[0]).iter_rows(values_only=True))
        finally:
            book.close()
    except Exception as error:  # a damaged file: that of zip, of zlib, of XML, and others
        raise ValueError(
            f"Expected an Excel file with {title or 'a sheet'}, got {path} ({error}). Get it again."
        ) from None
    head = next((i for i, line in enumerate(lines) if set(columns) <= set(line)), 0)
    header = [str(name) for name in (lines[head] if lines else ())]
    _columns(path, columns, header)
    places = [header.index(name) for name in columns]
    cells = [[line[place] if place < len(line) else None for place in places] for line in lines[head + 1 :]]
    return [tuple(map(_cell, line)) for line in cells if line[0] is not None]


def _cell(value: Any) -> str:
    """Text of a cell; 1600 and 1600.0 are both 1600."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


def _columns(path: Path, columns: tuple[str, ...], names: list[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(
            f"Expected columns {', '.join(columns)} in {path}, got no {', '.join(missing)}. Use the authors' file."
        )


def _variable(path: Path, name: str) -> NDArray[Any]:
    """A variable of a MATLAB file, flat."""
    try:
        variables = loadmat(path, variable_names=[name])
    except Exception as error:  # a damaged file can raise any
        raise ValueError(f"Expected a MATLAB file up to version 7, got {path} ({error}). Get it again.") from None
    if name not in variables:
        raise ValueError(f"Expected variable {name} in {path}, got none. Use the authors' file.")
    return np.asarray(variables[name]).ravel()


def vector(path: Path, name: str) -> NDArray[np.float64]:
    """Numbers of a MATLAB file, (N,)."""
    values = _variable(path, name)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"Expected numbers as {name} in {path}, got {values.dtype}. Use the authors' file.")
    return values.astype(np.float64)


def names(path: Path, name: str) -> list[str]:
    """Texts of a cell array of a MATLAB file; "" for an empty cell."""
    return [str(np.ravel(cell)[0]) if np.size(cell) else "" for cell in _variable(path, name)]
