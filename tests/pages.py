"""What a page that is one file must be: balanced, and without anything that a browser would fetch or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from trilemma.evaluation.report.render import ENVIRONMENT

VOID = {"br", "hr", "img", "input", "meta", "wbr"}


class Page(HTMLParser):
    """Reads a page; `problems` names what is not well-formed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.data: list[tuple[str, str]] = []  # value and text of <data>
        self.text: list[str] = []
        self._value: str | None = None
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self.open]
        self.problems += [f"id {name} twice" for name in {n for n in self.ids if self.ids.count(n) > 1}]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if len(given) < len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("href", "xlink:href"):
            if name in given:
                self.links.append(given[name])
        if "src" in given:
            self.sources.append(given["src"])
        if tag == "data":
            self._value = given["value"]
        self.problems += [f"{name} on <{tag}>" for name in given if name.startswith("on")]

    def handle_endtag(self, tag):
        if tag in VOID or not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, text):
        if self.open[-1:] != ["script"]:
            self.text.append(text)
        if self._value is not None:
            self.data.append((self._value, text))
            self._value = None


def check_page(text: str) -> Page:
    """Assert what every page of ours must be."""
    page = Page(text)
    assert page.problems == []
    assert text.startswith("<!doctype html>")
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    if "script" in page.tags:  # ours alone, which the page's policy names by its hash
        assert page.tags.count("script") == 1
        ours = ENVIRONMENT.globals["table_script"]
        assert f"<script>{ours['text']}</script>" in text
        assert f"script-src '{ours['hash']}'\"" in text
    assert [source for source in page.sources if not source.startswith("data:image/png;base64,")] == []
    assert [link for link in page.links if not link.startswith("#") or link[1:] not in page.ids] == []
    without_pictures = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?://|@import|url\((?!#)", without_pictures)
    return page


def page(body: str, **values: Any) -> str:
    """A page of ours with this template as its body."""
    macros = '{% from "macros.html" import breakable, datum, img, missing, pairs, small %}'
    source = '{% extends "page.html" %}' + macros + "{% block main %}" + body + "{% endblock %}"
    return ENVIRONMENT.from_string(source).render(**values)
