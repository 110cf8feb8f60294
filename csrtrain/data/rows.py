"""CSV files -> rows of text with their lines; how large they may be.

Limits, so that a hostile or mistaken file cannot take all memory: a million rows of ratings, 20 million paths of a list
(the environment variable CSRTRAIN_MAX_ROWS sets another number for both), of each ten cells and 4096 bytes on average,
2**20 characters in a line or row, 1000 columns, and 131072 characters in a cell.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from csrtrain.files import check_file, shown

MOST_ROWS = 1_000_000
"""Rows that are kept whole."""
MOST_PATHS = 20_000_000
"""Paths of a list, or of one column."""
_MOST_COLUMNS = 1000
_LONGEST = 2**20
_CELLS_PER_ROW = 10
_BYTES_PER_ROW = 4096


def limit(default: int) -> int:
    """How many rows are read: CSRTRAIN_MAX_ROWS, where it is set."""
    text = os.environ.get("CSRTRAIN_MAX_ROWS", str(default))
    if not (text.isascii() and text.isdigit() and int(text[:18]) > 0):
        raise ValueError(f"Expected a number of rows in CSRTRAIN_MAX_ROWS, got {shown(text)}. Correct or unset it.")
    return int(text[:18])


def read_rows(path: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names of a CSV file, and its rows with the line that each ends in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file in UTF-8 with commas, has no rows, two columns of one name, a row with more cells
            than columns, or more than the limits allow.
    """
    names, lines = stream_rows(path, limit(MOST_ROWS))
    with lines:
        rows = [(line, dict(zip(names, cells, strict=True))) for line, cells in lines]
    if not rows:
        raise ValueError(f"Expected rows of images in {path}, got none. Write one per image.")
    return names, rows


def column_names(path: str) -> list[str]:
    """Column names of a CSV file alone; errors as for `read_rows`."""
    names, lines = stream_rows(path, limit(MOST_ROWS))
    lines.close()
    return names


def stream_rows(path: str, most: int, errors: str = "strict") -> tuple[list[str], "Lines"]:
    """Column names, and row by row its line and a cell for each of them; cells are stripped, missing ones "".

    Args:
        path: CSV file in UTF-8.
        most: rows; more are refused.
        errors: of decoding, see `open`.

    Raises:
        FileNotFoundError, ValueError: see `read_rows`; some of them come while rows are read.
    """
    lines = Lines(path, most, errors)
    return lines.names, lines


class Lines(Iterator[tuple[int, list[str]]]):
    """See `stream_rows`."""

    def __init__(self, path: str, most: int, errors: str) -> None:
        size = check_file(path).st_size
        self._path, self._most, self._count, self._pending = path, most, 0, 0
        if size > most * _BYTES_PER_ROW + _LONGEST:
            raise self._too_much(f"{size} bytes")
        self._file = open(path, newline="", encoding="utf-8-sig", errors=errors)
        try:
            self._reader = csv.reader(self._text())
            names: list[str] = []
            while not names and (row := self._row()) is not None:
                names = row
            self._columns = len(names)
            self._places = [place for place, name in enumerate(names) if name]
            self.names = [names[place] for place in self._places]
            self._check_names()
        except BaseException:
            self.close()
            raise

    def __next__(self) -> tuple[int, list[str]]:
        while (cells := self._row()) is not None:
            if self._count * len(self._places) > self._most * _CELLS_PER_ROW:
                raise self._too_much(f"more than {self._most * _CELLS_PER_ROW} cells")
            if cells:
                have = len(cells)
                if any(cell.strip() for cell in cells[self._columns :]):  # an unquoted comma: 0,4 would be read as 0
                    raise ValueError(
                        f"Expected at most {self._columns} cells in line {self._reader.line_num} of {self._path}, got "
                        f"{have}. Write decimals with a point, and put cells with a comma in quotes."
                    )
                found = [cells[place].strip() if place < have else "" for place in self._places]
                return self._reader.line_num, found
        self.close()
        raise StopIteration

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._file.close()

    def _check_names(self) -> None:
        if not self.names:
            raise ValueError(
                f"Expected rows of images in {self._path}, got no column names. Write them, then the rows."
            )
        if len(self.names) == 1 and (other := next((mark for mark in ";\t" if mark in self.names[0]), None)):
            raise ValueError(
                f"Expected columns between commas in {self._path}, got {other!r} in {shown(self.names[0])}. Save it "
                "with commas, and decimals with a point."
            )
        if len(self.names) > _MOST_COLUMNS:
            raise ValueError(
                f"Expected at most {_MOST_COLUMNS} columns in {self._path}, got {len(self.names)}. Leave out what is "
                "not used."
            )
        if len(set(self.names)) < len(self.names):
            double = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(
                f"Expected different column names in {self._path}, got several {shown(', '.join(double))}. Rename one."
            )

    def _row(self) -> list[str] | None:
        """The next row as it is, also a blank one; None at the end."""
        try:
            row = next(self._reader, None)
        except UnicodeDecodeError as error:
            raise ValueError(f"Expected a CSV file in UTF-8, got {self._path} ({error}). Save it as UTF-8.") from None
        except csv.Error as error:
            raise ValueError(
                f"Expected a CSV file, got {self._path}, whose line {self._reader.line_num} is none ({error}). Close "
                "its quotes, or shorten its cells."
            ) from None
        self._pending = 0
        self._count += row is not None
        if self._count > self._most + 1:  # the header is one
            raise self._too_much(f"more than {self._most} rows")
        return row

    def _text(self) -> Iterator[str]:
        """Lines; a row of several, whose cells have line ends in quotes, may not be longer than a line may."""
        for line in text_lines(self._file, self._path):
            self._pending += len(line)
            if self._pending > 2 * _LONGEST:
                raise csv.Error("its cells have line ends without end")
            yield line

    def _too_much(self, got: str) -> ValueError:
        return ValueError(
            f"Expected at most {self._most} rows in {self._path}, got {got}. Split the file, or raise the limit with "
            "the environment variable CSRTRAIN_MAX_ROWS."
        )


def text_lines(file: TextIO, path: str | Path) -> Iterator[str]:
    """Lines of a text file, none of which may fill the memory.

    Raises:
        ValueError: a line has 2**20 characters or more.
    """
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise ValueError(
                f"Expected lines of less than {_LONGEST} characters in {path}, got a longer line {number}. Correct it."
            )
        yield line
