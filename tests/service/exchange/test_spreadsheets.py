"""No CSV file that the service offers has a cell that a spreadsheet takes for a formula."""

import csv
import io
import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute

import enrich_service.app
from enrich_service.core import spreadsheet
from enrich_service.core.settings import Settings
from tests.llm_server import LlmServer
from tests.service.llm_fixtures import start_run, wait_for
from tests.service.web.worker import Worker

NAME = '=HYPERLINK("http://evil.example","duck")'
TEXT = "\t=1+1, with a green head."
TAKEN_FOR_FORMULAS = tuple("=+-@\t\r\n＝＋－＠")


@pytest.fixture(scope="module")
def service(start_service, tmp_path_factory) -> Iterator[httpx.Client]:
    """A service whose labels, texts, models, reasons and metrics all look like formulas."""
    with LlmServer() as model:
        settings = Settings(data_dir=tmp_path_factory.mktemp("csv"), llm_url=model.url)
        with httpx.Client(base_url=start_service(settings), timeout=30) as client:
            fill(client)
            yield client


def post(client: httpx.Client, path: str, **body: object) -> dict:
    answer = client.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def fill(client: httpx.Client) -> None:
    labels = [
        {"key": "n1", "name": NAME, "context": "-a bird"},
        {"key": "-n2", "name": "@teal", "context": "+a bird"},
    ]
    post(client, "/v1/label-sets", name="birds", labels=labels)
    confused = {"confusable": {"n1": ["-n2"]}}
    answer = client.put("/v1/label-sets/birds/confusable", json=confused)
    assert answer.status_code == 200, answer.text
    wait_for(client, start_run(client, model="=small", author="@ada")["id"])
    for label in client.get("/v1/label-sets/birds/labels").json()["items"]:
        post(client, f"/v1/labels/{label['id']}/texts", text=TEXT, author="=ada")
    kept = [one["id"] for one in client.get("/v1/generations").json()["items"]]
    post(client, "/v1/reviews", generations=kept[:1], action="lock", reason="=1", author="+ada")
    sources = [{"prompt": "visual-description", "version": 1}]
    release = post(
        client,
        "/v1/releases",
        label_set="birds",
        name="birds",
        sources=sources,
        allow_missing=True,
    )
    for data in ("=data", "-data"):
        config = {"data": data, "teacher": "@teacher"}
        post(client, "/v1/jobs", release_id=release["id"], config=config)
        told = {"epoch": 1, "loss": 1.5, "seen_top1": 50.0, "seconds": 1.0, "learning_rate": 0.1}
        Worker(client).tell("epoch", **told, images_per_second=9.0, losses={"=cls": -1.5})


def csv_routes() -> list[str]:
    """The paths that answer CSV, of the API and of the pages."""
    app = enrich_service.app.create_app()
    found = {
        context.path
        for router in app.routes
        if hasattr(router, "effective_route_contexts")
        for context in router.effective_route_contexts()
        if isinstance(context.original_route, APIRoute)
        and "GET" in context.methods
        and context.path.endswith(".csv")
    }
    return sorted(found)


@pytest.mark.parametrize("path", csv_routes())
def test_no_cell_of_any_csv_file_is_a_formula(service, path):
    query = "?job=1&job=2" if path == "/jobs/compare.csv" else ""
    answer = service.get(path.format(name="birds", release_id=1, job_id=1) + query)
    assert answer.status_code == 200, answer.text
    rows = csv.reader(io.StringIO(answer.text, newline=""))
    cells = [cell for row in rows for cell in row]
    live = [cell for cell in cells if cell.lstrip(" ").startswith(TAKEN_FOR_FORMULAS)]
    assert [cell for cell in live if not re.fullmatch(r"-?[\d.]+", cell)] == []
    if path != "/jobs/{job_id}/epochs.csv":  # its cells are numbers, its columns dotted names
        assert [cell for cell in cells if spreadsheet.unescape_formula(cell) != cell]


@pytest.mark.parametrize("start", TAKEN_FOR_FORMULAS)
def test_what_a_spreadsheet_takes_for_a_formula_comes_back_as_it_was(start):
    for text in (f"{start}1", f"  {start}1", f"'{start}1", f"''{start}", start, f"a{start}1"):
        (row,) = spreadsheet.read("".join(spreadsheet.write(["a"], [[text]])).encode(), ["a"], [])
        assert row["a"] == text
        assert spreadsheet.escape_formula(text).startswith(("'", "a"))


def test_numbers_and_structures_are_no_texts():
    lines = list(spreadsheet.write(["a"], [[-0.5], [None], [["=1"]], [True], ["-0.5"]]))
    assert [line.rstrip("\r\n") for line in lines[1:]] == [
        "-0.5",
        '""',
        '"[""=1""]"',
        "true",
        "'-0.5",
    ]
