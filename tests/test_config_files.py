import os

import pytest

from csrtrain.cli import config_path, main
from csrtrain.config_files import MOST_BYTES, check_config_file

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 10000 values up to line 5, with what aliases stand for"),
        ("trainer: &a\n  callbacks: [*a]\n", r"the alias \*a in line 2 stands in itself"),
        # PyYAML 6.0.4 has a limit of its own, of 1,000, and looks ahead.
        ("trainer: " + "[" * 100_000 + "]" * 100_000, "line 1 is nested deeper than 40|exceeded maximum nesting depth"),
        ("a: " + "{a: " * 900 + "1" + "}" * 900, "line 1 is nested deeper than 40"),
        ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "the key max_epochs in line 3 stands twice"),
        ("a: {b: 1, c: &x {d: 1}, <<: *x, b: 2}", "the key b in line 1 stands twice"),
        ("x: !!python/object/apply:os.system ['touch owned']\n", "the tag .*os.system in line 1, which could run code"),
        ("x: !!python/name:os.system\n", "the tag .*os.system in line 1"),
        ("x: !local y\n", "the tag !local in line 1"),
        ("config: other.yaml\n", "config in line 1 is a text; write its settings here"),
        ("a: 1\ntrainer: /dev/zero\n", "trainer in line 2 is a text"),
        ("a: " + "9" * 5000, "a text of 5000 characters in line 1"),
        ("a:\n" + "  - 1\n" * 20_000, "more than 10000 values up to line 1"),
        ("- 1\n- 2\n", r"settings by name \(key: value\) are missing in line 1"),
        ("? [a, b]\n: 1\n", "a list or mapping as a key"),
        ("a: [1\n", "while parsing"),
        ("a: \0\n", "special characters|control characters|not allowed"),
    ],
)
def test_configs_that_no_parser_is_given(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"Expected a config in plain YAML, got another in .*evil.yaml: .*({words})"):
        check_config_file(path)
    assert not (tmp_path / "owned").exists()


def test_what_a_config_may_be(tmp_path):
    path = tmp_path / "sound.yaml"
    path.write_text("\ufeffx: &x {b: [1, 1, 'a'], c: !!str 3}\ny: *x\nz: {<<: *x}\n# " + "c" * 1000)
    check_config_file(path)
    check_config_file(config_path("contrique"))
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match="sound.yaml: .*utf-8"):
        check_config_file(path)
    path.write_text("#" * (MOST_BYTES + 1))
    with pytest.raises(ValueError, match=r"Expected a config of at most 1048576 bytes, got 1048577 in .*sound.yaml"):
        check_config_file(path)


def test_a_config_that_is_no_file_is_neither_waited_for_nor_read(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zeros.yaml").symlink_to("/dev/zero")
    for name, words in (
        (str(tmp_path / "pipe.yaml"), "a device, pipe or socket for"),
        (str(tmp_path / "zeros.yaml"), "a device, pipe or socket for"),
        (str(tmp_path), "Is a directory for"),
        ("https://example.com/a.yaml", "Nothing is fetched from a network"),
        ("a\0b.yaml", "does not exist"),
    ):
        for arguments in (["-c", name], [f"-c{name}"], [f"--config={name}"]):
            assert main(["fit", *arguments]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: Expected a") and words in error and len(error) < 1000
