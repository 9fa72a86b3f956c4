"""A classifier folder as one file."""

import zipfile

from distill.data.files.classifier_zip import zip_folder


def test_equal_folders_give_equal_files_with_their_files_at_the_root(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "image_encoder.onnx").write_bytes(bytes(100_000))
        (folder / "classifier.json").write_text("{}" * 1000)
        zip_folder(folder, tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["classifier.json", "image_encoder.onnx"]
        packed, dense = archive.infolist()
        assert packed.compress_size < packed.file_size and dense.compress_size == dense.file_size
        assert archive.read("image_encoder.onnx") == bytes(100_000)
