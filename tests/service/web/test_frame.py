"""What holds for every page: the policy, forms of other sites, errors, working without scripts."""

import re

import httpx
import pytest

from tests.service.web.conftest import EVIL

PAGES = ("/", "/runs", "/runs/new")


def token(browser, path):
    return re.search(r'name="form_token" value="([\w-]+)"', browser.get(path).text).group(1)


@pytest.fixture
def label_set(service):
    service.post("/v1/label-sets", json={"name": "ducks", "labels": [{"name": "mallard"}]})
    return "ducks"


def test_no_page_lets_inline_code_or_foreign_files_in(browser):
    for path in PAGES:
        page = browser.get(path)
        assert page.status_code == 200, path
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy
        assert "style=" not in page.text and "onclick" not in page.text
        assert not re.search(r"<script(?![^>]* src=\"/static/)", page.text)
        assert not re.search(r'(?:src|href)="(?:[a-z]+:|//)', page.text)


def test_a_page_says_where_one_is(browser):
    page = browser.get("/runs").text
    assert '<a href="/runs" aria-current="page">Runs</a>' in page
    assert page.index('class="skip"') < page.index("<nav")
    assert '<html lang="en">' in page


def test_static_files_are_there_with_the_licence_of_what_is_not_ours(browser):
    page = browser.get("/").text
    for address in re.findall(r'"(/static/[^"]+)"', page):
        assert browser.get(address).status_code == 200, address
    assert "Zero-Clause BSD" in browser.get("/static/vendor/htmx-LICENSE.txt").text


def test_a_person_reads_an_error_as_a_page_and_a_machine_as_a_problem(browser, service):
    page = browser.get("/runs/999")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "There is no run 999" in page.text
    assert browser.get("/nothing/here").headers["content-type"].startswith("text/html")
    assert browser.get("/runs/none").status_code == 422
    for answer in (service.get("/runs/999"), browser.get("/v1/runs/999")):
        assert answer.headers["content-type"] == "application/problem+json"


def test_what_an_error_repeats_stays_text(browser):
    page = browser.get("/runs/new", params={"label_set": EVIL, "prompt": EVIL})
    assert page.status_code == 404
    assert EVIL not in page.text and "&lt;img src=x" in page.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_form_of_another_site_is_refused(service, browser, label_set, headers):
    secret = token(browser, f"/runs/new?label_set={label_set}&prompt=visual-description")
    answer = httpx.post(
        f"{service.base_url}/runs",
        data={"form_token": secret, "label_set": label_set},
        cookies=dict(browser.cookies),
        headers={"Accept": "text/html", **headers},
    )
    assert answer.status_code == 403
    assert "Cross-site requests may not change anything" in answer.text


@pytest.mark.parametrize("sent", [None, "", "x" * 32, "é"])
def test_a_form_without_the_secret_of_its_page_is_refused(service, browser, label_set, sent):
    browser.get("/")
    data = {"label_set": label_set} | ({} if sent is None else {"form_token": sent})
    answer = browser.post("/runs", data=data)
    assert answer.status_code == 403
    assert "reload its page" in answer.text
    assert service.get("/v1/runs").json() == []


def test_a_form_without_any_cookie_is_refused(service):
    answer = httpx.post(f"{service.base_url}/runs", data={"form_token": "x" * 32})
    assert answer.status_code == 403


def test_the_secret_of_forms_is_out_of_reach_of_scripts_and_other_sites(service):
    answer = httpx.get(f"{service.base_url}/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    again = httpx.get(f"{service.base_url}/", cookies=dict(answer.cookies))
    assert "set-cookie" not in again.headers
