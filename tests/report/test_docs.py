"""The numbers that docs/report.md names are those of the code."""

from pathlib import Path

from csrtrain.report import charts, words
from csrtrain.runs import monitors

TEXT = (Path(__file__).parents[2] / "docs" / "report.md").read_text().replace("\n", " ").replace("  ", " ")


def test_numbers():
    assert (
        f"standard deviation below {monitors.COLLAPSED_STD:g}, or effective rank below {monitors.COLLAPSED_RANK:g}"
        in TEXT
    )
    assert f"more than {2 * charts._BUCKETS} points" in TEXT and f"of {charts._BUCKETS} pieces" in TEXT
    assert f"at most {charts._POINTS:,} rows of each split" in TEXT
    assert words._LIVE == 600 and "in the last ten minutes" in TEXT


def test_the_screenshot_is_there_and_small():
    path = Path(__file__).parents[2] / "docs" / "images" / "report.png"
    assert 10_000 < path.stat().st_size < 300_000
