import pytest

from csrtrain.data.labels import read_labels


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "Expected column 'class' in .*labels.csv, got an empty file"),
        ("image,kind\na.png,1\n", "Expected column 'class' in .*labels.csv, got image, kind"),
        ("image,class\n", "Expected a label and a group in every row"),
        ("image,class\na.png,\n", "got none in rows .1."),
    ],
)
def test_what_is_missing_is_named(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_labels(str(tmp_path / "labels.csv"), "class", None)
