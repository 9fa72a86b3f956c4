"""The page of `distill serve` in a real browser.

Needs Chromium (Debian's package `chromium`, or CHROMIUM=path), and for the accessibility check
axe-core (see CONTRIBUTING.md). With SCREENSHOTS=1 pictures go to screenshots/.
"""

import base64
import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from distill.data.splits import scan_split
from distill.runtime import Classifier
from distill.runtime.server.settings import ServerSettings
from tests.distill.runtime.serving import check_accessibility, serving

playwright = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[3]
SHOTS = ROOT / "screenshots"
DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
  document.querySelector("#cards").dispatchEvent(
    new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture
def serve():
    """A function that starts a server of a classifier folder and gives its base URL."""
    with ExitStack() as stack:
        yield lambda folder, settings=None: stack.enter_context(serving(folder, settings))


@pytest.fixture
def open_tab(chromium, serve):
    """A function that opens a page in a tab; the test fails where the page complains.

    What the server refuses is an error on the browser's console, too. The tabs are closed before
    the servers stop, which a page that still classifies photos would complain about.
    """
    wrong: list[str] = []
    opened = []

    def tell(message):
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def open_at(url, width=1280):
        context = chromium.new_context(base_url=url, viewport={"width": width, "height": 900})
        opened.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)  # for machines that are busy
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", tell)
        tab.goto("/")
        tab.get_by_text("51 classes").wait_for()
        return tab

    open_at.wrong = wrong
    yield open_at
    for context in opened:
        context.close()
    assert wrong == []


@pytest.fixture
def url(serve, classifier_folder):
    return serve(classifier_folder)


@pytest.fixture
def photos(charm_world):
    return scan_split(charm_world, "unseen").paths[::7]


def drop(tab, path):
    content = base64.b64encode(path.read_bytes()).decode()
    tab.evaluate(DROP, [path.name, content])


def wait_until_idle(tab):
    tab.locator(".card").first.wait_for()
    tab.locator(".card.busy").first.wait_for(state="detached")


def bars(tab):
    return tab.locator(".card").first.locator("li")


def remove(tab, name):
    tab.get_by_role("button", name=f"Remove {name}").click()
    tab.get_by_role("button", name="Remove", exact=True).click()
    tab.get_by_text(f"Removed {name}").wait_for()


def shoot(tab, name):
    if os.environ.get("SCREENSHOTS"):
        SHOTS.mkdir(exist_ok=True)
        tab.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_a_person_drops_a_photo_adds_a_class_and_removes_it(
    open_tab, url, photos, classifier_folder
):
    tab = open_tab(url)
    drop(tab, photos[0])
    wait_until_idle(tab)
    assert bars(tab).count() == 5
    shares = [float(text.split()[0]) for text in tab.locator(".card .number").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    width = bars(tab).first.locator(".bar").evaluate("bar => bar.style.width")
    assert float(width.removesuffix("%")) == pytest.approx(shares[0], abs=0.1)

    (prediction,) = Classifier.load(classifier_folder).classify(photos[:1], reasons=True)
    shown = tab.locator(".card .why dd").all_inner_texts()
    assert [line.rpartition(" ")[0] for line in shown] == [
        *(reason.text for reason in prediction.reasons.attributes if reason.supports),
        *(f"{reason.name}: {reason.text}" for reason in prediction.reasons.differences),
    ]

    # The text of the best class under another name: the photo that is there finds it at once.
    best = bars(tab).first.locator(".name").inner_text()
    text = tab.locator("#class-list li", has_text=best).get_attribute("title")
    remove(tab, best)
    bars(tab).filter(has_text=best).wait_for(state="detached")
    tab.get_by_label("Name").fill("okapi")
    tab.get_by_label("What it looks like").fill(text.partition(" . ")[2])
    tab.get_by_role("button", name="Add class").click()
    tab.get_by_text("Added okapi").wait_for()
    bars(tab).filter(has_text="okapi").wait_for()
    wait_until_idle(tab)
    assert bars(tab).first.locator(".name").inner_text() == "okapi"
    assert tab.locator("#class-list li").first.locator(".name").inner_text() == "okapi"
    assert bars(tab).count() == 5

    remove(tab, "okapi")
    bars(tab).filter(has_text="okapi").wait_for(state="detached")
    assert tab.locator("#class-list li", has_text="okapi").count() == 0


def test_errors_are_shown_where_they_occurred(open_tab, url, photos, tmp_path):
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:500])
    tab = open_tab(url)
    tab.set_input_files("#files", [tmp_path / "cut.png", *photos[:3]])
    wait_until_idle(tab)
    cut = tab.locator(".card", has=tab.get_by_role("heading", name="cut.png"))
    assert "cannot be read" in cut.locator(".verdict").inner_text()
    assert cut.locator("li").count() == 0
    assert tab.locator(".card li").count() == 15

    tab.get_by_label("Name").fill("okapi")
    tab.get_by_role("button", name="Add class").click()
    tab.get_by_text("needs a description").wait_for()
    tab.get_by_label("What it looks like").fill("a horse-like animal with striped legs")
    tab.get_by_role("button", name="Add class").click()
    tab.get_by_text("Added okapi").wait_for()
    tab.get_by_label("Name").fill("okapi twin")
    tab.get_by_label("What it looks like").fill("a horse-like animal with striped legs.")
    tab.get_by_role("button", name="Add class").click()
    tab.get_by_text("is too similar to that of 'okapi'").wait_for()
    tab.get_by_label("Add it anyway").check()
    tab.get_by_role("button", name="Add class").click()
    tab.get_by_text("Added okapi twin").wait_for()
    tab.get_by_text("53 classes").wait_for()
    # Chromium reports each refusal on its console.
    assert len(open_tab.wrong) == 3
    assert all("the server responded with a status of 4" in text for text in open_tab.wrong)
    open_tab.wrong.clear()


def test_a_photo_of_no_class_is_shown_as_none_of_these(open_tab, serve, classifier_folder, photos):
    """The threshold is raised above all cosines."""
    manifest = classifier_folder / "classifier.json"
    raised = re.sub(
        r'"unknown_threshold":[^,\n]+', '"unknown_threshold": 2.0', manifest.read_text()
    )
    manifest.write_text(raised)
    tab = open_tab(serve(classifier_folder))
    drop(tab, photos[0])
    tab.locator(".verdict", has_text="None of these").wait_for()
    assert bars(tab).count() == 5
    shoot(tab, "serve-none")


def test_a_read_only_server_shows_no_way_to_change_classes(open_tab, serve, exported_charms):
    tab = open_tab(serve(exported_charms.folder, ServerSettings(threads=1, read_only=True)))
    assert tab.locator("#class-list li").count() == 51
    assert tab.get_by_role("button", name=re.compile("Remove|Add")).count() == 0


@pytest.mark.parametrize("width", [1280, 400])
def test_everything_fits_and_is_accessible(open_tab, url, photos, width):
    tab = open_tab(url, width)
    tab.set_input_files("#files", photos)
    wait_until_idle(tab)
    tab.get_by_label("Filter").fill("brell")
    assert 0 < tab.locator("#class-list li").count() < 51
    shoot(tab, f"serve-{width}")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    check_accessibility(tab)


def test_the_keyboard_is_enough(open_tab, url, photos):
    tab = open_tab(url)
    drop(tab, photos[0])
    wait_until_idle(tab)
    for focused in ("summary", "files"):
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == focused
    tab.keyboard.press("Tab")
    tab.keyboard.type("okapi")
    tab.keyboard.press("Tab")
    tab.keyboard.type("a horse-like animal with striped legs")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.get_by_text("Added okapi").wait_for()
    assert tab.evaluate("document.activeElement.id") == "name"
    tab.get_by_role("button", name="Remove okapi").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.get_by_text("Removed okapi").wait_for()
