import os

import pytest

from csrtrain.data import rows
from csrtrain.data.rows import column_names, read_rows, stream_rows


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "rows.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_rows_with_their_lines(write):
    path = write('\ufeff\n a,b,,c\n1, 2 ,x,3, ,\n\n"4\n",5\r\n')
    assert column_names(path) == [" a", "b", "c"]
    names, found = read_rows(path)
    assert names == [" a", "b", "c"]
    assert found == [(3, {" a": "1", "b": "2", "c": "3"}), (6, {" a": "4", "b": "5", "c": ""})]
    _, lines = stream_rows(write(b"a\n\xff\n"), 5, "surrogateescape")
    assert list(lines) == [(2, ["\udcff"])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,a\n1,2,3\n", "Expected different column names in .*rows.csv, got several a. Rename"),
        ("a\n", "Expected rows of images in .*rows.csv, got none"),
        ("\n", "Expected rows of images in .*rows.csv, got no column names"),
        (
            "path;mos\na.png;0,4\n",
            "Expected columns between commas in .*rows.csv, got ';' in path;mos. Save it with commas",
        ),
        ("path\tmos\na.png\t1\n", r"Expected columns between commas in .*rows.csv, got '.t' in path.tmos"),
        (b"a\n\xff\n", "Expected a CSV file in UTF-8, got .*rows.csv"),
        ("a,b\n1,2\n".encode("utf-16"), "Expected a CSV file in UTF-8, got .*rows.csv"),
        ('a\n"' + "x" * 200_000, "Expected a CSV file, got .*rows.csv, whose line 2 is none .field larger"),
        (",".join(map(str, range(1001))) + "\n", "Expected at most 1000 columns in .*rows.csv, got 1001"),
        ("a,b\n1,2\n3,0,4\n", "Expected at most 2 cells in line 3 of .*rows.csv, got 3. Write decimals with a point"),
        ("a\n" + "x" * 2**20, "Expected lines of less than 1048576 characters in .*rows.csv, got a longer line 2"),
        ("a\n" + ",".join(['"x\n"'] * 600_000), "whose line .* is none .its cells have line ends without end"),
    ],
)
def test_what_is_refused(write, text, words):
    with pytest.raises(ValueError, match=words):
        read_rows(write(text))


def test_the_number_of_rows_is_limited_and_the_limit_can_be_raised(write, monkeypatch):
    monkeypatch.setenv("CSRTRAIN_MAX_ROWS", "3")
    assert len(read_rows(write("a\n1\n2\n3\n"))[1]) == 3
    for text in ("a\n1\n2\n3\n4\n", "a\n" + "\n" * 10):
        with pytest.raises(ValueError, match="at most 3 rows in .*rows.csv, got more than 3 rows.*CSRTRAIN_MAX_ROWS"):
            read_rows(write(text))
    with pytest.raises(ValueError, match="at most 3 rows in .*rows.csv, got more than 30 cells"):  # short rows too
        read_rows(write(",".join(f"c{k}" for k in range(31)) + "\n1\n"))
    path = write("a\n1\n")
    os.truncate(path, 2**40)  # takes no room on the disk
    with pytest.raises(ValueError, match="at most 3 rows in .*rows.csv, got 1099511627776 bytes"):
        read_rows(path)
    monkeypatch.setenv("CSRTRAIN_MAX_ROWS", "many")
    with pytest.raises(ValueError, match="Expected a number of rows in CSRTRAIN_MAX_ROWS, got many"):
        read_rows(path)
    monkeypatch.delenv("CSRTRAIN_MAX_ROWS")
    assert rows.limit(rows.MOST_ROWS) == 1_000_000


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="Expected a file, got a device, pipe or socket for .*pipe.csv"):
        read_rows(str(tmp_path / "pipe.csv"))
    with pytest.raises(ValueError, match="Expected a file, got Is a directory for"):
        read_rows(str(tmp_path))
    with pytest.raises(ValueError, match="a device, pipe or socket for /dev/zero"):
        read_rows("/dev/zero")
