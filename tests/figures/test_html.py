import base64
import io
import re
from html import unescape

import numpy as np
import pytest
from PIL import Image

from pages import check_page
from trilemma.figures.html import Html, breakable, definition_rows, element, join, page, picture

HOSTILE = "<script>alert(\"1\")</script> & 'x'"


def test_text_is_escaped_wherever_it_is_put_in():
    made = [
        element("p", HOSTILE),
        element("p", "", title=HOSTILE),
        join([HOSTILE]),
        definition_rows([(HOSTILE, HOSTILE)]),
        breakable(HOSTILE),
    ]
    for one in made:
        assert "<script" not in one
        assert '"1"' not in one
    read = check_page(page(HOSTILE, [HOSTILE, *made]))
    assert "".join(read.text).count(HOSTILE) == 7  # all but the one in an attribute; a table of pairs holds two


def test_markup_stands_as_it_is():
    assert element("p", element("b", "x"), " < ", Html("&nbsp;")) == "<p><b>x</b> &lt; &nbsp;</p>"
    assert element("details", open=True, hidden=False, id=None, class_="a", aria_label="b") == (
        '<details open class="a" aria-label="b"></details>'
    )
    assert element("br") == "<br>"
    with pytest.raises(ValueError, match="has no children"):
        element("img", "text")


def test_a_page_lets_nothing_be_loaded():
    text = page("t", [])
    assert "default-src 'none'" in unescape(text)
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text


def test_every_colour_that_is_used_is_given_for_light_and_dark():
    text = page("t", [])
    light, dark = re.findall(r":root\{(.*?)\}", text)
    names = [re.findall(r"(--[\w-]+):", block) for block in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(names[0])


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_read_on_the_page():
    """The contrast that WCAG asks of text (4.5) and of lines (3)."""
    for block in re.findall(r":root\{(.*?)\}", page("t", [])):
        colours = dict(re.findall(r"--([\w-]+):(#\w{6})", block))
        for name, colour in colours.items():
            for ground in ("page", "panel"):
                pair = sorted((luminance(colour), luminance(colours[ground])))
                contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
                needed = 4.5 if name in ("ink", "muted", "link") else 3.0 if re.fullmatch(r"c\d", name) else 1.0
                assert contrast >= needed, (name, ground, contrast)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_a_picture_is_within_the_page(tmp_path, mode):
    array = np.arange(256, dtype=np.uint8).reshape(8, 32)
    Image.fromarray(array).convert(mode).save(tmp_path / "a.png")
    read = check_page(page("t", [picture(tmp_path / "a.png", alt="a")]))
    (source,) = read.sources
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
        assert np.array_equal(np.asarray(shown.convert("L")), array)


def test_wide_pictures_are_shrunk(tmp_path):
    Image.new("L", (300, 100)).save(tmp_path / "a.png")
    assert 'width="150" height="50"' in picture(tmp_path / "a.png", alt="", max_width=150)
    (tmp_path / "b.png").write_text("no picture")
    for name in ("b.png", "missing.png"):
        with pytest.raises(OSError, match=name):
            picture(tmp_path / name, alt="")
