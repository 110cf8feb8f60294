import os
import socket

import pytest

from csrtrain.files import check_file, is_address, shown


def test_a_regular_file_and_a_link_to_one(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert check_file(tmp_path / "a").st_size == check_file(str(tmp_path / "b")).st_size == 3


def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    for path, words in (
        ("pipe", "a device, pipe or socket for pipe"),
        ("socket", "a device, pipe or socket for socket"),
        ("/dev/zero", "a device, pipe or socket for /dev/zero"),
        (".", r"Is a directory for \."),
        ("loop", "Too many levels of symbolic links for loop"),
        ("x" * 5000, r"File name too long for x{200}\.\.\.\. Check"),
        ("a\0b", r"embedded null byte for a\\x00b"),
        ("https://example.com/a.csv", "the address https://example.com/a.csv. Nothing is fetched"),
    ):
        with pytest.raises(ValueError, match=f"Expected a file.*, got {words}"):
            check_file(path)
    server.close()
    with pytest.raises(FileNotFoundError, match="got No such file or directory for none"):
        check_file("none")


def test_addresses():
    assert all(map(is_address, ("https://a/b", "s3://a", "file:///a", "http:/a")))
    assert not any(map(is_address, ("a/b", "/a", "C:\\a", "a:b", "samples:medical", "")))


def test_text_from_outside_is_one_short_line_that_no_terminal_obeys():
    assert shown("a.png") == "a.png" and shown("é漢") == "é漢" and shown([1]) == "[1]"
    assert shown("a\n\x1b[2J\0\u202e") == "a\\n\\x1b[2J\\x00\\u202e"
    assert shown("x" * 1000) == "x" * 200 + "..."
