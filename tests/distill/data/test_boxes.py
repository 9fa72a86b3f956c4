"""Photos with boxes, as COCO and YOLO exports: what is cut out, and what is skipped or refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("imagehash")

from PIL import Image
from typer.testing import CliRunner

from contract import TrainConfig
from distill.cli.main import app
from distill.data.files.allowed_paths import check_allowed_paths
from distill.data.files.image_file import open_image
from distill.data.sources.find import find_source
from distill.data.splits import scan_splits
from distill.errors import DataError, Interrupted

RED, BLUE = (200, 30, 30), (30, 30, 200)
BOXES = {  # of each photo of 200 × 100: class, left, top, width, height
    "a.png": [("fox", (20, 20, 60, 40)), ("jay", (150, 0, 50, 100)), ("jay", (0, 0, 12, 30))],
    "b.png": [("fox", (100, 30, 40, 40))],
    "c.png": [("jay", (10, 10, 80, 80)), ("fox", (120, 50, 0, 20))],
    "d.png": [],
}
COLOURS = {"fox": RED, "jay": BLUE}
NAMES = ["fox", "jay"]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Grey photos with filled boxes, red foxes and blue jays."""
    folder = tmp_path / "export" / "images"
    folder.mkdir(parents=True)
    for name, boxes in BOXES.items():
        pixels = np.full((100, 200, 3), 128, dtype=np.uint8)
        for key, (left, top, width, height) in boxes:
            pixels[top : top + height, left : left + width] = COLOURS[key]
        Image.fromarray(pixels).save(folder / name)
    return folder


def coco() -> dict:
    numbers = {name: number for number, name in enumerate(BOXES)}
    return {
        "images": [
            {"id": number, "file_name": name, "width": 200, "height": 100}
            for name, number in numbers.items()
        ],
        "categories": [{"id": 5, "name": "fox"}, {"id": 3, "name": "jay"}],
        "annotations": [
            {
                "image_id": numbers[name],
                "category_id": {"fox": 5, "jay": 3}[key],
                "bbox": box,
                "iscrowd": 0,
            }
            for name, boxes in BOXES.items()
            for key, box in boxes
        ],
    }


def write_coco(photos: Path, document: dict | None = None) -> Path:
    path = photos.parent / "annotations.json"
    path.write_text(json.dumps(document or coco()))
    return path


def write_yolo(photos: Path) -> Path:
    labels = photos.parent / "labels"
    labels.mkdir()
    for name, boxes in BOXES.items():
        lines = [
            f"{NAMES.index(key)} {(left + width / 2) / 200} {(top + height / 2) / 100} "
            f"{width / 200} {height / 100}"
            for key, (left, top, width, height) in boxes
        ]
        if lines:
            (labels / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    path = photos.parent / "data.yaml"
    path.write_text("path: .\ntrain: images\nnames:\n  0: fox\n  1: jay\n")
    return path


def crops(data: Path, cache: Path) -> list[tuple[str, str, tuple[int, int], np.ndarray]]:
    return [
        (image.key, image.photo, (opened := open_image(image.path)).size, np.asarray(opened))
        for image in find_source(data).images(cache)
    ]


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_boxes_are_cut_out_as_squares_with_a_margin_as_far_as_the_photo_reaches(
    photos, tmp_path, write
):
    found = crops(write(photos), tmp_path / "cache")
    assert [(key, photo, size) for key, photo, size, _ in found] == [
        ("fox", "export/images/a.png", (72, 72)),  # 60 wide, and a tenth on each side
        ("jay", "export/images/a.png", (120, 100)),  # moved to the left, cut at the top and bottom
        ("fox", "export/images/b.png", (48, 48)),
        ("jay", "export/images/c.png", (96, 96)),
    ]
    for key, _, _, pixels in found:
        centre = pixels[len(pixels) // 2, 10]
        coloured = (pixels == COLOURS[key]).all(axis=2)
        assert not coloured[:, 0].any() and tuple(centre) in (COLOURS[key], (128, 128, 128))
    assert (found[0][3] == RED).all(axis=2).sum() == 60 * 40
    assert (found[1][3] == BLUE).all(axis=2).sum() == 50 * 100
    assert (found[2][3] == RED).all(axis=2)[4:44, 4:44].all()


def test_both_formats_give_the_same_images(photos, tmp_path):
    from_coco, from_yolo = (
        crops(write(photos), tmp_path / "cache") for write in (write_coco, write_yolo)
    )
    for a, b in zip(from_coco, from_yolo, strict=True):
        assert a[:3] == b[:3] and (a[3] == b[3]).all()


def test_objects_of_a_split_do_not_depend_on_the_cache(photos, tmp_path):
    rng = np.random.default_rng(0)
    for name in BOXES:  # no two objects look alike
        pixels = rng.integers(0, 256, (100, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / name)
    cache, out = tmp_path / "cache", tmp_path / "objects"
    words = ["data", "split", str(write_coco(photos)), "--validation", "0.5", "--cache", str(cache)]
    refused = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "objects.csv")])
    assert refused.exit_code == 1, refused.output
    assert "were cut out of photos: give a folder with --out, which gets copies" in refused.stderr
    result = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    shutil.rmtree(cache)
    images = [path for path in out.rglob("*.png") if open_image(path).size]
    assert images and not any(path.is_symlink() for path in images)


def test_check_counts_skipped_boxes_by_reason(photos, tmp_path):
    document = coco()
    document["annotations"][3]["iscrowd"] = 1  # the fox of b.png
    document["annotations"].append({"image_id": 3, "category_id": 5, "bbox": [300, 0, 50, 50]})
    document["annotations"].append({"image_id": 3, "category_id": 5})
    document["images"][2].update(width=100, height=200)  # c.png, with two boxes
    words = ["data", "check", str(write_coco(photos, document)), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "train: 2 images of 2 classes" in result.stdout
    line = next(line for line in result.stdout.splitlines() if line.startswith("skipped boxes"))
    assert sorted(line.removeprefix("skipped boxes: ").split(", ")) == [
        "1 groups of objects (iscrowd)",
        "1 smaller than 16 px",
        "2 empty or outside of the photo",
        "2 in a photo of another shape than annotated",
    ]
    as_json = CliRunner().invoke(app, [*words, "--json"])
    assert sum(json.loads(as_json.stdout)["skipped_boxes"].values()) == 6


def test_a_photo_that_its_exif_data_turn_is_cut_where_it_was_annotated_upright(photos, tmp_path):
    """Tools show photos upright. A photo annotated without its rotation is skipped, not cropped."""
    upright = Image.open(photos / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned to the left
    upright.transpose(Image.Transpose.ROTATE_270).save(photos / "b.png", exif=exif)
    found = crops(write_coco(photos), tmp_path / "cache")
    assert (found[2][3] == RED).all(axis=2)[4:44, 4:44].all()
    document = coco()
    document["images"][1].update(width=100, height=200)
    found = crops(write_coco(photos, document), tmp_path / "cache")
    assert [photo for _, photo, _, _ in found] == [
        "export/images/a.png", "export/images/a.png", "export/images/c.png"
    ]  # fmt: skip


def test_polygons_turned_boxes_and_key_points_count_as_upright_boxes(photos, tmp_path):
    data = write_yolo(photos)
    expected = crops(data, tmp_path / "cache")[2]
    labels = photos.parent / "labels" / "b.txt"
    labels.write_text("0 0.5 0.3 0.7 0.5 0.6 0.7 0.55 0.5\n")  # within the same upright box
    assert crops(data, tmp_path / "cache")[2][2] == expected[2]
    for name in ("a", "c"):
        (photos.parent / "labels" / f"{name}.txt").unlink()
    data.write_text(data.read_text() + "kpt_shape: [1, 2]\n")
    labels.write_text("0 0.6 0.5 0.2 0.4 0.9 0.9\n")
    [(key, _, size, pixels)] = crops(data, tmp_path / "cache")
    assert (key, size) == ("fox", (48, 48)) and (pixels == expected[3]).all()


def test_lists_of_photos_and_several_folders_make_a_split(photos, tmp_path):
    data = write_yolo(photos)
    (photos.parent / "train.txt").write_text("./images/a.png\n\n./images/b.png\n")
    other = photos.parent / "more"
    other.mkdir()  # without images/, labels are beside the photos
    Image.open(photos / "c.png").save(other / "c.png")
    (other / "c.txt").write_text((photos.parent / "labels" / "c.txt").read_text())
    data.write_text("train: [train.txt, more]\nval: images\nnames: [fox, jay]\n")
    counts: dict[str, int] = {}
    for image in find_source(photos.parent).images(tmp_path / "cache"):
        counts[image.split] = counts.get(image.split, 0) + 1
    assert counts == {"train": 4, "val": 4}


@pytest.fixture
def herd(tmp_path) -> Path:
    """Twelve photos, each with two foxes and a jay, as a COCO export."""
    folder = tmp_path / "herd"
    folder.mkdir()
    rng = np.random.default_rng(0)
    document = {"images": [], "categories": coco()["categories"], "annotations": []}
    for number in range(12):
        coarse = rng.integers(0, 256, (6, 12, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((240, 120), Image.Resampling.BICUBIC)
        photo.save(folder / f"{number}.png")
        document["images"].append(
            {"id": number, "file_name": f"{number}.png", "width": 240, "height": 120}
        )
        document["annotations"] += [
            {"image_id": number, "category_id": category, "bbox": [left, 30, 50, 60]}
            for left, category in ((10, 5), (90, 5), (170, 3))
        ]
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder / "annotations.json"


def photos_by_split(images) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for split, photo in images:
        found.setdefault(split, set()).add(photo)
    return found


def test_objects_of_one_photo_are_held_out_together(herd, tmp_path):
    photo_of = {image.path: image.photo for image in find_source(herd).images(tmp_path)}
    splits = scan_splits(herd, cache=tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 30, "seen": 6}
    found = photos_by_split(
        (name, photo_of[path]) for name, split in splits.items() for path in split.paths
    )
    assert len(found["seen"]) == 2 and not found["seen"] & found["train"]


def test_objects_of_one_photo_are_split_together(herd, tmp_path):
    out, cache = tmp_path / "split", tmp_path / "cache"
    words = ["data", "split", herd, "--out", out, "--cache", cache, "--validation", "0.25"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    photo_of = {image.path.name: image.photo for image in find_source(herd).images(cache)}
    found = photos_by_split((path.parts[-3], photo_of[path.name]) for path in out.rglob("*.png"))
    assert len(found["val_on_train"]) == 3 and len(found["train"]) == 9
    assert not found["val_on_train"] & found["train"]


def change(document: dict, section: str, number: int, **fields: object) -> dict:
    document[section][number].update(fields)
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is no COCO export .*: it needs images, categories and annotations"),
        ({"images": [], "categories": []}, r"\(annotations: Field required\)"),
        (change(coco(), "annotations", 0, bbox="wide"), r"\(annotations\.0\.bbox: "),
        (change(coco(), "annotations", 1, category_id=9), r"annotations\.1: there is no categor"),
        (change(coco(), "annotations", 1, image_id=9), r"annotations\.1: there is no image_id 9"),
        (change(coco(), "images", 1, file_name="x.png"), r"1 photos that do not exist .'x\.png'"),
        ({**coco(), "annotations": []}, "no box to crop .there are none.: label objects"),
        ({**coco(), "annotations": coco()["annotations"][2:3]}, "crop .1 smaller than 16 px"),
    ],
)  # fmt: skip
def test_a_wrong_coco_export_is_a_one_line_error(photos, tmp_path, document, message):
    path = photos.parent / "annotations.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message) as error:
        scan_splits(path, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_boxes_that_are_all_too_small_are_an_error_after_an_interruption_and_each_time(
    photos, tmp_path
):
    document = coco()
    for annotation in document["annotations"]:
        annotation["bbox"] = [10, 10, 8, 8]
    path = photos.parent / "annotations.json"
    path.write_text(json.dumps(document))

    def stop(done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        find_source(path).images(tmp_path / "cache", stop)
    for _ in range(2):
        with pytest.raises(DataError, match="no box to crop .6 smaller than 16 px"):
            find_source(path).images(tmp_path / "cache")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data.yaml", "train: images\n", r"does not describe a YOLO export \(names: Field req"),
        ("data.yaml", "- a\n", "does not describe a YOLO export"),
        ("data.yaml", "names: [a\n", "does not describe a YOLO export .while parsing"),
        ("data.yaml", "names: [fox, jay]\n", "has no photos: give their folders as train and"),
        ("data.yaml", "names: [fox]\ntrain: pictures\n", "has train: pictures, which does not exi"),
        ("data.yaml", "names: [fox]\ntrain: images\n", "c.txt, line 1: .* no name for the class 1"),
        ("labels/c.txt", "0 0.5 0.5 1 1\n0 0.5 0.5\n", r"c\.txt, line 2: expected `class x y"),
        ("labels/c.txt", "fox 0.5 0.5 1 1\n", "line 1: expected .*, found 'fox 0.5 0.5 1 1'"),
        ("images/a.png", "no image", r"cannot read the image .*a\.png \(it is not an image\)"),
    ],
)
def test_a_wrong_yolo_export_is_a_one_line_error(photos, tmp_path, file, content, message):
    data = write_yolo(photos)
    if "the class 1" in message:
        (photos.parent / "labels" / "a.txt").unlink()
    (photos.parent / file).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        scan_splits(data, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").rglob("*.partial")) == []


def test_a_job_reads_only_photos_below_the_allowed_folders(photos, tmp_path):
    root = photos.parent
    for data in (write_coco(photos), write_yolo(photos), root):
        check_allowed_paths(TrainConfig(data=str(data), teacher="ViT-B-32@openai"), [root])
    outside = tmp_path / "secret"
    outside.mkdir()
    Image.open(photos / "a.png").save(outside / "a.png")
    document = change(coco(), "images", 0, file_name=str(outside / "a.png"))
    (root / "data.yaml").write_text(f"names: [fox]\ntrain: {outside}\n")
    for data in (write_coco(photos, document), root):
        with pytest.raises(DataError, match=r"the job's file .*secret/a\.png is not below"):
            check_allowed_paths(TrainConfig(data=str(data), teacher="ViT-B-32@openai"), [root])


def test_a_configuration_and_a_training_come_from_an_export(
    herd, tmp_path, tiny_teacher, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["init", str(herd), "--teacher", tiny_teacher, "--student", "test_resnet"]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    assert "#   train: 30 images of 2 classes" in Path("distill.toml").read_text()
