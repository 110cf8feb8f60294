"""Files from outside: what is opened at all. A pipe would be waited for without end, and a device has none.

And files of ours: whole, or not there.
"""

import os
import re
import stat
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of two slashes Path makes one; one letter is a drive
_LONGEST = 200  # characters of text from outside in a message


def check_file(path: str | Path) -> os.stat_result:
    """Refuse what is no regular file, before it is opened.

    Returns:
        Its status.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder, pipe, device or socket; a loop of links; no permission to look; no name of a file at all;
            an address on the network, from which nothing is fetched.
    """
    text = os.fspath(path)
    try:
        status = os.stat(text)
    except FileNotFoundError:
        if is_address(text):
            raise ValueError(
                f"Expected a file on this machine, got the address {shown(text)}. Nothing is fetched from a network: "
                "download it first."
            ) from None
        raise FileNotFoundError(
            f"Expected a file, got No such file or directory for {shown(text)}. Check the path."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"Expected a file, got {reason} for {shown(text)}. Check the path.") from None
    if not stat.S_ISREG(status.st_mode):
        what = "Is a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise ValueError(f"Expected a file, got {what} for {shown(text)}. Name a file.")
    return status


def is_address(text: str) -> bool:
    """Whether a text is an address on the network (`https://...`, `s3://...`) and no path."""
    return bool(_ADDRESS.match(text)) and not os.path.exists(text)


def as_text(name: str) -> str:
    """The name of a file as a table in UTF-8 can hold it: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shown(text: object) -> str:
    """Text from outside as a message shows it: one line, not long, no control characters that a terminal obeys."""
    whole = text if isinstance(text, str) else repr(text)
    short = whole if len(whole) <= _LONGEST else f"{whole[:_LONGEST]}..."
    if short.isprintable():
        return short
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


def write_atomically(path: Path, content: bytes) -> None:
    """Temporary file in the same directory, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk names none, and the temporary one is nobody's
        raise
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
