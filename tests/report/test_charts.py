import re
from xml.etree import ElementTree

import numpy as np
import pytest

from csrtrain.report.charts import Chart, Cloud, Line, describe, draw, thinned

STEPS = np.arange(10.0)


def figure(chart):
    """The drawing as a tree, and all places in it."""
    text = draw(chart)
    assert "nan" not in re.sub(r'aria-label="[^"]*"|<title>.*?</title>', "", text)
    tree = ElementTree.fromstring(text)
    paths = [(path.get("class"), path.get("d")) for path in tree.iter("path")]
    for _, d in paths:
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", d):
            assert -1 <= float(x) <= 401 and -1 <= float(y) <= 251
    return tree, paths


def test_a_long_curve_is_thinned_to_what_it_looks_like():
    rng = np.random.default_rng(0)
    x, y = np.arange(100_000.0), rng.normal(size=100_000)
    y[31_415], y[27_182] = 50, -50
    few_x, few_y = thinned(x, y)
    assert len(few_x) <= 302 and (np.diff(few_x) > 0).all()
    assert few_y.max() == 50 and few_y.min() == -50
    assert (few_x[0], few_x[-1]) == (0, 99_999)
    assert (y[few_x.astype(int)] == few_y).all()
    assert thinned(x[:300], y[:300])[0].tolist() == x[:300].tolist()
    assert len(draw(Chart("t", "x", "y", [Line(x, y)]))) < 10_000


def test_a_line_is_where_its_values_are():
    _, paths = figure(Chart("t", "x", "y", [Line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0]))]))
    (d,) = [d for name, d in paths if name.startswith("line")]
    places = np.array([[float(v) for v in pair.split()] for pair in d[1:].split("L")])
    np.testing.assert_allclose(places[1, 0] - places[0, 0], places[2, 0] - places[1, 0], atol=0.11)
    np.testing.assert_allclose((places[0, 1] - places[1, 1]) / (places[2, 1] - places[1, 1]), 2, atol=0.01)


def test_on_a_logarithmic_axis_ratios_are_distances():
    y = np.array([1.0, 0.1, 0.01, 0.0])
    _, paths = figure(Chart("t", "x", "y", [Line(np.arange(4.0), y)], log_y=True))
    (d,) = [d for name, d in paths if name.startswith("line")]
    places = [float(pair.split()[1]) for pair in d[1:].split("L")]
    assert len(places) == 3  # zero has no place
    assert abs((places[1] - places[0]) - (places[2] - places[1])) < 0.11


@pytest.mark.parametrize(
    "y",
    [
        np.full(10, 3.0),
        np.zeros(10),
        np.full(10, np.nan),
        np.array([1, np.nan, np.inf, 2, -np.inf, 3, 4, 5, 6, 7.0]),
        np.array([1e308, -1e308, 1, 2, 3, 4, 5, 6, 7, 8.0]),
        np.linspace(1e-300, 2e-300, 10),
        np.array([1, np.nan] * 5),
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_any_values_can_be_drawn(y, log):
    figure(Chart("t", "x", "y", [Line(STEPS, y, label="1")], [Cloud(STEPS, y)], [(0.5, "half")], log_y=log))


def test_one_point_and_none():
    _, paths = figure(Chart("t", "x", "y", [Line(np.array([7.0]), np.array([2.0]))]))
    assert [name for name, _ in paths if name and name.startswith(("dots", "line"))] == ["dots c0"]
    figure(Chart("t", "x", "y"))


def test_values_that_are_not_finite_leave_a_gap_and_a_mark():
    y = np.where(np.arange(10) == 5, np.nan, STEPS)
    _, paths = figure(Chart("t", "x", "y", [Line(STEPS, y)]))
    assert len([1 for name, _ in paths if name.startswith("line")]) == 2
    assert len([1 for name, _ in paths if name == "lost"]) == 1


def test_the_picture_is_described_in_words():
    chart = Chart("Loss", "step", "loss", [Line(STEPS, STEPS / 2 + 1, label="2")], levels=[(0.1, "collapsed")])
    assert describe(chart) == "Loss: loss against step. 2: 1 at 0, 5.5 at 9, 1 to 5.5. Line at 0.1: collapsed."
    tree, _ = figure(chart)
    svg = tree.find("svg")
    assert svg.get("role") == "img" and svg.get("aria-label") == svg.find("title").text == describe(chart)


def test_labels_at_close_ends_are_moved_apart():
    lines = [Line(STEPS, STEPS + k / 1000, k, str(k)) for k in range(3)]
    tree, _ = figure(Chart("t", "x", "y", lines))
    places = [float(text.get("y")) for text in tree.iter("text") if "end c" in (text.get("class") or "")]
    assert len(places) == 3 and (np.diff(sorted(places)) >= 9.9).all()
    apart = [Line(STEPS[: 4 * k + 1], STEPS[: 4 * k + 1] * 0, k, str(k)) for k in range(3)]
    tree, _ = figure(Chart("t", "x", "y", apart))
    places = [float(text.get("y")) for text in tree.iter("text") if "end c" in (text.get("class") or "")]
    assert np.ptp(places) == 0


def test_hostile_words_stay_words():
    text = draw(Chart("<script>", "<b>", '"x', [Line(STEPS, STEPS, label="<i>")], levels=[(1.0, "</svg>")]))
    assert "<script>" not in text and "<b>" not in text and "<i>" not in text
    ElementTree.fromstring(text)
