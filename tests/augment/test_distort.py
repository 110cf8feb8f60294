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
    lines += [
        "(colour) needs three channels and is left out with other counts; (loader) runs in the loader's workers and"
    ]
    lines += ["is left out without `model.jpeg2000`, unless `model.distortions` names it.", ""]
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


KADIS = """
gaussian_blur             0.1 0.5 1 2 5
lens_blur                 1 2 4 6 8
motion_blur               1 2 4 6 10
color_diffusion           1 3 6 8 12
color_shift               1 3 6 8 12
color_quantization        64 48 32 16 8
saturate_hsv              0.4 0.2 0.1 0 -0.4
saturate_lab              1 2 3 6 9
jpeg2000                  16 32 45 120 400
jpeg                      43 36 24 7 4
white_noise               0.001 0.002 0.003 0.005 0.01
white_noise_ycbcr         0.0001 0.0005 0.001 0.002 0.003
impulse_noise             0.001 0.005 0.01 0.02 0.03
multiplicative_noise      0.001 0.005 0.01 0.02 0.05
denoise                   0.01 0.03 0.05 0.1 0.15
brighten                  0.1 0.2 0.4 0.7 1.1
darken                    0.05 0.1 0.2 0.4 0.8
mean_shift                0.15 0.08 0 -0.08 -0.15
jitter                    0.05 0.1 0.2 0.5 1
non_eccentricity_patches  20 40 60 80 100
pixelate                  0.01 0.05 0.1 0.2 0.5
quantize_levels           20 16 13 10 7
color_blocks              2 4 6 8 10
sharpen                   1 2 3 6 12
change_contrast           0.3 0.15 0 -0.4 -0.6
"""  # types 1 to 25 of imdist_generator.m


def test_the_natural_bank_is_kadis():
    expected = [(name, tuple(map(float, values))) for name, *values in map(str.split, KADIS.strip().splitlines())]
    assert [(row.name, row.values) for row in NATURAL] == expected
    assert [row.name for row in NATURAL] == list(BANKS["natural"])


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text.partition(MARK)[0] + MARK + tables())
