"""One set of photos in every layout: each gives the same images of the same classes."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract import TrainConfig
from distill.data.files.allowed_paths import check_allowed_paths
from distill.data.files.packed_image import PackedImage
from distill.data.pixels import load_pixels
from distill.data.sources.find import find_source
from distill.data.splits import scan_splits
from distill.data.streamed_pixels import StreamedPixels
from distill.embeddings.captions import read_captions
from distill.errors import DataError

LAYOUT = {
    "train": {"red fox": 4, "n2": 3},
    "val_on_train": {"red fox": 2, "n2": 1},
    "val": {"n3": 2},
}


@pytest.fixture
def photos(image_folder) -> Path:
    return image_folder(LAYOUT)


def rows(photos: Path) -> list[dict[str, str]]:
    return [
        {"path": str(path.relative_to(photos)), "label": path.parts[-2], "split": path.parts[-3]}
        for path in sorted(photos.rglob("*.png"))
    ]


def write_csv(photos: Path) -> Path:
    lines = [",".join(row.values()) for row in rows(photos)]
    file = photos / "photos.csv"
    file.write_text("\ufeffpath,label,split\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def write_tsv(photos: Path) -> Path:
    lines = ["\t".join(row.values()) for row in rows(photos)]
    (photos / "photos.tsv").write_text("path\tlabel\tsplit\n" + "\n".join(lines) + "\n")
    return photos / "photos.tsv"


def write_semicolons(photos: Path) -> Path:
    lines = [";".join(row.values()) for row in rows(photos)]
    (photos / "photos.csv").write_text("path;label;split\n" + "\n".join(lines) + "\n")
    return photos / "photos.csv"


def write_jsonl(photos: Path) -> Path:
    (photos / "photos.jsonl").write_text("\n".join(json.dumps(row) for row in rows(photos)))
    return photos / "photos.jsonl"


def write_parquet(photos: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows(photos)), photos / "photos.parquet")
    return photos / "photos.parquet"


def write_dataset(photos: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    names = sorted({row["label"] for row in rows(photos)})
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    parts = {}
    for split in LAYOUT:
        own = [row for row in rows(photos) if row["split"] == split]
        columns = {
            "picture": [(photos / row["path"]).read_bytes() for row in own],
            "label": [names.index(row["label"]) for row in own],
        }
        columns["picture"] = [{"bytes": content, "path": None} for content in columns["picture"]]
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(photos.parent / "dataset")
    return photos.parent / "dataset"


def write_shards(photos: Path) -> Path:
    folder = photos.parent / "shards"
    folder.mkdir()
    for split in LAYOUT:
        own = [row for row in rows(photos) if row["split"] == split]
        for number, part in enumerate((own[::2], own[1::2])):
            with tarfile.open(folder / f"{split}-{number:04}.tar", "w") as shard:
                for index, row in enumerate(part):
                    add(shard, f"{index:06}.png", (photos / row["path"]).read_bytes())
                    if number:
                        add(shard, f"{index:06}.cls", row["label"].encode())
                    else:
                        add(shard, f"{index:06}.json", json.dumps(row).encode())
    return folder


def write_coco(photos: Path) -> Path:
    folder = photos.parent / "coco"
    (folder / "annotations").mkdir(parents=True)
    names = sorted({row["label"] for row in rows(photos)})
    for split in LAYOUT:
        own = [row for row in rows(photos) if row["split"] == split]
        document = {
            "categories": [{"id": 7 + n, "name": name} for n, name in enumerate(names)],
            "images": [
                {"id": n, "file_name": row["path"], "width": 48, "height": 40}
                for n, row in enumerate(own)
            ],
            "annotations": [
                {
                    "id": n,
                    "image_id": n,
                    "category_id": 7 + names.index(row["label"]),
                    "bbox": [0, 0, 48, 40],
                }
                for n, row in enumerate(own)
            ],
        }
        file = folder / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(document))
    (folder / "images").symlink_to(photos)
    return folder


def write_yolo(photos: Path) -> Path:
    folder = photos.parent / "yolo"
    names = sorted({row["label"] for row in rows(photos)})
    for split, own_name in (("train", "train"), ("val_on_train", "valid")):
        for number, row in enumerate(row for row in rows(photos) if row["split"] == split):
            (folder / own_name / "images").mkdir(parents=True, exist_ok=True)
            (folder / own_name / "labels").mkdir(exist_ok=True)
            image = folder / own_name / "images" / f"{number}.png"
            image.write_bytes((photos / row["path"]).read_bytes())
            line = f"{names.index(row['label'])} 0.5 0.5 1 1\n"
            (folder / own_name / "labels" / f"{number}.txt").write_text(line)
    # As Roboflow writes it: relative to a folder further down.
    text = f"train: ../train/images\nval: ../valid/images\nnc: {len(names)}\nnames: {names}\n"
    (folder / "data.yaml").write_text(text)
    return folder


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))


def pixels(data: Path, cache: Path) -> dict[str, dict[str, list[bytes]]]:
    """By split and class: the images of 8 × 8 pixels, sorted."""
    found = {}
    for name, split in scan_splits(data, cache=cache).items():
        decoded = np.array(load_pixels(split, 8, cache))
        found[name] = {
            key: sorted(image.tobytes() for image in decoded[split.targets.numpy() == index])
            for index, key in enumerate(split.keys)
        }
    return found


LAYOUTS = [
    write_csv,
    write_tsv,
    write_semicolons,
    write_jsonl,
    write_parquet,
    write_dataset,
    write_shards,
    write_coco,
]


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_images_of_the_folders(photos, tmp_path, write):
    assert pixels(write(photos), tmp_path / "cache") == pixels(photos, tmp_path / "cache")


def test_a_yolo_export_gives_the_images_of_the_folders_as_far_as_they_are_trained_on(
    photos, tmp_path
):
    folders = pixels(photos, tmp_path / "cache")
    del folders["unseen"]
    assert pixels(write_yolo(photos), tmp_path / "cache") == folders


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_crops_are_stored_once_and_found_again_in_a_new_cache(photos, tmp_path, write):
    data = write(photos)
    first = scan_splits(data, cache=tmp_path / "cache")["train"]
    first.paths[0].write_bytes(b"changed")  # a second unpacking would undo this
    again = scan_splits(data, cache=tmp_path / "cache")["train"]
    assert again.paths[0].read_bytes() == b"changed"
    elsewhere = scan_splits(data, cache=tmp_path / "other")["train"]
    assert elsewhere.paths != first.paths
    first.paths[0].write_bytes(elsewhere.paths[0].read_bytes())
    unpacked = [scan_splits(data, cache=tmp_path / name)["train"] for name in ("other", "third")]
    assert unpacked[0].fingerprint == unpacked[1].fingerprint


def test_images_in_shards_are_read_where_they_are(photos, tmp_path):
    data, cache = write_shards(photos), tmp_path / "cache"
    first = scan_splits(data, cache=cache)
    (index,) = (path for path in cache.rglob("*") if path.is_file())
    assert index.suffix == ".jsonl"
    shard = data / "train-0000.tar"
    times = shard.stat().st_mtime_ns
    with shard.open("r+b") as file:
        file.write(b"no header")  # the shard is not searched a second time
    os.utime(shard, ns=(times, times))
    again = scan_splits(data, cache=cache)
    assert again["train"].fingerprint == first["train"].fingerprint
    streamed = StreamedPixels(again["train"].paths, 8)
    assert np.array_equal(streamed[slice(0, 7)], load_pixels(first["train"], 8, cache))
    os.utime(shard, ns=(times, times + 1))
    with pytest.raises(DataError, match=r"cannot read the shard .*train-0000\.tar"):
        scan_splits(data, cache=cache)


def test_images_in_a_dataset_are_read_where_they_are(photos, tmp_path):
    """Also from several files, in the order of the rows."""
    datasets = pytest.importorskip("datasets")
    files = [path for path in sorted(photos.rglob("*.png")) if path.parts[-3] == "train"]
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in files],
        "label": [path.parts[-2] for path in files],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(tmp_path / "dataset", num_shards=3)
    images = find_source(tmp_path / "dataset").images(tmp_path / "cache")
    assert [image.path.read_bytes() for image in images] == [path.read_bytes() for path in files]
    assert [image.key for image in images] == columns["label"]
    assert all(isinstance(image.path, PackedImage) for image in images)
    assert not (tmp_path / "cache").exists()


def rewrite(file: Path, change, **options) -> None:
    """Write an Arrow file anew, with the options of IPC, after `change` of its table."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        table = change(pyarrow.ipc.open_stream(source).read_all())
        written = pyarrow.ipc.IpcWriteOptions(**options)
        with pyarrow.ipc.new_stream(file.with_suffix(".new"), table.schema, options=written) as new:
            new.write_table(table)
    file.with_suffix(".new").replace(file)


def test_a_row_of_a_dataset_may_name_a_file(photos, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    data = write_dataset(photos)
    photo = photos / "train" / "n2" / "000.png"

    def name_the_first(table):
        _, *rest = table["picture"].to_pylist()
        column = [{"bytes": None, "path": str(photo)}, *rest]
        return table.set_column(0, "picture", pyarrow.array(column, table["picture"].type))

    (file,) = (data / "train").glob("*.arrow")
    rewrite(file, name_the_first)
    first, second, *_ = find_source(data).images(tmp_path / "cache")
    assert first.path == photo
    assert isinstance(second.path, PackedImage)


def test_images_of_a_dataset_in_compressed_files_are_unpacked_once(tmp_path):
    datasets = pytest.importorskip("datasets")
    names, content = ["a", "b", "a", "b"], io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(content, "bmp")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": [{"bytes": content.getvalue()}] * len(names), "label": names}
    data, cache = tmp_path / "dataset", tmp_path / "cache"
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(data)
    (file,) = data.glob("*.arrow")
    rewrite(file, lambda table: table, compression="zstd")
    images = find_source(data).images(cache)
    assert [image.key for image in images] == names
    assert {image.path.read_bytes() for image in images} == {content.getvalue()}
    assert images[0].path.is_relative_to(cache)
    images[0].path.write_bytes(b"changed")  # a second unpacking would undo this
    assert find_source(data).images(cache)[0].path.read_bytes() == b"changed"


def test_a_row_without_image_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": [{"bytes": b"x"}, None], "label": ["a", "b"]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(tmp_path / "dataset")
    with pytest.raises(DataError, match=r"\.arrow, row 1 has no image: remove the row"):
        scan_splits(tmp_path / "dataset", cache=tmp_path / "cache")


def write_labels(folder: Path, labels: dict[str, list], names: list[str] | None = None) -> Path:
    """A dataset on disk with these labels by split: indices of `names`, or strings."""
    datasets = pytest.importorskip("datasets")
    content = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(content, "png")
    label = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    parts = {
        split: datasets.Dataset.from_dict(
            {"image": [{"bytes": content.getvalue()}] * len(own), "label": own}, features=features
        )
        for split, own in labels.items()
    }
    datasets.DatasetDict(parts).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [(["a", "b"], [0, 1, 0, 1], [-1, -1]), (None, ["a", "b", "a", "b"], [None, None])],
)
def test_a_test_split_without_labels_is_left_out_with_a_line(tmp_path, caplog, names, train, test):
    labels = {"train": train, "validation": train, "test": test}
    data = write_labels(tmp_path / "dataset", labels, names)
    splits = scan_splits(data, cache=tmp_path / "cache")
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "seen": 4}
    (line,) = caplog.messages
    assert line == f"the split 'test' of {data} has no labels: it is left out"


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ({"train": [0, -1]}, ["a", "b"], r"split 'train', row 1 has no label \(-1\): remove"),
        ({"train": ["a", None]}, None, r"split 'train', row 1 has no label \(None\): remove"),
        ({"train": ["a"], "test": ["a", None]}, None, r"split 'test', row 1 has no label"),
        ({"test": [-1]}, ["a"], "has no split with labels"),
    ],
)
def test_a_row_of_a_dataset_without_label_is_named(tmp_path, labels, names, message):
    data = write_labels(tmp_path / "dataset", labels, names)
    with pytest.raises(DataError, match=message) as error:
        scan_splits(data, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_shard_that_was_cut_off_is_named_with_its_images(photos, tmp_path):
    data = write_shards(photos)
    split = scan_splits(data, cache=tmp_path / "cache")["unseen"]
    os.truncate(data / "val-0001.tar", 700)
    with pytest.raises(
        DataError, match=r"the image .*val-0001.tar/000000.png \(it has been cut off"
    ):
        load_pixels(split, 8, tmp_path / "cache")


def test_captions_of_images_in_shards_name_the_shard(photos, tmp_path):
    data = write_shards(photos)
    split = scan_splits(data, cache=tmp_path / "cache")["train"]
    line = {"image": "train-0001.tar/000000.png", "caption": "a red thing"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(line))
    captions = read_captions(tmp_path / "captions.jsonl", data, split)
    (captioned,) = (row for row, texts in enumerate(captions) if texts)
    assert str(split.paths[captioned]) == str(data / "train-0001.tar" / "000000.png")


def test_images_without_split_are_for_training_and_some_are_held_out(photos, tmp_path):
    lines = [f"{row['path']},{row['label']}" for row in rows(photos)]
    (photos / "photos.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    splits = scan_splits(photos / "photos.csv", cache=tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "seen": 3}


SPREADSHEETS = {
    "semicolons and quotes": (";", '"{}"', "utf-8", "path label split"),
    "tabs and quotes": ("\t", '"{}"', "utf-8", "path label split"),
    "capital letters": (",", "{}", "utf-8", "Path Label SPLIT"),
    "blanks": (",", ' "{}"', "utf-8", "path label split"),
    "UTF-16": (";", "{}", "utf-16", "path label split"),
    "UTF-16 without a mark": ("\t", "{}", "utf-16-le", "path label split"),
}


def write_table(file: Path, table: list[list[str]], kind: str) -> Path:
    delimiter, cell, encoding, names = SPREADSHEETS[kind]
    lines = [delimiter.join(map(cell.format, row)) for row in [names.split(), *table]]
    file.write_bytes("\r\n".join([*lines, delimiter * 2, ""]).encode(encoding))
    return file


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_lists_of_spreadsheet_programs_are_read_as_they_are(photos, tmp_path, kind):
    table = [list(row.values()) for row in rows(photos)]
    expected = {name: split.paths for name, split in scan_splits(photos).items()}
    found = scan_splits(write_table(photos / "photos.csv", table, kind))
    assert {name: split.paths for name, split in found.items()} == expected


def test_the_delimiter_of_a_first_line_for_excel_is_used(photos):
    lines = ["|".join(row.values()) for row in rows(photos)]
    text = "sep=|\npath|label|split\n" + "\n".join(lines) + "\nx.png||train\n"
    (photos / "photos.csv").write_text(text)
    with pytest.raises(DataError, match=rf"row {3 + len(lines)} has no path or no label"):
        scan_splits(photos / "photos.csv")
    (photos / "photos.csv").write_text(text.replace("x.png||train\n", ""))
    assert len(scan_splits(photos / "photos.csv")["train"]) == 7


def test_paths_may_have_backslashes_as_on_windows(photos):
    lines = [",".join(row.values()).replace("/", "\\") for row in rows(photos)]
    (photos / "photos.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
    found = scan_splits(photos / "photos.csv")["train"]
    assert found.paths == scan_splits(photos)["train"].paths


def test_an_integer_may_be_a_label_and_nan_is_none(photos):
    names = sorted(str(path.relative_to(photos)) for path in photos.glob("train/*/*.png"))
    numbered = [{"path": name, "label": number % 2} for number, name in enumerate(names)]
    (photos / "a.jsonl").write_text("\n".join(map(json.dumps, numbered)))
    assert scan_splits(photos / "a.jsonl")["train"].keys == ("0", "1")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(numbered), photos / "a.parquet")
    assert scan_splits(photos / "a.parquet")["train"].keys == ("0", "1")
    labels = [1.5, float("nan")]
    parquet.write_table(pyarrow.table({"path": names[:2], "label": labels}), photos / "b.parquet")
    with pytest.raises(DataError, match="row 2 has no path or no label"):
        scan_splits(photos / "b.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\na.png,a\n", r"has no column 'path' \(it has image, label\): the"),
        ("path,label\ntrain/n2/000.png,\n", "row 2 has no path or no label"),
        ("path,label\nx.png,a\ny.png,a\n", r"lists 2 images that do not exist .*'x.png', 'y.png'"),
        ("path,label\n", "lists no image"),
        ("", r"has no column 'path' \(it has none\)"),
        ("path,label,split\ntrain/n2/000.png,a,hold\n", "unknown split 'hold': rename it to train"),
    ],
)
def test_a_wrong_manifest_is_one_line(photos, content, message):
    (photos / "photos.csv").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        scan_splits(photos / "photos.csv")
    assert "\n" not in str(error.value)


def test_other_wrong_sources_are_one_line_each(photos, tmp_path, monkeypatch):
    (photos / "a.jsonl").write_text("[1]\n")
    (photos / "a.txt").write_text("")
    (photos / "a.tar").write_bytes(b"no tar file")
    (photos / "a.parquet").write_bytes(b"no parquet file")
    with tarfile.open(photos / "bare.tar", "w") as shard:
        add(shard, "1.png", b"image")
    with tarfile.open(photos / "zipped.tar", "w:gz") as shard:
        add(shard, "1.png", b"image")
    for name, message in {
        "a.jsonl": r"line 1: expected .*, found '\[1\]'",
        "a.txt": "is not a data set: give a folder of class folders",
        "a.tar": r"cannot read the shard .*a\.tar",
        "zipped.tar": r"cannot read the shard .*zipped\.tar",
        "a.parquet": "is not a Parquet file",
        "bare.tar": "sample '1' has no label: put its class in NAME.cls",
    }.items():
        with pytest.raises(DataError, match=message) as error:
            scan_splits(photos / name, cache=tmp_path / "cache")
        assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").rglob("*.partial")) == []
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="hf:images is no name of a dataset on the hub"):
        scan_splits("hf:images")  # a folder here


def test_a_job_reads_only_images_below_the_allowed_folders(photos, tmp_path):
    config = TrainConfig(data=str(write_csv(photos)), teacher="ViT-B-32@openai")
    check_allowed_paths(config, [photos])
    (photos / "photos.csv").write_text("path,label\n/etc/hostname,a\n")
    with pytest.raises(DataError, match="the job's image /etc/hostname is not below"):
        check_allowed_paths(config, [photos])
