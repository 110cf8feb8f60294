import html

import pytest

from csrtrain.report.markup import Markup, escaped, table, tag

HOSTILE = """<script>alert("1")</script> & 'x' <img src=x onerror=alert(1)>"""


def test_escapes_as_the_library_does():
    assert escaped(HOSTILE) == html.escape(HOSTILE, quote=True)
    assert escaped(3.5) == "3.5"


def test_markup_is_not_escaped_twice():
    assert escaped(escaped("<b>")) == "&lt;b&gt;"
    assert tag("p", {}, Markup("<b>x</b>"), "<i>") == "<p><b>x</b>&lt;i&gt;</p>"


def test_attributes_cannot_be_left():
    assert tag("p", {"title": '" onclick="x'}) == '<p title="&quot; onclick=&quot;x"></p>'
    assert tag("img", {"src": "data:,"}) == '<img src="data:,">'


@pytest.mark.parametrize("character", ["\0", "\x1b", "\r", "\x85", "\ud800", "\u202e", "\u2066"])
def test_what_cannot_be_shown_is_replaced(character):
    assert escaped(f"a{character}b") == "a\ufffdb"
    assert escaped("tab\tline\nÄ") == "tab\tline\nÄ"


def test_a_table_scrolls_in_its_own_container_and_names_its_headings():
    found = table("<c>", ["a", "b"], [["x", "<y>"]])
    assert found.startswith('<div class="scroll" tabindex="0" role="region" aria-label="&lt;c&gt;">')
    assert '<th scope="row">x</th><td>&lt;y&gt;</td>' in found and '<th scope="col">a</th>' in found
