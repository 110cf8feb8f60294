"""docs/distortions.md holds the rows as tables. To write them anew: python tests/augment/test_distort.py"""

from pathlib import Path

import pytest

from csrtrain.augment.distort import BANKS, LEVELS, NATURAL, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "distortions.md"
MARK = "<!-- tables -->\n"


def tables():
    lines = ["", "| type | values of levels 1 to 5 | unit | severities | group | source |", "|---|---|---|---|---|---|"]
    for row in ROWS.values():
        values = ", ".join(f"{value:g}" for value in row.values)
        severities = ", ".join(f"{abs(severity):g}" for severity in row.severities)
        name = row.name + (" (colour)" if row.color else "") + (" (loader)" if row.in_worker else "")
        lines.append(f"| {name} | {values} | {row.unit} | {severities} | {row.group} | {row.source} |")
    lines += ["", "## Banks", ""]
    lines += ["(colour) needs three channels and is left out with other counts; (loader) needs `model.jpeg2000`.", ""]
    lines += ["| modality | types |", "|---|---|"]
    lines += [f"| {modality} | {', '.join(names)} |" for modality, names in BANKS.items()]
    return "\n".join(lines) + "\n"


def test_the_page_holds_the_rows():
    assert PAGE.read_text().partition(MARK)[2] == tables()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_complete(name):
    row = ROWS[name]
    assert row.name == name and len(row.values) == len(row.severities) == LEVELS
    assert row.unit and row.source and row.function.__doc__
    assert row.group in ("blur", "color", "compression", "noise", "brightness", "spatial", "sharpness", "acquisition")
    for numbers in (row.values, row.severities):
        rising = [b - a for a, b in zip(numbers, numbers[1:], strict=False)]
        assert all(step > 0 for step in rising) or all(step < 0 for step in rising)  # what lies between makes sense


def test_the_natural_bank_is_kadis():
    assert [row.name for row in NATURAL] == list(BANKS["natural"])


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text.partition(MARK)[0] + MARK + tables())
