"""`csrtrain report`: runs and evaluations on one HTML page that asks for nothing outside."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from csrtrain.files import write_atomically
from csrtrain.report import folders
from csrtrain.report.folders import Evaluation, Run
from csrtrain.report.page import Picture, page

__all__ = ["Evaluation", "Picture", "Run", "read", "write"]


def read(paths: Sequence[Path]) -> list[Run | Evaluation]:
    """What the folders hold: runs of `csrtrain fit`, or what `csrtrain evaluate` wrote.

    Raises:
        ValueError: one is neither, is damaged, or is there twice.
    """
    return [folders.read(path, name) for path, name in zip(paths, folders.names(list(paths)), strict=True)]


def write(
    output: Path, found: Sequence[Run | Evaluation], pictures: Mapping[str, Sequence[Picture]] | None = None
) -> None:
    """Write the page, whole or not at all: styles and figures are in it, and it works without JavaScript.

    Args:
        output: the HTML file.
        found: from `read`.
        pictures: to show of runs, by their name; none by default, because a page is passed on.
    """
    html = page(found, pictures or {}, time.time())
    write_atomically(output, html.encode("utf-8", errors="replace"))
