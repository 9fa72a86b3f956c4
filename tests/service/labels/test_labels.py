import json

import pytest
from sqlmodel import func, select
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.errors import InvalidInput
from enrich_service.core.storage.database import reading, writing
from enrich_service.labels import files
from enrich_service.labels import service as labels_service
from enrich_service.labels.models import Label
from enrich_service.labels.name_warnings import suspicious_names
from enrich_service.labels.schemas import LabelIn


@pytest.fixture
def enrich_labels(tmp_path, monkeypatch):
    """Run `enrich labels` on an empty data folder; gives the finished call."""
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path / "data"))
    return lambda *words: CliRunner().invoke(app, ["labels", *map(str, words)])


def create(client, name, labels):
    return client.post("/v1/label-sets", json={"name": name, "labels": labels})


def test_labels_come_back_in_their_order_with_key_name_and_context(service):
    labels = [
        {"key": "n2", "name": "surf scoter", "context": "a bird"},
        {"key": "n1", "name": "mallard"},
        {"name": "wood duck"},
    ]
    assert create(service, "ordered", labels).json()["labels"] == 3
    page = service.get("/v1/label-sets/ordered/labels").json()
    assert [(one["key"], one["name"], one["context"]) for one in page["items"]] == [
        ("n2", "surf scoter", "a bird"),
        ("n1", "mallard", None),
        ("wood_duck", "wood duck", None),
    ]


def test_a_name_can_be_taken_once(service):
    assert create(service, "taken", [{"name": "a"}]).status_code == 201
    answer = create(service, "taken", [{"name": "b"}])
    assert answer.status_code == 409
    assert "another name" in answer.json()["detail"]


BAD = [
    ([{"key": "k", "name": "a"}, {"key": "k", "name": "b"}], "key 'k' of label 1"),
    ([{"name": "  "}], "name of label 1 is empty"),
    ([{"name": "ok"}, {"name": "x" * 301}], "name of label 2 has 301 characters"),
    ([{"name": "x" * 10_000}], "at most 300"),
    ([{"name": "a\x07b"}], "control character U+0007"),
    ([{"name": "a\nb"}], "control character U+000A"),
    ([{"name": "a\u202egnp.exe"}], "bidi control U+202E"),
    ([{"name": "a\u2066b"}], "bidi control U+2066"),
    ([{"name": "a", "context": "b\u202e"}], "context of label 1"),
    ([{"name": "a", "key": "../etc"}], "is not a valid folder name"),
    ([{"name": "a", "key": ".."}], "is not a valid folder name"),
    ([], "at least one label"),
]


@pytest.mark.parametrize(("labels", "message"), BAD)
def test_one_bad_label_is_named_and_nothing_is_stored(service, labels, message):
    answer = create(service, "bad", labels)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert message in answer.json()["detail"]
    assert service.get("/v1/label-sets/bad").status_code == 404


@pytest.mark.parametrize("name", ["", " a", "a/b", "a\u202eb", "x" * 101, "-a"])
def test_a_label_set_needs_a_name_that_fits_into_a_url(service, name):
    assert create(service, name, [{"name": "a"}]).status_code == 422


def test_names_of_all_scripts_are_welcome(service):
    names = ["écureuil roux", "金魚", "كلب", "نيم\u200cفاصله", "Ærfugl", "it's <b>bold</b>"]
    assert create(service, "scripts", [{"name": name} for name in names]).status_code == 201
    page = service.get("/v1/label-sets/scripts/labels").json()
    assert [one["name"] for one in page["items"]] == names


def test_a_hundred_thousand_labels_go_in_and_one_more_does_not(engine):
    labels = [LabelIn(name=f"label {n}") for n in range(100_001)]
    with pytest.raises(InvalidInput, match="at most 100000"), writing(engine) as session:
        labels_service.create(session, "large", labels)
    with writing(engine) as session:
        labels_service.create(session, "large", labels[:-1])
    with reading(engine) as session:
        assert session.exec(select(func.count()).select_from(Label)).one() == 100_000
        label_set = labels_service.get(session, "large")
        page = labels_service.page(session, label_set, offset=99_990, limit=100)
        assert (len(page.items), page.total, page.next_offset) == (10, 100_000, None)
        assert page.items[-1].name == "label 99999"


def test_a_hundred_thousand_and_one_labels_are_refused_over_http(service):
    answer = create(service, "too-large", [{"name": f"label {n}"} for n in range(100_001)])
    assert answer.status_code == 422
    assert "at most 100000 labels" in answer.json()["detail"]
    assert service.get("/v1/label-sets/too-large").status_code == 404


def test_pages_lead_through_all_labels(service):
    create(service, "paged", [{"name": f"label {n}"} for n in range(25)])
    names, offset = [], 0
    while offset is not None:
        page = service.get(f"/v1/label-sets/paged/labels?limit=10&offset={offset}").json()
        names += [one["name"] for one in page["items"]]
        offset = page["next_offset"]
    assert names == [f"label {n}" for n in range(25)]


def test_labels_are_found_by_a_part_of_name_or_key(service):
    create(service, "found", [{"key": "n01", "name": "Mallard"}, {"key": "n02", "name": "100% x"}])

    def found(search):
        page = service.get("/v1/label-sets/found/labels", params={"search": search}).json()
        return [one["key"] for one in page["items"]]

    assert found("mall") == ["n01"]
    assert found("N0") == ["n01", "n02"]
    assert found("%") == ["n02"]  # no wildcard


def upload(client, name, data):
    return client.post(
        "/v1/label-sets/upload", data={"name": name}, files={"file": ("labels.csv", data)}
    )


def test_a_csv_file_becomes_a_label_set(service):
    data = '\ufeffKey,Name,Context\nn1,"duck, wood",a bird\n,teal,\n'.encode()
    assert upload(service, "csv", data).status_code == 201
    page = service.get("/v1/label-sets/csv/labels").json()
    assert [(one["key"], one["name"], one["context"]) for one in page["items"]] == [
        ("n1", "duck, wood", "a bird"),
        ("teal", "teal", None),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "needs a first line"),
        (b"label,colour\nx,y\n", "needs a first line"),
        (b"key,name\nn1,duck, wood\n", "Line 2"),
        (b"name\n\xff\x81\n", "not text in UTF-8"),
        (b'name\n"open', "unexpected end"),
        (b"n1|teal\nn2|eider\n", "needs a first line"),
        (
            b"PK\x03\x04\x14\0\6\0xl/workbook.xml",
            "is an Excel file or another zip file: save it as",
        ),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "is an Excel file: save it as CSV"),
        (b"%PDF-1.7\nducks\n", "is a PDF file: save it as CSV"),
    ],
)
def test_a_csv_file_that_is_none_is_told_with_its_line(service, data, message):
    answer = upload(service, "badcsv", data)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_a_folder_of_class_folders_becomes_labels(tmp_path):
    for name in ("n02", "n01", ".cache", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").write_text("")
    assert [one.key for one in labels_service.from_folders([tmp_path])] == ["n01", "n02"]
    names = tmp_path / "label2text.txt"
    names.write_text("n01 1 wood_duck\nn02 2 teal\nn03 3 mallard\n")
    found = labels_service.from_folders([tmp_path], names)
    assert [(one.key, one.name) for one in found] == [("n01", "wood duck"), ("n02", "teal")]
    names.write_text("n01 1 wood_duck\n")
    with pytest.raises(InvalidInput, match="no line for 1 class folders, e.g. 'n02'"):
        labels_service.from_folders([tmp_path], names)
    names.write_text("n01 wood duck\nn02 2 teal\nn03\n")
    with pytest.raises(InvalidInput, match=r"Line 1 of label2text.txt is not .*; Line 3 of"):
        labels_service.from_folders([tmp_path], names)


def test_the_classes_of_several_folders_become_one_set(tmp_path, enrich_labels):
    for folder, names in (("train", ("teal", "wood_duck")), ("val", ("eider", "teal"))):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
    words = ["--folder", tmp_path / "train", "--folder", tmp_path / "val"]
    call = enrich_labels("add", "ducks", *words, "--json")
    assert (call.exit_code, json.loads(call.stdout)["labels"]) == (0, 3)
    keys = json.loads(enrich_labels("show", "ducks", "--json").stdout)["items"]
    assert [one["key"] for one in keys] == ["eider", "teal", "wood_duck"]


@pytest.mark.parametrize(
    "data",
    [
        "Key;Name;Context\r\nn1;Gürteltier;ein Tier\r\nn2;Möwe;\r\n".encode("cp1252"),
        "key\tname\tcontext\r\nn1\tGürteltier\tein Tier\r\nn2\tMöwe\t\r\n".encode("utf-16"),
        "key\tname\tcontext\nn1\tGürteltier\tein Tier\nn2\tMöwe\t\n".encode("utf-16-le"),
        '\ufeffname,key,context\n"Gürteltier",n1,ein Tier\n\nMöwe,n2,\n'.encode(),
        "Key|Name|Context\nn1|Gürteltier|ein Tier\nn2|Möwe|\n".encode(),
    ],
)
def test_tables_of_spreadsheet_programs_are_read_as_they_are(data):
    labels, places, _ = files.from_table(data)
    assert [(one.key, one.name, one.context) for one in labels] == [
        ("n1", "Gürteltier", "ein Tier"),
        ("n2", "Möwe", None),
    ]
    assert places[0] == "Line 2"


def test_a_list_has_one_name_a_line_and_maybe_a_title():
    for text in ("teal\nwood duck\n", "\ufeffClasses\r\n\r\nteal\r\n  wood duck"):
        assert [one.name for one in files.from_table(text.encode())[0]] == ["teal", "wood duck"]


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(service):
    table = b"key,name\nn1,teal\nn1,eider\nn2,\na/b,coot\nn3,swan\n"
    told = upload(service, "wrong", table).json()["detail"]
    assert "Line 3 has the key 'n1' of line 2" in told
    assert "The name of line 4 is empty" in told
    assert "Line 5: the key 'a/b' is not a valid folder name" in told
    table = b"key,name\nn1,teal,x\nn2,eider\nn3\nn4,\na/b,coot\n"
    torn = upload(service, "wrong", table).json()["detail"]
    assert "Line 2 does not have 2 fields" in torn and "Line 4 does not" in torn
    assert "The name of line 5 is empty" in torn
    assert "Line 6: the key 'a/b' is not a valid folder name" in torn
    assert service.get("/v1/label-sets/wrong").status_code == 404


def test_names_that_are_probably_mistakes_are_warned_of(enrich_labels):
    names = [
        "teal", "Teal", "wood ducks", "wood-duck", "harlequin duck", "harlequin dukc", "IMG_0001",
        "N/A", "n01847000", "12", "class 1", "class 2", "glass", "box", "fox",
    ]  # fmt: skip
    assert suspicious_names(names) == [
        "'IMG_0001' looks like a file name, not a class name",
        "'N/A' is not a class name",
        "'n01847000' is a WordNet id: give the name of the class",
        "'12' is not a class name",
        "'teal' and 'Teal' may be the same class",
        "'wood ducks' and 'wood-duck' may be the same class",
        "'harlequin duck' and 'harlequin dukc' may be misspelt",
    ]
    call = enrich_labels("add", "odd", "teal", "Teal", "--json")
    assert call.exit_code == 0 and json.loads(call.stdout)["labels"] == 2
    assert "warning: 'teal' and 'Teal' may be the same class" in call.stderr


def test_the_real_names_bring_no_false_warning(shared):
    root = shared / "bench/tiny-imagenet-ood"
    found = labels_service.read_label2text(root / "label2text.txt")
    assert suspicious_names([label.name for label in found]) == []


def test_the_real_photos_folder_is_read(shared):
    root = shared / "bench/tiny-imagenet-ood"
    found = labels_service.from_folders([root / "train"], root / "label2text.txt")
    assert len(found) == 120
    assert ("n01443537", "goldfish") in {(one.key, one.name) for one in found}


def test_a_label_set_goes_only_while_nothing_uses_it(service):
    create(service, "unused", [{"name": "a"}])
    assert service.delete("/v1/label-sets/unused").status_code == 204
    assert service.get("/v1/label-sets/unused").status_code == 404
    create(service, "used", [{"name": "a"}])
    body = {"label_set": "used", "name": "r", "allow_missing": True}
    assert service.post("/v1/releases", json=body).status_code == 201
    answer = service.delete("/v1/label-sets/used")
    assert answer.status_code == 409
    assert "is used by" in answer.json()["detail"]
    assert service.get("/v1/label-sets/used/labels").json()["total"] == 1


def test_too_large_a_body_is_refused_unread(start_service, tmp_path):
    import httpx

    from enrich_service.core.settings import Settings

    url = start_service(Settings(data_dir=tmp_path, max_body_bytes=2048))
    with httpx.Client(base_url=url) as client:
        answer = create(client, "a", [{"name": "x" * 3000}])
        assert answer.status_code == 413
        assert "ENRICH_MAX_BODY_BYTES" in answer.json()["detail"]
        chunks = iter([b"x" * 1000] * 5)
        answer = client.post("/v1/label-sets", content=chunks)
        assert answer.status_code == 413
        assert create(client, "a", [{"name": "x"}]).status_code == 201


NO_TEXT = ['{"name": "a", ', '{"name": "s", "labels": [{"name": "\\ud800"}]}']


@pytest.mark.parametrize("text", NO_TEXT)
def test_a_body_that_is_no_json_or_no_text_is_a_problem_document(service, text):
    answer = service.post(
        "/v1/label-sets", content=text, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


def confusable(client, name):
    page = client.get(f"/v1/label-sets/{name}/labels").json()
    return {one["key"]: one["confusable"] for one in page["items"] if one["confusable"]}


def test_which_labels_are_confused_is_written_and_changed_by_hand(service):
    create(service, "near", [{"name": name} for name in ("mallard", "teal", "gadwall")])
    url = "/v1/label-sets/near/confusable"
    near = {"mallard": ["gadwall", "teal"], "teal": ["mallard"]}
    assert service.put(url, json={"confusable": near}).json() == {"confusable": near}
    service.put(url, json={"confusable": {"mallard": ["teal"], "teal": []}})
    assert confusable(service, "near") == {"mallard": ["teal"]}
    assert service.delete("/v1/label-sets/near").status_code == 204


@pytest.mark.parametrize(
    ("near", "message"),
    [
        ({"nix": ["teal"]}, "no label with the key 'nix'"),
        ({"teal": ["nix"]}, "no label with the key 'nix'"),
        ({"teal": ["teal"]}, "not the label itself"),
        ({"teal": ["mallard", "mallard"]}, "once"),
        ({"teal": ["mallard"] * 21}, "at most 20"),
    ],
)
def test_confusable_labels_that_make_no_sense_are_told_and_not_stored(service, near, message):
    create(service, "odd", [{"name": name} for name in ("mallard", "teal")])
    service.put("/v1/label-sets/odd/confusable", json={"confusable": {"mallard": ["teal"]}})
    answer = service.put("/v1/label-sets/odd/confusable", json={"confusable": near})
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert confusable(service, "odd") == {"mallard": ["teal"]}


def test_names_that_end_alike_are_guessed_to_look_alike_where_nothing_is_known(service):
    names = ["common teal", "great white shark", "Cinnamon Teal", "wood duck", "teal", "goldfish"]
    names += ["lesser white shark", "tiger shark"]
    create(service, "guess", [{"name": name} for name in names])
    url = "/v1/label-sets/guess/confusable"
    service.put(url, json={"confusable": {"teal": ["wood_duck"]}})
    guessed = service.post(f"{url}/from-names").json()["confusable"]
    assert guessed == {
        "common_teal": ["Cinnamon_Teal", "teal"],
        "Cinnamon_Teal": ["common_teal", "teal"],
        "great_white_shark": ["lesser_white_shark", "tiger_shark"],
        "lesser_white_shark": ["great_white_shark", "tiger_shark"],
        "tiger_shark": ["great_white_shark", "lesser_white_shark"],
    }
    assert confusable(service, "guess") == guessed | {"teal": ["wood_duck"]}


def test_many_names_of_one_kind_are_compared_with_their_neighbours_alone():
    """Comparing all pairs of so many would take minutes."""
    labels = [Label(id=n, key=f"k{n}", name=f"kind {n} teal") for n in range(20_000)]
    found = labels_service.confusable_by_name(labels)
    assert len(found) == 20_000
    assert all(len(near) == 5 for near in found.values())
