"""Every form of every page is accepted with its defaults and with every choice that it offers."""

import re
from urllib.parse import urlencode

import pytest

from tests.service.web.html_forms import forms_of, submissions
from tests.service.web.world import a_photo, build

# What a person must fill in before a form can be sent; {n} is different each time.
TYPED = {
    "allow_missing": "yes",
    "labels": "goldfish",
    "language": "German",
    "message": "try {n}",
    "name": "new-{n}",
    "names": "thing {n}",
    "reason": "try {n}",
}


@pytest.fixture(scope="module")
def world(service, model, shared):
    return build(service, model, shared)


@pytest.fixture
def photos(service, world, image_root, shared):
    """A folder with one photo of one label."""
    label = service.get("/v1/label-sets/things/labels").json()["items"][0]
    folder = image_root / label["key"]
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(a_photo(shared))
    return str(image_root)


def filled(form):
    """`form` with what a person must type or tick before it can be sent."""
    for control in form.controls:
        if control.kind == "checkbox" and control.required:
            control.value = control.choices[0]
        elif not control.value and (control.required or control.name in TYPED):
            control.value = TYPED.get(control.name, "typed")
    for control in [c for c in form.controls if c.name == "job"][:2]:  # at least two are compared
        control.value = control.choices[0]
    return form


def asks_about_images(browser, what):
    """Whether the choice is a prompt, and one about images."""
    field, _, name = what.partition("=")
    return (
        field == "prompt" and browser.get(f"/v1/prompts/{name}").json()["kind"] == "image_caption"
    )


def send(browser, form, address, values):
    if form.method == "get":
        path = address.partition("#")[0]
        return browser.get(f"{path}?{urlencode(values)}", follow_redirects=True)
    fields = {name: value for name, value in values if name != "file"}
    files = {"file": ("", b"")} if form.encoding == "multipart/form-data" else None
    return browser.post(address, data=fields, files=files, follow_redirects=True)


def test_every_form_takes_its_defaults_and_every_choice_that_it_offers(browser, world, photos):
    sent, refused = set(), []
    for _, path in world.pages:
        for form in forms_of(path, browser.get(path).text):
            for what, address, values in submissions(filled(form)):
                content = frozenset(pair for pair in values if pair[0] != "form_token")
                if (form.method, address, what, content) in sent:
                    continue
                sent.add((form.method, address, what, content))
                typed = [(name, value.replace("{n}", str(len(sent)))) for name, value in values]
                if address == "/runs/new" and asks_about_images(browser, what):
                    typed = [*(pair for pair in typed if pair[0] != "images"), ("images", photos)]
                answer = send(browser, form, address, typed)
                # 409: what is stored does not allow it, such as a lock on a rejected text.
                if answer.status_code >= 400 and answer.status_code != 409:
                    notice = re.search('<p class="(?:notice bad|lead)"[^>]*>([^<]*)', answer.text)
                    said = notice.group(1) if notice else answer.text
                    refused.append((path, form.method, address, what, answer.status_code, said))
    posted = {(address, what) for method, address, what, _ in sent if method == "post"}
    assert ("/jobs", "output_stride=8") in posted and ("/releases", "button /releases") in posted
    assert ("/prompts", "kind=captions") in posted
    assert ("/students/things/aliases", "version=1") in posted
    student = next(address for address, _ in posted if address.endswith("/students"))
    assert student.startswith("/jobs/")
    assert refused == []
