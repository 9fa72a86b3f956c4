"""A service that has seen use: real labels and answers, people's edits, releases, jobs; and the
addresses of all pages that show them.

Whatever a user can write holds EVIL somewhere: a label, a text, a prompt, a reason, a log line.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.llm_server import LlmServer
from tests.service.llm_fixtures import wait_for
from tests.service.web.conftest import EVIL
from tests.service.web.worker import Worker

REPORT = "<script>try { parent.reached = 1 } catch (e) {}</script><h1>The report</h1>"
LABELS = 60  # more than one page of a table
SIDES = "a=visual-description@1&b=visual-description@2"


@dataclass(frozen=True)
class World:
    pages: tuple[tuple[str, str], ...]  # a name for each page, and its address
    labels: tuple[str, ...]


def real_texts(shared: Path) -> dict[str, str]:
    """What ChatGPT answered for the first labels, by the label's name."""
    folder = shared / "bench" / "tiny-imagenet-ood"
    names = [
        line.split()[2].replace("_", " ")
        for line in (folder / "label2text.txt").read_text().splitlines()
    ]
    texts = (folder / "chatgpt.txt").read_text().splitlines()
    return dict(list(zip(names, texts, strict=True))[:LABELS])


def a_photo(shared: Path) -> bytes:
    """One of the bench's photos."""
    folder = shared / "bench" / "tiny-imagenet-ood" / "train"
    return next(iter(sorted(folder.rglob("*.JPEG")))).read_bytes()


def post(client: httpx.Client, path: str, **body: object) -> dict[str, object]:
    answer = client.post(path, json=body)
    assert answer.status_code in (200, 201, 204), answer.text
    return answer.json() if answer.content else {}


def offers_of(text: str) -> dict[str, object]:
    """What a worker may have, with `text` wherever it may write."""
    images = {"train": 12_000, "val_on_train": 3_000, "val": 2_400}
    return {
        "version": "0.2.0",
        "device": f"Some processor {text}",
        "data_roots": ["/data"],
        "data": [
            {"path": "/data/birds", "kind": "split folders", "classes": 120, "images": images},
            {"path": f"/data/{text}", "kind": "class folders", "images": {text: 7}},
        ],
        "data_complete": False,
        "teachers": ["ViT-B-32@openai", f"hf-hub:{text}"],
        "students": [f"resnet18.{text}"],
        "weights": [f"/data/{text}.safetensors"],
        "trackers": ["tensorboard", text],
        "recipes": [
            {"name": "small", "config": {"student": "resnet18", "epochs": 3, "unknown": text}},
            {"name": text, "config": {}},
        ],
    }


def build(client: httpx.Client, model: LlmServer, shared: Path) -> World:
    texts = real_texts(shared)
    model.answers |= {name: json.dumps({"description": text}) for name, text in texts.items()}
    model.answers[EVIL] = json.dumps({"description": f"The {EVIL} has a red body and a long tail."})
    labels = [{"name": name, "context": "a thing"} for name in texts]
    labels.append({"name": EVIL, "context": EVIL})
    post(client, "/v1/label-sets", name="things", labels=labels)
    prompt = client.get("/v1/prompts/visual-description/versions/1").json()
    content = {
        key: prompt[key] for key in ("system", "output_schema", "model_defaults", "validators")
    }
    changed = prompt["user"] + f"\nBegin with the colours, not with {EVIL}."
    path = "/v1/prompts/visual-description"
    post(client, f"{path}/versions", **content, user=changed, message=EVIL, author=EVIL)
    client.put(f"{path}/tags", json={"tags": [EVIL, "birds"]})
    for number, reason in ((2, "try the colours"), (1, EVIL)):
        move = {"version": number, "reason": reason, "author": EVIL}
        assert client.put(f"{path}/aliases/production", json=move).status_code == 200
    run = post(client, "/v1/runs", label_set="things", author=EVIL, model="small")
    wait_for(client, run["id"])
    again = post(client, "/v1/runs", label_set="things", model="small", version=2)
    wait_for(client, again["id"])
    found = client.get("/v1/label-sets/things/labels").json()["items"]
    evil, first = found[-1]["id"], found[0]["id"]
    post(client, f"/v1/labels/{evil}/texts", text=f"Red. {EVIL}", author=EVIL)
    post(client, f"/v1/labels/{first}/texts", text="It is orange, with long fins.", author="ada")
    kept = client.get("/v1/generations", params={"label_id": first}).json()["items"][0]["id"]
    told = {"reason": EVIL, "author": EVIL}
    post(client, "/v1/reviews", generations=[kept], action="lock", **told)
    source = [{"prompt": "visual-description", "version": 1}]
    old = post(
        client,
        "/v1/releases",
        label_set="things",
        name="things-1",
        sources=source,
        allow_missing=True,
        message=EVIL,
        author=EVIL,
    )
    post(client, f"/v1/labels/{evil}/texts", text=f"Blue. {EVIL}", author=EVIL)
    new = post(
        client,
        "/v1/releases",
        label_set="things",
        name="things-2",
        sources=source,
        allow_missing=True,
    )
    post(client, "/v1/workers", worker=f"cpu {EVIL}", memory_gb=16, offers=offers_of(EVIL))
    jobs = []
    for strategy, unseen in (("name", 7.0), ("name+description", 11.5), ("attributes", 0)):
        config = {"data": EVIL, "teacher": EVIL, "text_strategy": strategy}
        job = post(client, "/v1/jobs", release_id=new["id"], config=config)
        worker = Worker(client)
        worker.tell("log", message=EVIL)
        jobs.append(job["id"])
        if unseen:
            worker.finish(unseen=unseen, page=REPORT, photo=a_photo(shared))
        else:
            worker.tell("progress", phase=EVIL, step=2, steps=9)
            worker.train(1)
            worker.train(2)
    one, two, three = jobs
    for job in (one, two):
        post(client, "/v1/students", name="things", job_id=job, message=EVIL, author=EVIL)
    for number, reason in ((2, "better"), (1, EVIL)):
        move = {"version": number, "reason": reason, "author": EVIL}
        answer = client.put("/v1/students/things/aliases/production", json=move)
        assert answer.status_code == 200
    return World(
        labels=tuple(texts),
        pages=(
            ("home", "/"),
            ("label-sets", "/label-sets"),
            ("label-set", "/label-sets/things?offset=50"),
            ("label-set-rejected", "/label-sets/things?state=rejected"),
            ("comparison", f"/label-sets/things/comparison?{SIDES}&offset=50"),
            ("label", f"/labels/{first}"),
            ("label-evil", f"/labels/{evil}"),
            ("text", f"/generations/{kept}"),
            ("prompts", "/prompts"),
            ("prompt", "/prompts/visual-description"),
            ("prompt-new", "/prompts/-/new?like=visual-description"),
            ("prompt-version", "/prompts/visual-description/versions/2"),
            ("prompt-diff", "/prompts/visual-description/diff?from=1&to=2"),
            ("playground", "/prompts/visual-description/playground?version=2"),
            ("runs", "/runs"),
            ("run", f"/runs/{run['id']}"),
            ("run-new", "/runs/new?label_set=things&prompt=attributes"),
            ("releases", "/releases"),
            ("release", f"/releases/{new['id']}?search=img"),
            ("release-new", "/releases/new"),
            ("release-diff", f"/releases/{old['id']}/diff?to={new['id']}"),
            ("jobs", "/jobs"),
            ("job-new", "/jobs/new"),
            ("job-new-like", f"/jobs/new?like={two}"),
            ("job", f"/jobs/{two}"),
            ("job-running", f"/jobs/{three}"),
            ("compare", f"/jobs/compare?job={one}&job={two}&job={three}"),
            ("diagnostics", f"/jobs/{two}/diagnostics"),
            ("similarity", f"/jobs/{two}/similarity"),
            ("workers", "/workers"),
            ("job-new-recipe", "/jobs/new?recipe=small"),
            ("students", "/students"),
            ("student", "/students/things"),
            ("error", "/nothing/here"),
        ),
    )
