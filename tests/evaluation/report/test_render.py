import base64
import io
import re
from html import unescape

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from pages import check_page, page
from trilemma.evaluation.report.render import picture
from trilemma.figures.style import VARIABLES

HOSTILE = "<script>alert(\"1\")</script> & 'x'"


def test_text_is_escaped_wherever_it_is_put_in():
    body = '<p title="{{ x }}">{{ x }}</p>{{ pairs([(x, x)]) }}{{ breakable(x) }}{{ small("a" ~ x) }}{{ missing() }}'
    text = page(body, title=HOSTILE, x=HOSTILE)
    assert "<script" not in text
    assert '"1"' not in text
    assert "".join(check_page(text).text).count(HOSTILE) == 6  # in the title, and all but the one in an attribute


def test_numbers_are_for_people_and_for_machines():
    text = page("{{ datum(x, y) }}{{ small(datum(x, y) ~ ' to <b>') }}", title="t", x=1 / 3, y="{:.2f}".format)
    number = '<data value="0.3333333333333333">0.33</data>'
    assert f'{number}<span class="small">{number} to &lt;b&gt;</span>' in text


def test_what_a_template_is_not_given_is_an_error():
    with pytest.raises(UndefinedError, match="typo"):
        page("{{ typo }}", title="t")


def test_a_page_lets_nothing_be_loaded():
    text = page("", title="t")
    assert "default-src 'none'" in unescape(text)
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text


def test_every_colour_that_is_used_is_given_for_light_and_dark():
    text = page("", title="t")
    light, dark = (dict(re.findall(r"--([\w-]+):(#\w+)", block)) for block in re.findall(r":root\{([^}]*)\}", text))
    assert light.keys() == dark.keys()
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= light.keys()
    assert {name: light[name] for name in VARIABLES.values()} == {name: tone for tone, name in VARIABLES.items()}


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_can_be_read_on_the_page():
    """The contrast that WCAG asks of text (4.5) and of lines (3)."""
    blocks = re.findall(r":root\{([^}]*)\}", page("", title="t"))
    assert len(blocks) == 2
    for block in blocks:
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
    read = check_page(page("{{ img(x, 'a', 900) }}", title="t", x=tmp_path / "a.png"))
    (source,) = read.sources
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
        assert np.array_equal(np.asarray(shown.convert("L")), array)


def test_wide_pictures_are_shrunk(tmp_path):
    Image.new("L", (300, 100)).save(tmp_path / "a.png")
    assert 'width="150" height="50"' in page("{{ img(x, '', 150) }}", title="t", x=tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    for name in ("b.png", "missing.png"):
        with pytest.raises(OSError, match=name):
            picture(tmp_path / name, 900)
