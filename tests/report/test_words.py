import numpy as np
import pytest

from csrtrain.report import folders, words
from csrtrain.report.paths import Hidden
from csrtrain.report.words import verdicts
from tests.report.conftest import METRICS


def said(folder, later=0.0):
    run = folders.read(folder, folder.name)
    return [(verdict.kind, verdict.text) for verdict in verdicts(run, run.written + later)]


def kinds(folder, text):
    (found,) = [kind for kind, sentence in said(folder, 7200) if text in sentence]
    return found


def test_a_run_that_went_well(make_run):
    found = dict((text.split(".")[0], kind) for kind, text in said(make_run()))
    assert found["Complete: 24 steps, 2 epochs"] == "good"
    assert found["All measured values are finite"] == "good"
    assert found["The representation has not collapsed"] == "good"
    assert kinds(make_run("b"), "val/knn_srcc is 0.750, 0.250 of the untrained backbone") == "good"


def test_a_run_that_has_not_ended(make_run):
    text = "\n".join(METRICS.splitlines()[:-1]) + "\n"
    assert (
        "plain",
        "Not complete: 1 of 2 epochs; something was written 5 seconds ago, so it may be going on.",
    ) in said(make_run("a", metrics=text), 5)
    assert (
        "warning",
        "Not complete: 1 of 2 epochs; nothing was written for 2 hours. The same command goes on where it stands.",
    ) in said(make_run("b", metrics=text), 7200)


@pytest.mark.parametrize(
    ("last", "kind", "words_"),
    [
        ("0.05,20.0,0.1,-0.1", "bad", "all images get nearly the same projection"),
        ("0.9,1.5,0.1,-0.1", "bad", "about one direction"),
        ("nan,nan,nan,nan", "bad", "projections are not finite"),
        ("0.9,20.0,0.1,-0.1", "good", "has not collapsed"),
    ],
)
def test_collapse_is_said_as_in_training(make_run, last, kind, words_):
    lines = METRICS.splitlines()
    lines[-1] = "23,,0.75,1.0,4.375," + last
    assert kinds(make_run(metrics="\n".join(lines) + "\n"), words_) == kind


def test_what_is_not_finite_is_named_with_its_step(make_run):
    text = "step,train/loss,val/knn_srcc\n0,1.0,nan\n5,nan,\n9,inf,\n"
    found = said(make_run(metrics=text))
    assert ("bad", "train/loss is not finite 2 times, first at step 5.") in found
    assert ("warning", "val/knn_srcc is not finite once, first at step 0.") in found
    assert not any("All measured values are finite" in sentence for _, sentence in found)


def test_a_probe_that_learned_nothing(make_run):
    text = METRICS.replace(",0.75,1.0,", ",0.20,1.0,")
    assert kinds(make_run(metrics=text), "no better than 0.250 of the untrained backbone") == "warning"


def test_heads_stand_beside_their_control(make_run):
    header = "step,test/two_afc,test/two_afc_low,test/two_afc_high,test/two_afc_uncalibrated"
    text = f"{header},test/two_afc_gain_low,test/two_afc_gain_high\n9,0.7,0.65,0.75,0.6,{{}}\n"
    config = "model: {class_path: csrtrain.quality.Preference, init_args: {backbone: resnet18, weights: none}}"
    for name, ends, verdict in (
        ("a", "0.05,0.15", "better than"),
        ("b", "-0.1,-0.02", "worse than"),
        ("c", "-0.1,0.2", "not told apart from"),
    ):
        folder = make_run(name, metrics=text.format(ends), **{"config.yaml": config})
        assert kinds(folder, f"2AFC 0.700 [0.650, 0.750] on split test, {verdict} 0.600") == "plain"
        assert kinds(folder, "untrained") == "warning"
    bundle = config.replace("resnet18", "x.safetensors")
    folder = make_run("d", metrics=text.format("0.05,0.15"), **{"config.yaml": bundle})
    assert not any("untrained" in sentence for _, sentence in said(folder))


def test_facts_hold_no_path(make_run):
    run = folders.read(make_run(), "run")
    facts = dict(words.facts(run, Hidden()))
    assert facts["Method"] == "SimCLR" and facts["Backbone"] == "resnet18, untrained"
    assert facts["Steps"] == "24 of 64 images, 2 of 2 epochs"
    assert facts["Loss"] == "4.25, at first 5.5"
    assert "alice" not in str(facts)


def test_intervals_in_letters():
    assert words.with_interval(0.5, 0.25, 0.75) == "0.500 [0.250, 0.750]"
    assert words.with_interval(0.5, np.nan, 0.75) == "0.500"
    assert words.with_interval(np.nan) == ""
    assert words.with_interval(0.5, -0.25, 0.75, "+") == "+0.500 [-0.250, +0.750]"
    assert [words.beats(*ends) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (np.nan, 1))] == [
        "beats",
        "is beaten",
        "neither",
        "no interval",
    ]
