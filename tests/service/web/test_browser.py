"""The pages as people use them: in a real browser, against a real service, with real texts.

Needs Chromium (Debian's package `chromium`, or CHROMIUM=path). The accessibility check needs
axe-core as well: see CONTRIBUTING.md. With SCREENSHOTS=1 pictures of all pages go to screenshots/,
which git ignores.
"""

import json
import os
import re
from pathlib import Path

import pytest

from enrich_service.web.texts import comparison
from tests.service.web.conftest import EVIL
from tests.service.web.worker import HIGH, LOW, Worker, grey
from tests.service.web.world import build, offers_of, real_texts

playwright = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[3]
SHOTS = ROOT / "screenshots"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture
def tab(chromium, service):
    """A tab that fails the test if anything asks, complains or breaks."""
    context = chromium.new_context(
        base_url=str(service.base_url), viewport={"width": 1280, "height": 900}
    )
    tab = context.new_page()
    tab.set_default_timeout(60_000)  # for machines that are busy
    wrong: list[str] = []
    tab.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("pageerror", lambda error: wrong.append(f"error {error}"))
    tab.on(
        "console",
        lambda said: (
            wrong.append(f"{said.text} ({tab.url})") if said.type in ("error", "warning") else None
        ),
    )
    yield tab
    context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def world(service, model, shared):
    return build(service, model, shared)


def press(tab, name):
    tab.get_by_role("button", name=name, exact=True).click()


def follow(tab, name):
    tab.get_by_role("link", name=name, exact=True).first.click()


def test_a_person_goes_from_names_to_a_compared_student(tab, service, model, shared):
    texts = dict(list(real_texts(shared).items())[:12])
    model.answers |= {name: json.dumps({"description": text}) for name, text in texts.items()}

    # A label set.
    tab.goto("/label-sets")
    tab.get_by_label("Name", exact=True).fill("animals")
    tab.get_by_label("Class names, one per line").fill("\n".join(texts))
    press(tab, "Add")
    tab.wait_for_url("**/label-sets/animals")

    # A run, with its price first, watched while it goes.
    follow(tab, "Start a run")
    tab.get_by_role("button", name=re.compile("Estimate")).click()
    tab.get_by_label("Concurrent calls").fill("1")
    tab.get_by_label("Your name").fill("ada")
    model.latency = 0.1
    press(tab, "Start the run")
    tab.locator("span", has_text="12 of 12").wait_for()
    tab.locator(".state.succeeded").wait_for()
    assert tab.locator("[hx-sse\\:connect]").count() == 0  # the end came by itself
    model.latency = 0.0

    # Looking through the texts: search as one types, edit in place.
    tab.goto("/label-sets/animals")
    tab.get_by_label("Search in names and keys").press_sequentially("goldfish")
    tab.get_by_text("1 label", exact=True).wait_for()
    assert "search=goldfish" in tab.url
    follow(tab, "goldfish")
    tab.get_by_text("Edit", exact=True).click()
    tab.locator("textarea").fill("Goldfish are orange, with long fins.")
    press(tab, "Save")
    tab.locator(".state.edited").wait_for()
    press(tab, "Approve")
    tab.locator(".state.approved").first.wait_for()

    # Two releases, and what differs.
    for name, text in (("animals-1", "Orange and small."), ("animals-2", None)):
        tab.goto("/releases/new?label_set=animals")
        tab.get_by_label("Release name").fill(name)
        press(tab, "Create release")
        tab.get_by_role("heading", name=name).wait_for()
        if text:
            tab.goto("/label-sets/animals?search=goldfish")
            follow(tab, "goldfish")
            tab.get_by_text("Edit", exact=True).click()
            tab.locator("textarea").fill(text)
            press(tab, "Save")
            tab.get_by_text(text).first.wait_for()
    press(tab, "Compare")
    assert "1 label differs, 11 unchanged" in tab.inner_text("main")
    assert tab.locator("ins").count() and tab.locator("del").count()

    # A job whose curve grows while one looks at it.
    release = tab.url.rpartition("/releases/")[2].partition("/")[0]
    jobs = []
    for strategy in ("name", "name+description"):
        tab.goto(f"/jobs/new?release_id={release}")
        tab.get_by_label(re.compile("^data ")).fill("/data/animals")
        tab.get_by_label(re.compile("^teacher open_clip")).fill("ViT-B-32@openai")
        tab.get_by_label("text strategy").select_option(strategy)
        press(tab, "Queue job")
        tab.locator(".state.queued").wait_for()
        jobs.append(int(tab.url.rpartition("/")[2]))
        worker = Worker(service)
        worker.train(1)
        tab.locator("svg circle").first.wait_for()
        worker.train(2)
        tab.locator("svg circle").first.wait_for(state="detached")
        worker.finish(unseen=5.0 * len(jobs))
        tab.frame_locator("iframe").get_by_text("The report").wait_for()

    # Both side by side.
    tab.goto("/jobs")
    for job in jobs:
        tab.get_by_label(f"Compare job {job}", exact=True).check()
    tab.get_by_role("button", name=re.compile("Compare selected")).click()
    assert tab.locator("tr.differs").inner_text().startswith("text_strategy differs")
    assert tab.locator("svg rect").count() == 10


def test_a_person_chooses_what_a_worker_has_and_is_warned_of_what_none_has(
    tab, service, world, axe
):
    tab.goto("/")
    follow(tab, "Workers")
    tab.get_by_role("cell", name="120 classes; 12,000 training", exact=False).first.wait_for()
    tab.goto("/jobs/new")
    follow(tab, "small")  # a recipe
    assert tab.get_by_label(re.compile("^epochs ")).input_value() == "3"
    data = tab.get_by_label(re.compile("^data "))
    offered = data.evaluate("field => [...field.list.options].map(option => option.value)")
    assert "/data/birds" in offered
    data.fill("/elsewhere/fish")
    tab.get_by_label(re.compile("^teacher open_clip")).fill("ViT-B-32@openai")
    before = len(service.get("/v1/jobs").json())
    offers = offers_of(EVIL) | {"data_roots": ["/d"], "data_complete": True}
    for worker in service.get("/v1/workers").json():  # all of them say what they have
        service.post("/v1/workers", json={"worker": worker["name"], "offers": offers})
    press(tab, "Queue job")
    tab.get_by_role("alert").get_by_text("No running worker has the data").wait_for()
    assert findings(tab, axe) == []
    assert data.input_value() == "/elsewhere/fish"
    assert len(service.get("/v1/jobs").json()) == before
    press(tab, "Queue anyway")
    tab.locator(".state.queued").wait_for()
    job = service.get("/v1/jobs").json()[0]
    assert (job["config"]["data"], job["config"]["epochs"]) == ("/elsewhere/fish", 3)
    press(tab, "Cancel")


def test_a_prompt_is_created_tagged_edited_and_archived(tab, service, world):
    tab.goto("/prompts")
    follow(tab, "New prompt")
    tab.get_by_label("Name", exact=True).fill("plumage")
    tab.get_by_label("Tags, one per line").fill("birds\nplumage")
    press(tab, "Create prompt")
    tab.get_by_role("heading", name="plumage").wait_for()
    follow(tab, "Edit and try")
    tab.get_by_label("User message").fill("Describe the plumage of {{ label }}.")
    tab.get_by_label("Message", exact=True).fill("Plumage alone")
    press(tab, "Save as version 2")
    tab.get_by_role("heading", name="Version 2").wait_for()
    follow(tab, "plumage")
    tab.get_by_text("Edit tags").click()
    tab.get_by_label("Tags, one per line").fill("short")
    press(tab, "Save tags")
    tab.get_by_role("link", name="short").wait_for()
    press(tab, "Archive")
    tab.locator(".state.archived").wait_for()
    made = service.get("/v1/prompts/plumage").json()
    assert (made["latest"], made["tags"]) == (2, ["short"])
    press(tab, "Restore")
    tab.get_by_role("button", name="Archive").wait_for()


def test_a_student_is_followed_from_its_job_to_an_alias_and_back(tab, service, world):
    tab.goto(dict(world.pages)["job"])
    number = tab.url.rpartition("/")[2]
    tab.get_by_text("Register as a version of a student").click()
    tab.get_by_label("Student, new or existing").fill("birds")
    tab.get_by_label("Message").fill("the first")
    press(tab, "Register")
    tab.get_by_role("heading", name="birds").wait_for()
    follow(tab, number)
    follow(tab, "birds, version 1")
    tab.get_by_label("Reason").fill("nothing better yet")
    press(tab, "Move")
    tab.locator(".state.production").wait_for()

    # The other version: what differs is seen at once, and what was wrong is taken back.
    tab.goto("/students/things")
    assert tab.locator("td strong").count() >= 2
    tab.get_by_label("Points at version").select_option("2")
    tab.get_by_label("Reason").last.fill("better on unseen classes")
    press(tab, "Move")
    tab.get_by_text("Roll back to version 1").click()
    tab.get_by_label("Reason").first.fill("slower")
    press(tab, "Roll back")
    tab.get_by_role("cell", name="slower", exact=True).wait_for()
    moves = service.get("/v1/students/things/aliases/production/moves").json()
    assert [move["to_version"] for move in moves[:2]] == [1, 2]


def test_an_alias_is_moved_and_rolled_back_by_keyboard_alone(tab, service, world):
    tab.goto("/prompts/visual-description")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.get_by_label("Points at version").focus()
    tab.keyboard.type("2")
    tab.keyboard.press("Tab")
    tab.keyboard.type("colours first")
    tab.keyboard.press("Enter")
    tab.get_by_text("Roll back to version 1").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    tab.keyboard.type("worse")
    tab.keyboard.press("Enter")
    tab.get_by_text("worse").wait_for()
    moves = service.get("/v1/prompts/visual-description/aliases/production/moves").json()
    assert [(move["to_version"], move["reason"]) for move in moves[:2]] == [
        (1, "worse"), (2, "colours first"),
    ]  # fmt: skip


def test_a_table_is_copied_as_a_spreadsheet_takes_it(tab, world):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto("/label-sets/things")
    press(tab, "Copy table")
    press(tab, "Copied")
    lines = tab.evaluate("navigator.clipboard.readText()").split("\n")
    assert lines[0].split("\t") == ["Label", "Text", "State", "Edits"]
    assert len(lines) == 51


def test_a_copied_table_has_no_formulas(tab, service):
    names = ["=HYPERLINK(1)", "@x", "-1", "'=1"]
    labels = [{"key": f"n{number}", "name": name} for number, name in enumerate(names)]
    answer = service.post("/v1/label-sets", json={"name": "formulas", "labels": labels})
    assert answer.status_code == 201, answer.text
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto("/label-sets/formulas")
    press(tab, "Copy table")
    press(tab, "Copied")
    lines = tab.evaluate("navigator.clipboard.readText()").split("\n")
    copied = [line.split("\t")[0] for line in lines[1:]]
    assert [cell.split()[0] for cell in copied] == ["'=HYPERLINK(1)", "'@x", "'-1", "''=1"]


def test_pages_can_be_read_without_scripts(chromium, service, world):
    context = chromium.new_context(base_url=str(service.base_url), java_script_enabled=False)
    tab = context.new_page()
    tab.goto("/label-sets/things")
    tab.get_by_label("Search in names and keys").fill("goldfish")
    press(tab, "Search")
    playwright.expect(tab.locator("tbody tr")).to_have_count(1)
    tab.goto(dict(world.pages)["job-running"])
    assert tab.locator("svg polyline").count() == 5
    tab.goto(dict(world.pages)["similarity"])
    assert tab.locator("#heat svg image").bounding_box()["width"] > 300
    tab.goto(dict(world.pages)["diagnostics"])
    assert tab.locator("svg.plane text").count() > 20
    context.close()


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.is_file():
        pytest.skip("no axe-core in node_modules: see CONTRIBUTING.md")
    return AXE.read_text()


def findings(tab, axe) -> list[str]:
    """What axe finds on the page, be it serious or not."""
    tab.evaluate(axe)
    found = tab.evaluate(
        "axe.run(document, {iframes: false, resultTypes: ['violations']}).then(r => r.violations)"
    )
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def test_every_page_fits_each_screen_and_keeps_nobody_out(tab, world, axe):
    """All pages: light, dark, and as wide as a phone; axe finds nothing on any of them."""

    def screenshot(name: str) -> None:
        if "SCREENSHOTS" in os.environ:
            tab.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    for name, path in world.pages:
        if name == "error":
            continue  # the browser itself notes a 404 on its console
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.goto(path)
        for scheme in ("dark", "light"):
            tab.emulate_media(color_scheme=scheme)
            screenshot(f"{name}-{scheme}")
            assert findings(tab, axe) == [], (path, scheme)
        tab.set_viewport_size({"width": 390, "height": 844})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, path
        screenshot(f"{name}-phone")


def test_what_was_written_runs_on_no_page_and_a_report_stays_in_its_box(tab, world):
    names = ("home", "label-evil", "prompt-diff", "job", "job-running", "diagnostics")
    for name in (*names, "similarity", "comparison", "playground"):
        tab.goto(dict(world.pages)[name])
        if name == "job":
            tab.frame_locator("iframe").get_by_text("The report").wait_for()
            assert tab.evaluate("window.reached") is None
        assert tab.locator("img").count() == 0, name
    tab.goto(dict(world.pages)["job-running"])
    with tab.expect_response("**/live") as live:  # what comes live is text as well
        tab.reload()
    assert live.value.headers["content-type"].startswith("text/event-stream")
    tab.wait_for_timeout(300)
    assert EVIL in tab.inner_text("#live") and tab.locator("img").count() == 0


def test_sums_over_many_labels_come_by_themselves(tab, world, monkeypatch):
    monkeypatch.setattr(comparison, "MAX_INLINE_SUMMARY", 1)
    tab.goto(dict(world.pages)["comparison"])
    tab.get_by_role("row", name=re.compile("^Labels with a text")).wait_for()
    tab.get_by_role("button", name="Copy table").wait_for()
    assert tab.get_by_text("compute the summary").count() == 0


def test_the_similarity_map_is_read_by_pointer_and_by_keyboard(tab, world):
    tab.goto(dict(world.pages)["similarity"])
    canvas = tab.locator("#heat canvas").first
    canvas.wait_for()
    said, names = tab.locator(".status"), tab.locator("#classes li").all_text_contents()

    def cosine(row, column):
        return f"{LOW + (HIGH - LOW) * grey(row, column, 1) / 255:.2f}"

    # By keyboard: the first key shows where one is, the next ones move.
    tab.locator("#heat").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    assert said.inner_text() == f"{names[1]} and {names[2]}: cosine {cosine(1, 2)}"
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")  # below the diagonal stands the same as above it
    assert said.inner_text() == f"{names[3]} and {names[2]}: cosine {cosine(2, 3)}"
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Shift+ArrowLeft")  # no further than the edge
    assert said.inner_text().startswith(f"{names[3]} and {names[0]}: ")

    # By pointer, the whole and then a part of it.
    box = canvas.bounding_box()
    step = box["width"] / len(names)

    def point(row, column):
        tab.mouse.move(box["x"] + (column + 0.5) * step, box["y"] + (row + 0.5) * step)

    point(5, 40)
    assert said.inner_text() == f"{names[5]} and {names[40]}: cosine {cosine(5, 40)}"
    point(7, 7)
    assert said.inner_text() == f"{names[7]} with itself"
    tab.locator("#heat").focus()
    tab.mouse.wheel(0, -200)
    tab.locator("#heat.zoomed").wait_for()
    point(7, 7)
    assert said.inner_text() == f"{names[7]} with itself"  # the wheel keeps what it points at
    press(tab, "Zoom in")
    press(tab, "Show all")
    assert tab.locator("#heat.zoomed").count() == 0
    tab.keyboard.press("Tab")
    SHOTS.mkdir(exist_ok=True)
    tab.screenshot(path=SHOTS / "similarity-read.png")


def test_the_rest_interface_is_shown_with_all_its_routes_and_nothing_from_elsewhere(tab, service):
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto("/docs")
    tab.get_by_text("/v1/describe").first.wait_for()
    SHOTS.mkdir(exist_ok=True)
    tab.screenshot(path=SHOTS / "docs.png")
    routes = service.get("/openapi.json").json()["paths"]
    assert tab.locator(".opblock").count() == sum(len(methods) for methods in routes.values())
    tab.get_by_text("Describe class names now").first.click()
    tab.get_by_text("surf scoter").first.wait_for()  # the example of the body
    assert all(url.startswith((str(service.base_url), "data:")) for url in asked)
