"""What holds for every page, with data on it: all is text, nothing runs inline, all links lead
somewhere, and everything can be read without a script."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from tests.service.web.conftest import EVIL
from tests.service.web.world import build

VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


@pytest.fixture(scope="module")
def world(service, model, shared):
    return build(service, model, shared)


def opened(browser, world):
    """Name, address and text of each page."""
    for name, path in world.pages:
        page = browser.get(path)
        assert page.status_code == (404 if name == "error" else 200), f"{path}: {page.text[:500]}"
        yield name, path, page


def test_what_anybody_wrote_stays_text_on_every_page(browser, world):
    seen = set()
    for name, path, page in opened(browser, world):
        assert EVIL not in page.text, path
        assert "<img" not in page.text.lower(), path
        if EVIL in unescape(page.text):
            seen.add(name)
    # The name of the test would be hollow if the text were not there to be seen.
    assert seen >= {name for name, _ in world.pages} - {
        "label-sets", "label-set-rejected", "label", "run-new", "runs", "release-new", "job-new",
        "students", "error",
    }  # fmt: skip


class Shape(HTMLParser):
    """Checks that tags are closed in order, and collects ids, links and form fields."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.attributes: set[str] = set()
        self.headings: list[int] = []
        self.unnamed: list[str] = []
        self.forms: list[dict[str, str | None]] = []
        self.tokens = 0

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.attributes |= set(given)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.add(given["href"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "form":
            self.forms.append(given)
        self.tokens += given.get("name") == "form_token"
        if (
            tag in ("input", "select", "textarea")
            and given.get("type") != "hidden"
            and "label" not in self.open
            and "aria-label" not in given
        ):
            self.unnamed.append(self.get_starttag_text())

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_nothing_on_any_page_runs_or_styles_inline(browser, world):
    for _, path, page in opened(browser, world):
        shape = Shape()
        shape.feed(page.text)
        assert "unsafe-inline" not in page.headers["content-security-policy"], path
        inline = {name for name in shape.attributes if name == "style" or name.startswith("on")}
        assert inline == set(), path
        assert not re.search(r"<style|javascript:|<script(?![^>]* src=\"/static/)", page.text), path


def test_every_page_is_well_formed_and_every_field_has_a_name(browser, world):
    for _, path, page in opened(browser, world):
        shape = Shape()
        shape.feed(page.text)
        assert shape.open == [], path
        assert len(set(shape.ids)) == len(shape.ids), path
        assert shape.headings[0] == 1 and shape.headings.count(1) == 1, path
        assert all(b - a <= 1 for a, b in zip(shape.headings, shape.headings[1:], strict=False)), (
            path
        )
        assert shape.unnamed == [], path
        posting = [form for form in shape.forms if form["method"] == "post"]
        assert len(posting) == shape.tokens, path


def test_every_link_leads_somewhere(browser, world):
    links = set()
    for _, path, page in opened(browser, world):
        shape = Shape()
        shape.feed(page.text)
        for link in shape.links:
            links.add(link if link.startswith("/") else path.partition("?")[0] + link)
    for link in sorted(link for link in links if "#" not in link and "/artifacts/" not in link):
        answer = browser.get(link)
        assert answer.status_code == 200, link
