"""Every importer is given what an export gave, damaged at random: it takes it in, or says in one
line why not and stores nothing. DAMAGES=2000 tries more of them, and other ones in each run."""

import os
import re
import sqlite3
from contextlib import closing

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrich_service.core.settings import Settings

pytestmark = pytest.mark.sqlite

MORE = int(os.environ.get("DAMAGES", "0"))
TRIED = settings(
    max_examples=MORE or 25,
    deadline=None,
    derandomize=not MORE,
    suppress_health_check=list(HealthCheck),
)
TOKENS = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n\n",
        b'"',
        b'""',
        b",,,",
        b"\\",
        b"\\ud800",
    ),
    *(b"{", b"}", b"[]", b"null", b"NaN", b"1e999", b"-1", b"9" * 30, b"true", b"=1+1", b"'"),
    *("\u202e".encode(), "\u2028".encode(), b"[" * 5000, b'{"a":' * 5000, b"x" * 20_001),
]


@st.composite
def damages(draw):
    """A function that damages bytes in up to three places."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["insert", "overwrite", "cut", "end", "twice", "drop"]),
                st.floats(0, 1, exclude_max=True),
                st.sampled_from(TOKENS),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def damage(data: bytes) -> bytes:
        for what, where, token in steps:
            at = int(where * len(data))
            lines = data.split(b"\n")
            line = int(where * len(lines))
            match what:
                case "insert":
                    data = data[:at] + token + data[at:]
                case "overwrite":
                    data = data[:at] + token + data[at + len(token) :]
                case "cut":
                    data = data[:at] + data[at + 7 :]
                case "end":
                    data = data[:at]
                case "twice":
                    data = b"\n".join([*lines[:line], lines[line], *lines[line:]])
                case "drop":
                    data = b"\n".join(lines[:line] + lines[line + 1 :])
        return data

    return damage


@pytest.fixture(scope="module")
def exports(service):
    """What a service with some texts gives out, by the importer that takes it."""
    lists = {"mallard": ["a green head"], "smew": ["a white crest", "a black mask"]}
    named = {"label_set": "birds", "kind": "attributes"}
    assert service.post("/v1/import/lists", params=named, json=lists).is_success
    body = {"name": "birds-1", "label_set": "birds"}
    made = service.post("/v1/releases", json=body).raise_for_status().json()
    release = f"/v1/releases/{made['id']}"
    paths = {
        "jsonl": "/v1/export",
        "generations": "/v1/export/generations.csv",
        "release csv": f"{release}/release.csv",
        "release": release,
        "lists": f"{release}/descriptors.json",
        "labels": "/v1/label-sets/birds/labels.csv",
        "label2text": f"{release}/label2text.txt",
        "descriptions": f"{release}/chatgpt.txt",
    }
    return {name: service.get(path).raise_for_status().content for name, path in paths.items()}


@pytest.fixture(scope="module")
def target(start_service, tmp_path_factory):
    """A client of a service that has nothing but its first prompts, and its database."""
    folder = tmp_path_factory.mktemp("target")
    url = start_service(Settings(data_dir=folder))
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client, folder / "enrich.db"


def send(client, kind, data):
    text = {"Content-Type": "text/csv"}
    match kind:
        case "jsonl":
            return client.post("/v1/import", content=data)
        case "generations":
            return client.post("/v1/import/generations.csv", content=data, headers=text)
        case "release csv":
            named = {"name": "r", "label_set": "s"}
            return client.post("/v1/import/release.csv", params=named, content=data, headers=text)
        case "release":
            json_ = {"Content-Type": "application/json"}
            return client.post("/v1/releases/import", content=data, headers=json_)
        case "lists":
            named = {"label_set": "l", "kind": "attributes"}
            json_ = {"Content-Type": "application/json"}
            return client.post("/v1/import/lists", params=named, content=data, headers=json_)
        case "labels":
            return client.post(
                "/v1/label-sets/upload", data={"name": "u"}, files={"file": ("u.csv", data)}
            )
        case "label2text" | "descriptions":
            other = {"label2text": b"n1 1 mallard\nn2 2 smew\n", "descriptions": b"A.\nB.\n"}
            files = {name: ("f.txt", content) for name, content in (other | {kind: data}).items()}
            return client.post("/v1/import/pairs", data={"name": "p"}, files=files)


def rows(database):
    """How many rows each table has."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
            for (name,) in tables.fetchall()
        }


@pytest.mark.parametrize(
    "kind",
    [
        *("jsonl", "generations", "release csv", "release", "lists", "labels"),
        *("label2text", "descriptions"),
    ],
)
def test_what_is_damaged_is_taken_in_whole_or_refused_in_one_line(exports, target, kind):
    client, database = target

    @TRIED
    @given(damage=damages())
    def try_it(damage):
        before = rows(database)
        found = send(client, kind, damage(exports[kind]))
        if found.is_success:
            return
        assert found.status_code in (400, 404, 409, 413, 422), found.text
        said = found.json()["detail"]
        assert said and "\n" not in said and len(said) < 1000
        assert rows(database) == before

    try_it()


@pytest.mark.parametrize("kind", ["jsonl", "generations", "release"])
def test_a_time_without_its_zone_is_refused(exports, target, kind):
    found = send(target[0], kind, re.sub(rb"(?<=:\d\d\.\d{6})Z", b"", exports[kind]))
    assert found.status_code == 422 and "should have timezone info" in found.json()["detail"]
