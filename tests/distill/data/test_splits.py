"""Splits of a data set: the paper's three folders, and what is done where some are missing."""

import shutil

import pytest

from distill.data.splits import scan_split, scan_splits
from distill.errors import DataError


def test_a_split_lists_its_images_class_by_class(image_folder):
    root = image_folder({"val_on_train": {"n2": 2, "n1": 3}})
    split = scan_split(root, "seen", {"n1", "n2"})
    assert split.keys == ("n1", "n2")
    assert split.targets.tolist() == [0, 0, 0, 1, 1]
    assert split.paths[0].parent.name == "n1"


def test_a_class_folder_without_label_is_named(image_folder):
    root = image_folder({"val": {"n1": 1, "stranger": 1}})
    with pytest.raises(DataError, match="'stranger' without a label: add"):
        scan_split(root, "unseen", {"n1"})


def test_a_class_without_images_is_named(image_folder):
    root = image_folder({"val": {"n1": 1}})
    (root / "val" / "n2").mkdir()
    with pytest.raises(DataError, match="n2 has no images"):
        scan_split(root, "unseen")


def test_missing_data_are_named(tmp_path, image_folder):
    with pytest.raises(DataError, match=r"there is no data set .*nowhere: correct the path"):
        scan_splits(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no train images: the data needs class folders, or"):
        scan_splits(image_folder({"val": {"n1": 1}}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no class folders: put the images of each"):
        scan_splits(tmp_path / "empty")


def test_unseen_classes_are_optional_but_named_where_they_are_needed(image_folder):
    root = image_folder({"train": {"n1": 3}, "val_on_train": {"n1": 2}})
    assert set(scan_splits(root)) == {"train", "seen"}
    with pytest.raises(DataError, match=r"has no unseen classes.*put images of other classes in"):
        scan_split(root, "unseen")


def test_without_validation_images_a_fifth_of_each_class_is_held_out(image_folder):
    root = image_folder({"train": {"n1": 10, "n2": 5, "n3": 2, "n4": 1}})
    train, seen = scan_splits(root).values()
    assert (train.held_out, seen.held_out) == (False, True)
    assert train.targets.bincount().tolist() == [8, 4, 1, 1]
    assert seen.keys == ("n1", "n2", "n3") and seen.targets.bincount().tolist() == [2, 1, 1]
    assert not set(train.paths) & set(seen.paths)
    # The same ones whoever asks, for whichever split.
    assert scan_split(root, "seen").paths == seen.paths
    assert scan_split(root, "train").paths == train.paths


def test_the_images_held_out_stay_when_another_class_or_image_is_added(image_folder):
    root = image_folder({"train": {"n1": 10, "n2": 5}})
    before = scan_split(root, "seen").paths
    shutil.copytree(root / "train" / "n2", root / "train" / "n0")
    shutil.copy(before[-1], root / "train" / "n2" / "more.png")
    after = scan_split(root, "seen").paths
    assert {path for path in after if path.parent.name == "n1"} < set(before)
    assert len(after) == 4


def test_single_images_leave_nothing_to_hold_out(image_folder):
    with pytest.raises(DataError, match="no class has two images .* so none can be held out"):
        scan_splits(image_folder({"train": {"n1": 1, "n2": 1}}))


def test_a_folder_of_class_folders_is_for_training_and_validation(image_folder):
    root = image_folder({"train": {"n1": 5, "n2": 5}}) / "train"
    splits = scan_splits(root)
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "seen": 2}


def test_a_class_may_be_called_train(image_folder):
    root = image_folder({"train": {"train": 5, "bus": 5}}) / "train"
    assert scan_split(root, "train").keys == ("bus", "train")


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_a_validation_folder_of_seen_classes_is_no_set_of_unseen_ones(image_folder, name):
    root = image_folder({"train": {"n1": 3, "n2": 3}, name: {"n1": 1, "n2": 2}})
    splits = scan_splits(root)
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "seen": 3}
    assert not splits["seen"].held_out


def test_classes_that_do_not_fit_are_named(image_folder, tmp_path):
    root = image_folder({"train": {"n1": 2}, "val_on_train": {"n1": 1, "n2": 1}})
    with pytest.raises(DataError, match="validation images of the class 'n2', which is not in"):
        scan_splits(root)
    shutil.rmtree(root)
    root = image_folder({"train": {"n1": 2}, "val": {"n1": 1, "n2": 1}})
    with pytest.raises(DataError, match="'n1' among the unseen classes .* and in train: move"):
        scan_splits(root)
