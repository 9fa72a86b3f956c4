"""The paper's data sets, made up small: what is found where, what is checked and written."""

import hashlib
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from distill.cli.main import app
from distill.data.splits import scan_split

SPLITS = ("train", "val_on_train", "val")
LISTS = {
    "train": ("heron/1.jpg", "heron/2.jpg", "wren_small/3.jpg"),
    "val_on_train": ("heron/4.jpg", "wren_small/5.jpg"),
    "val": ("owl/6.jpg",),
}
IMAGES = [line for lines in LISTS.values() for line in lines]
CARS = ("StanfordCars", "cars_train/{image}")
PLACES = [
    ("CaltechBirds", "CUB_200_2011/images/{key}/{image}"),
    CARS,
    ("Flower102", "jpg/{image}"),
    ("Flower102", "flowers-102/jpg/{image}"),
    ("Food101", "food-101/images/{key}/{image}"),
    ("SUN397", "SUN397/{nested}/{image}"),
    ("SUN397", "{nested}/{image}"),
    ("tiered-ImageNet", "tiered_imagenet/train/{key}/{image}"),
    ("tiered-ImageNet", "train/{key}/{image}"),
]
NESTED = {"heron": "h/heron", "wren_small": "w/wren/small", "owl": "o/owl"}


@pytest.fixture
def lists(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    for split, lines in LISTS.items():
        text = "\n".join(f"{split}/{line}" for line in lines)
        (folder / f"{split}_data.txt").write_text(text)
    return folder


@pytest.fixture
def prepare(tmp_path, lists):
    """A function that lays images out as their authors do, and runs the command on them."""

    def run(name, place, *words, leave_out=()):
        root = tmp_path / "download"
        for line in IMAGES:
            key, image = line.split("/")
            path = root / place.format(key=key, image=image, nested=NESTED[key])
            path.parent.mkdir(parents=True, exist_ok=True)
            if line not in leave_out:
                path.write_text(line)
        if name == "SUN397":
            top = root / place.split("{")[0]
            (top / "ClassName.txt").write_text("".join(f"/{path}\n" for path in NESTED.values()))
        arguments = ["data", "prepare", name, "--root", root, "--lists", lists]
        arguments += ["--out", tmp_path / "out", *words]
        return CliRunner().invoke(app, [str(word) for word in arguments])

    return run


def arranged(folder):
    return {
        f"{path.relative_to(folder)}": path.read_text()
        for split in SPLITS
        for path in (folder / split).rglob("*")
        if path.is_file()
    }


EXPECTED = {f"{split}/{line}": line for split, lines in LISTS.items() for line in lines}


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_each_data_set_is_found_where_its_authors_put_it(prepare, tmp_path, name, place):
    done = prepare(name, place)
    assert done.exit_code == 0, done.stderr
    assert arranged(tmp_path / "out") == EXPECTED
    assert all(path.is_symlink() for path in (tmp_path / "out").rglob("*.jpg"))
    assert len(scan_split(tmp_path / "out", "seen").keys) == 2


def test_copies_outlive_the_download(prepare, tmp_path):
    assert prepare(*CARS, "--copy").exit_code == 0
    (tmp_path / "download").rename(tmp_path / "elsewhere")
    assert arranged(tmp_path / "out") == EXPECTED


def test_the_hash_of_the_lists_is_checked_and_recorded(prepare, lists, tmp_path):
    whole = b"".join((lists / f"{split}_data.txt").read_bytes() for split in SPLITS)
    sha256 = hashlib.sha256(whole).hexdigest()
    done = prepare(*CARS, "--sha256", "0" * 64)
    assert done.exit_code == 1 and f"have the SHA-256 {sha256}, not the given one" in done.stderr
    assert not (tmp_path / "out").exists()

    done = prepare(*CARS, "--sha256", sha256.upper(), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert json.loads(done.stdout) | {"folder": ""} == {
        "name": "StanfordCars",
        "folder": "",
        "lists_sha256": sha256,
        "images": {"train": 3, "val_on_train": 2, "val": 1},
        "classes": {"train": 2, "val_on_train": 2, "val": 1},
        "copied": False,
    }


def test_the_papers_labels_come_along_and_must_name_every_class(prepare, lists, tmp_path):
    (lists / "label2text.txt").write_text("heron 1 heron\nowl 2 owl\n")
    done = prepare(*CARS)
    assert done.exit_code == 1 and "no line for the class 'wren_small'" in done.stderr
    labels = "heron 1 heron\nowl 2 owl\nwren_small 3 small_wren\n"
    (lists / "label2text.txt").write_text(labels)
    assert prepare(*CARS).exit_code == 0
    assert (tmp_path / "out" / "label2text.txt").read_text() == labels


def check_error(done, words):
    assert done.exit_code == 1
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_missing_images_are_counted_and_their_source_is_named(prepare, tmp_path):
    done = prepare(*CARS, leave_out=("heron/2.jpg", "owl/6.jpg"))
    check_error(
        done,
        f"2 of 6 images are missing, the first is {tmp_path}/download/cars_train/2.jpg: download",
    )
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_folder_with_something_in_it_is_left_alone(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    assert prepare(*CARS).exit_code == 0  # an empty one is filled
    check_error(prepare(*CARS), "out exists already: remove it or choose another --out")


def test_a_full_disk_leaves_nothing_behind(prepare, small_disk, tmp_path):
    full = small_disk / "out"
    (small_disk / "filler").write_bytes(b"0" * 1_040_000)
    check_error(
        prepare(*CARS, "--copy", "--out", full), f"cannot write {full} (No space left on device)"
    )
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        ("train", None, "train_data.txt (No such file or directory)"),
        ("val", "", "val_data.txt is empty"),
        ("val", "val/owl.jpg", "line 1: expected 'val/CLASS/IMAGE', found 'val/owl.jpg'"),
        ("val", "val/../owl.jpg", "line 1: expected 'val/CLASS/IMAGE'"),
        ("val", "train/owl/6.jpg", "line 1: expected 'val/CLASS/IMAGE'"),
        ("val", "val/heron/6.jpg", "has the class 'heron', which is also in train"),
        ("val_on_train", "val_on_train/gull/6.jpg", "has the class 'gull', which is not in train"),
        ("val_on_train", "val_on_train/heron/2.jpg", "have heron/2.jpg twice"),
    ],
)
def test_invalid_lists_are_reported(prepare, lists, split, text, words):
    path = lists / f"{split}_data.txt"
    path.unlink() if text is None else path.write_text(text)
    check_error(prepare(*CARS), words)


def test_unknown_names_and_sun397_without_its_classes_are_reported(prepare, tmp_path):
    check_error(
        prepare("Birds", CARS[1]), "there is no data set 'Birds': choose CaltechBirds, Stan"
    )
    prepare("SUN397", "SUN397/{nested}/{image}")
    (tmp_path / "download" / "SUN397" / "ClassName.txt").unlink()
    done = prepare("Flower102", "jpg/{image}", "--out", tmp_path / "other")
    assert done.exit_code == 0
    words = ["data", "prepare", "SUN397", "--root", tmp_path / "download"]
    words += ["--lists", tmp_path / "lists", "--out", tmp_path / "third"]
    check_error(
        CliRunner().invoke(app, [str(word) for word in words]), "SUN397/ClassName.txt: download"
    )


@pytest.fixture
def food_server(tmp_path, monkeypatch):
    """torchvision's Food101 gets a small archive from a server on this machine."""
    from torchvision.datasets import Food101

    content = tmp_path / "archive" / "food-101"
    for line in IMAGES:
        path = content / "images" / line
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    (content / "meta").mkdir()
    (content / "meta" / "train.json").write_text("{}")
    with tarfile.open(tmp_path / "archive" / "food-101.tar.gz", "w:gz") as archive:
        archive.add(content, "food-101")
    md5 = hashlib.md5((tmp_path / "archive" / "food-101.tar.gz").read_bytes()).hexdigest()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=tmp_path / "archive")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/food-101.tar.gz"
    monkeypatch.setattr(Food101, "_URL", url)
    monkeypatch.setattr(Food101, "_MD5", md5)
    yield
    server.shutdown()
    server.server_close()


def test_what_torchvision_has_is_downloaded(food_server, lists, tmp_path):
    words = ["data", "prepare", "Food101", "--root", tmp_path / "fresh", "--lists", lists]
    words += ["--out", tmp_path / "out", "--download"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    assert arranged(tmp_path / "out") == EXPECTED


def test_a_download_that_fails_or_is_impossible_is_reported(prepare, monkeypatch):
    from torchvision.datasets import Food101

    monkeypatch.setattr(Food101, "_URL", "http://127.0.0.1:9/food-101.tar.gz")
    done = prepare("Food101", "images/{key}/{image}", "--download")
    assert done.exit_code == 1
    assert (
        "cannot download Food-101 (" in done.stderr and "try again, or download it" in done.stderr
    )
    check_error(prepare(*CARS, "--download"), "torchvision cannot download Stanford Cars")
