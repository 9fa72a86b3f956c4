"""`distill data check` and `distill data split` on photos that have what real folders have."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imagehash")
pytest.importorskip("torch")

from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from distill.cli.main import app
from distill.data.preparation.duplicates import near_duplicates
from distill.data.splits import scan_splits


def photo(seed: int, size: int = 96) -> Image.Image:
    """A picture of large soft shapes, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five classes of ten photos; each third one is a smaller copy of the one before."""
    root = tmp_path / "photos"
    for number, key in enumerate(("ant", "bee", "cat", "dog", "elk")):
        (root / key).mkdir(parents=True)
        for index in range(10):
            seed, size = (index - 1, 64) if index % 3 == 2 else (index, 96)
            photo(100 * number + seed, size).save(root / key / f"{index}.jpg", quality=80)
    return root


def invoke(tmp_path: Path, *words: object) -> Result:
    words = ("data", *words, "--cache", tmp_path / "cache")
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "300"})


def test_near_duplicates_are_what_a_slow_comparison_of_all_pairs_finds():
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**63, 60)]
    hashes += [value ^ (1 << int(rng.integers(0, 63))) for value in hashes[:20]]
    hashes += [hashes[0] ^ 0b1111, hashes[1] ^ (0b11111 << 20), hashes[2]]
    near = {
        (a, b)
        for a in range(len(hashes))
        for b in range(a)
        if (hashes[a] ^ hashes[b]).bit_count() <= 4
    }
    groups = near_duplicates(hashes)
    found = {(a, b) for group in groups for a in group for b in group if b < a}
    assert near <= found and {len(group) for group in groups} <= {2, 3}
    assert [0, 60, 80] in groups and [2, 62, 82] in groups


def test_check_names_what_a_training_would_stumble_over(photos, tmp_path):
    (photos / "ant" / "notes.txt").write_text("a")
    (photos / "ant" / "raw.dng").write_bytes(b"a")
    (photos / "bee" / "broken.jpg").write_bytes(b"no image")
    photo(0).save(photos / "bee" / "ant.png")  # as ant/0.jpg
    photo(999, 20).save(photos / "cat" / "tiny.png")
    result = invoke(tmp_path, "check", photos, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["splits"]["train"] | {"largest_class": ""} == {
        "images": 53, "classes": 5, "smallest_class": "ant", "fewest": 10, "largest_class": "",
        "most": 12,
    }  # fmt: skip
    assert found["class_sizes"]["bee"] == 12
    assert found["skipped"] == {".txt": 1, ".dng": 1}
    assert len(found["unreadable"]) == 1 and "broken.jpg" in found["unreadable"][0]
    assert (found["shorter_side"], found["small"]) == ([20, 96, 96], 1)
    assert len(found["duplicates"]) == 16
    (conflict,) = [group for group in found["duplicates"] if len(group["classes"]) > 1]
    assert conflict["classes"] == ["ant", "bee"]
    lines = invoke(tmp_path, "check", photos).stdout
    assert "skipped files: 1 .txt, 1 .dng" in lines
    assert "of these in several splits: none" in lines
    assert "of these with several labels: 1 group\n" in lines


def test_hidden_files_of_other_machines_are_no_images_and_no_classes(photos, tmp_path):
    """Of macOS, of its archives and of Jupyter."""
    hidden = ["ant/.DS_Store", "ant/._0.jpg", "__MACOSX/ant/._0.jpg", "bee/__MACOSX/1.jpg"]
    hidden += ["ant/.ipynb_checkpoints/0-checkpoint.jpg", ".ipynb_checkpoints/0.jpg"]
    for name in hidden:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"\0\5\x16\7")
    (photos / "bee" / "0.jpg").rename(photos / "bee" / "0.jfif")
    found = json.loads(invoke(tmp_path, "check", photos, "--json").stdout)
    assert found["class_sizes"] == dict.fromkeys(("ant", "bee", "cat", "dog", "elk"), 10)
    assert (found["skipped"], found["unreadable"]) == ({"hidden": 6}, [])


def test_a_hidden_folder_in_a_class_called_train_makes_it_no_split(photos, tmp_path):
    (photos / "elk").rename(photos / "train")
    (photos / "train" / ".ipynb_checkpoints").mkdir()
    found = json.loads(invoke(tmp_path, "check", photos, "--json").stdout)
    assert list(found["class_sizes"]) == ["ant", "bee", "cat", "dog", "train"]


def test_check_finds_photos_that_are_in_two_splits(photos, tmp_path):
    (photos / "ant").rename(tmp_path / "ant")
    for split, names in (("train", range(5)), ("val_on_train", range(5, 10))):
        (tmp_path / "data" / split / "ant").mkdir(parents=True)
        for name in names:
            path = tmp_path / "data" / split / "ant" / f"{name}.jpg"
            path.write_bytes((tmp_path / "ant" / f"{name}.jpg").read_bytes())
    copy = tmp_path / "data" / "val_on_train" / "ant" / "copy.jpg"
    copy.write_bytes((tmp_path / "data" / "train" / "ant" / "0.jpg").read_bytes())
    found = json.loads(invoke(tmp_path, "check", tmp_path / "data", "--json").stdout)
    leaks = [group for group in found["duplicates"] if len(group["splits"]) > 1]
    assert [leak["splits"] for leak in leaks] == [["seen", "train"]] * 2
    # 4 and its smaller copy 5; 0 and its copy.
    assert sorted(leak["same_bytes"] for leak in leaks) == [False, True]


@pytest.mark.parametrize("name", ["sheet.html", "sheet.png"])
def test_a_contact_sheet_shows_images_of_each_class(photos, tmp_path, name):
    result = invoke(tmp_path, "check", photos, "--sheet", tmp_path / name)
    assert result.exit_code == 0, result.output
    if name.endswith("png"):
        with Image.open(tmp_path / name) as sheet:
            assert sheet.size[0] == 1200 and sheet.size[1] > 800
    else:
        page = (tmp_path / name).read_text()
        assert page.count("<figure>") == 25 and "train: elk" in page
    refused = invoke(tmp_path, "check", photos, "--sheet", tmp_path / "sheet.gif")
    assert (
        refused.exit_code == 1 and "has an unknown suffix: choose .html or .png" in refused.stderr
    )


@pytest.mark.parametrize("out", ["split", "split.csv", "split.jsonl"])
def test_a_split_is_stratified_seeded_and_keeps_near_duplicates_together(photos, tmp_path, out):
    words = ["split", photos, "--unseen", "2", "--seed", "3", "--out"]
    result = invoke(tmp_path, *words, tmp_path / out)
    assert result.exit_code == 0, result.output
    splits = scan_splits(tmp_path / out)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 24, "seen": 6, "unseen": 20,
    }  # fmt: skip
    assert splits["seen"].targets.bincount().tolist() == [2, 2, 2]
    found = json.loads(invoke(tmp_path, "check", tmp_path / out, "--json").stdout)
    assert len(found["duplicates"]) == 15
    assert all(len(group["splits"]) == 1 for group in found["duplicates"])
    again = invoke(tmp_path, *words, tmp_path / f"again-{out}")
    assert again.exit_code == 0, again.output
    others = scan_splits(tmp_path / f"again-{out}")
    for name, split in splits.items():
        assert [p.resolve() for p in others[name].paths] == [p.resolve() for p in split.paths]
    refused = invoke(tmp_path, *words, tmp_path / out)
    assert refused.exit_code == 1 and "exists already: remove it or choose" in refused.stderr


def test_photos_in_shards_are_checked_in_place_and_copied_by_a_split(photos, tmp_path):
    shard = tmp_path / "photos.tar"
    with tarfile.open(shard, "w") as file:
        for path in sorted(photos.rglob("*.jpg")):
            (tmp_path / "label").write_text(path.parent.name)
            name = f"{path.parent.name}-{path.stem}"
            file.add(path, f"{name}.jpg")
            file.add(tmp_path / "label", f"{name}.cls")
    found = json.loads(invoke(tmp_path, "check", shard, "--json").stdout)
    assert len(found["duplicates"]) == 15
    words = ["split", shard, "--unseen", "2", "--seed", "3", "--out"]
    result = invoke(tmp_path, *words, tmp_path / "split")
    assert result.exit_code == 0, result.output
    splits = scan_splits(tmp_path / "split")
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 24, "seen": 6, "unseen": 20,
    }  # fmt: skip
    path = next(path for path in splits["unseen"].paths)
    key, _, stem = path.stem.partition("-")
    assert path.read_bytes() == (photos / key / f"{stem}.jpg").read_bytes()
    refused = invoke(tmp_path, *words, tmp_path / "split.csv")
    assert refused.exit_code == 1 and "cannot list images that are packed" in refused.stderr
    assert not (tmp_path / "split.csv").exists()


def test_unseen_classes_are_named_or_chosen_by_a_teacher(photos, tmp_path, tiny_teacher):
    assert invoke(tmp_path, "split", photos, "--unseen", "cat, elk", "--out", tmp_path / "a.csv")
    assert scan_splits(tmp_path / "a.csv")["unseen"].keys == ("cat", "elk")
    words = ["split", photos, "--unseen", "1", "--teacher", tiny_teacher]
    result = invoke(tmp_path, *words, "--out", tmp_path / "b.csv")
    assert result.exit_code == 0, result.output
    (key,) = scan_splits(tmp_path / "b.csv")["unseen"].keys
    assert f"unseen classes: {key}" in result.stderr


def test_a_photo_of_an_unseen_class_that_is_also_in_a_seen_one_is_left_out_there(photos, tmp_path):
    photo(0).save(photos / "bee" / "ant.png")  # as ant/0.jpg
    result = invoke(tmp_path, "split", photos, "--unseen", "ant", "--out", tmp_path / "a.csv")
    assert "1 image left out: near-duplicates of an image of an unseen class" in result.stderr
    names = {
        path.name for split in scan_splits(tmp_path / "a.csv").values() for path in split.paths
    }
    assert "ant.png" not in names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--unseen", "yak"], "there is no class 'yak' to hold out"),
        (["--unseen", "4"], "5 classes, less 4 unseen ones, leave fewer than two to train on"),
        (
            ["--unseen", "ant", "--teacher", "x"],
            "--teacher chooses the unseen classes: give their number",
        ),
    ],
)
def test_a_split_that_cannot_be_is_one_line(photos, tmp_path, words, message):
    result = invoke(tmp_path, "split", photos, *words, "--out", tmp_path / "out")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("split.tsv", "split.tsv: give --out a .csv or .jsonl file, or a folder"),
        ("split.Parquet", "split.Parquet: give --out a .csv or .jsonl file, or a folder"),
        ("photos/split", "is inside the data folder"),
    ],
)
def test_a_split_is_not_written_where_it_would_not_be_found_as_one(photos, tmp_path, out, message):
    result = invoke(tmp_path, "split", photos, "--out", tmp_path / out)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / out).exists()


def test_two_classes_are_not_merged_into_one_folder(photos, tmp_path):
    names = {"ant": "A/C", "bee": "A_C"}
    paths = [path for key in names for path in sorted((photos / key).iterdir())]
    lines = [f"{path},{names[path.parent.name]}" for path in paths]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    result = invoke(tmp_path, "split", tmp_path / "list.csv", "--out", tmp_path / "out")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "the classes 'A/C' and 'A_C' would share the folder 'A_C': rename" in result.stderr
    assert not (tmp_path / "out").exists()
    result = invoke(tmp_path, "split", tmp_path / "list.csv", "--out", tmp_path / "out.CSV")
    assert result.exit_code == 0, result.output
    assert scan_splits(tmp_path / "out.CSV")["train"].keys == ("A/C", "A_C")
