"""The teacher's features of stored views: of which pixels they are, and how they are kept."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from distill.data.augment import apply_views
from distill.data.files.tensor_file import DamagedFile, read_tensor, write_rows
from distill.data.pixels import load_pixels
from distill.data.splits import scan_split
from distill.embeddings.image_features import image_features, view_feature_rows
from distill.models.teacher import load_teacher


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return load_teacher(tiny_teacher)


def test_the_teacher_sees_a_rotated_photo_as_its_upright_twin(teacher, tmp_path):
    folder = tmp_path / "train" / "n1"
    folder.mkdir(parents=True)
    image = Image.linear_gradient("L").convert("RGB")
    image.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "b.png", exif=exif)
    shutil.copytree(tmp_path / "train", tmp_path / "val_on_train")  # so that none is held out
    features = image_features(teacher, scan_split(tmp_path, "train"), cache=None)
    torch.testing.assert_close(features[0], features[1])


@pytest.fixture
def split(image_folder):
    return scan_split(
        image_folder({"train": {"n1": 3, "n2": 2}, "val_on_train": {"n2": 1}}), "train"
    )


def test_each_stored_view_has_the_teachers_feature_of_those_pixels(teacher, split, tmp_path):
    params, rows = view_feature_rows(teacher, split, 3, cache=tmp_path)
    features = rows.read()
    assert params.shape == (5, 3, 6) and features.shape == (5, 3, 32)
    pixels = torch.from_numpy(load_pixels(split, teacher.image_size, tmp_path))
    for view in range(3):
        images = apply_views(pixels, params[:, view])
        expected = teacher.encode_image(
            (images - 0.5) / 0.5, normalize=False
        )  # the tiny teacher's mean and std
        torch.testing.assert_close(features[:, view], expected, atol=2e-2, rtol=2e-2)


def test_views_are_encoded_once_and_a_damaged_cache_is_made_again(teacher, split, tmp_path):
    params, rows = view_feature_rows(teacher, split, 2, cache=tmp_path)
    features = rows.read()
    (path,) = tmp_path.glob("views-*")
    calls = []
    again, rows = view_feature_rows(
        teacher, split, 2, cache=tmp_path, progress=lambda *_: calls.append(1)
    )
    rows.read()
    assert again.equal(params) and not calls
    expected = features.clone()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    assert view_feature_rows(teacher, split, 2, cache=tmp_path)[1].read().equal(expected)


def test_features_of_another_precision_are_not_reused(tiny_teacher, split, tmp_path):
    """As where a GPU and a CPU share a cache, or `precision` was changed."""
    found = {}
    for precision in ("bfloat16", "float32", "bfloat16"):
        model = load_teacher(tiny_teacher, precision=precision)
        expected = image_features(model, split, cache=None)
        features = image_features(model, split, cache=tmp_path)
        torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)
        views = view_feature_rows(model, split, 2, cache=tmp_path)[1].read()
        assert features.equal(found.setdefault(precision, (features, views))[0])
        assert views.equal(found[precision][1])
    for single, half in zip(found["float32"], found["bfloat16"], strict=True):
        assert not torch.allclose(single, half, atol=1e-5)
    assert len(list(tmp_path.glob("features-*"))) == len(list(tmp_path.glob("views-*"))) == 2


def test_rows_written_one_by_one_are_a_safetensors_file(tmp_path):
    rows = torch.randn(5, 2, 3)
    path = tmp_path / "rows.safetensors"
    write_rows(path, iter(rows.split(2)), rows.shape)
    assert load_file(path)["tensor"].equal(rows)
    assert read_tensor(path)[0].equal(rows)
    with pytest.raises(OSError, match="a disk"):
        write_rows(path, broken(rows), rows.shape)
    assert read_tensor(path)[0].equal(rows)
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedFile):
        read_tensor(path)


def broken(rows):
    yield rows[:2]
    raise OSError("a disk")
