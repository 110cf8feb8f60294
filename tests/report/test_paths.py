import pytest

from csrtrain.report.paths import Hidden


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("root", "images"),
        ("manifest", "ratings"),
        ("entity", "alice"),
        ("views", "/home/alice/x"),
        ("note", r"C:\Users\alice"),
        ("note", "~/images"),
        ("note", "../scans"),
        ("backbone", "patient_smith.safetensors"),
        ("weights", "w.pth"),
        ("weights", "w"),
        ("note", "scan.nii.gz"),
        ("note", "volume.nii#3"),
        ("note", "alice@example.org"),
        ("note", "https://example.org"),
    ],
)
def test_places_and_people_are_hidden(key, value):
    assert Hidden().value(value, key) == "(path 1)"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("root", "samples:medical"),
        ("weights", "imagenet"),
        ("class_path", "csrtrain.pretrain.SimCLR"),
        ("backbone", "resnet18.a1_in1k"),
        ("cpu", "Intel(R) Xeon(R) CPU @ 2.20GHz"),
        ("precision", "bf16-mixed"),
        ("python", "3.12.4"),
        ("root", None),
        ("seed", 3),
        ("learning_curve", True),
        ("root", ""),
    ],
)
def test_other_values_stay(key, value):
    assert Hidden().value(value, key) == value


def test_the_same_place_has_the_same_number_within_containers_and_sentences():
    hidden = Hidden()
    tree = {"data": {"root": "/a/b", "many": ["/a/c", {"manifest": "/a/b"}]}, "/a/c": 1}
    assert hidden.value(tree) == {
        "data": {"root": "(path 1)", "many": ["(path 2)", {"manifest": "(path 1)"}]},
        "(path 2)": 1,
    }
    assert hidden.text("Could not read /a/b today.") == "Could not read (path 1) today."
