"""docs/views.md holds the settings as tables. To write them anew: python tests/augment/test_settings.py"""

from pathlib import Path

import pytest

from csrtrain.augment.settings import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "views.md"
NAMES = {
    "crop": "random resized crop",
    "flip_columns": "mirror left-right",
    "flip_rows": "mirror up-down",
    "transpose": "transpose",
    "stain": "stain jitter",
    "jitter": "colour jitter",
    "grayscale": "greyscale",
    "blur": "Gaussian blur",
    "gain": "gain",
    "field": "uneven gain",
    "noise": "noise",
    "window": "window",
    "gamma": "gamma",
}


def number(value):
    return f"{value:.3g}"


def ranges(name, op):
    """What varies, in words."""
    match name:
        case "crop":
            return f"area {number(op.smallest)} to 1, ratio {number(1 / op.ratio)} to {number(op.ratio)}"
        case "jitter":
            strengths = [getattr(op, part) for part in ("brightness", "contrast", "saturation", "hue")]
            return "brightness {}, contrast {}, saturation {}, hue {} turns".format(*map(number, strengths))
        case "stain":
            return f"scale 1 ± {number(op.scale)}, shift ± {number(op.shift)}"
        case "field":
            return f"Legendre coefficients ± {number(op.strength)}, degree {op.degree}"
        case "noise":
            return f"{op.kind}, sigma 0 to {number(op.sigma)}{', per channel' if op.colored else ''}"
        case "window":
            return f"width {number(1 / op.width)} to {number(op.width)}, level ± {number(op.level)}"
        case "blur":
            return f"sigma {number(op.low)} to {number(op.high)} px"
        case "gain" | "gamma":
            return f"{number(op.low)} to {number(op.high)}"
    return ""


def table(modality):
    """The table of one setting, in the order in which a view is made."""
    lines = ["| operation | chance | range | why |", "|---|---|---|---|"]
    for name, title in NAMES.items():
        if op := getattr(SETTINGS[modality], name):
            chance = number(getattr(op, "chance", 1.0))
            lines.append(f"| {title} | {chance} | {ranges(name, op) if chance != '0' else 'never'} | {op.reason} |")
    return "\n".join(lines)


def test_every_operation_is_in_the_table():
    for setting in SETTINGS.values():
        assert vars(setting).keys() == NAMES.keys()


@pytest.mark.parametrize("modality", SETTINGS)
def test_the_page_agrees_with_the_code(modality):
    page = PAGE.read_text()
    assert f"### {modality}\n\n{table(modality)}\n" in page


if __name__ == "__main__":
    head, mark = PAGE.read_text().split("<!-- tables -->")[0], "<!-- tables -->\n"
    PAGE.write_text(head + mark + "".join(f"\n### {modality}\n\n{table(modality)}\n" for modality in SETTINGS))
