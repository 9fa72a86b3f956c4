"""The student in other formats: features equal to PyTorch's, and a table of their speed."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from distill.cli.main import app
from distill.data.files.image_file import square
from distill.export.image_encoders import fastest
from distill.export.onnx import image_encoder
from distill.export.resize import with_resize
from distill.export.verify import FormatRow, Speed, onnx_features
from distill.models.student import build_student
from distill.runtime import Classifier
from distill.runtime.text_encoder import open_session
from tests.distill.export.test_export import cells


def export(run, out, charm_world, *more):
    words = ["export", run, "--out", out, "--cache", charm_world / "cache", *more]
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_all_formats_at_once(charm_run, charm_world, finished_charm_run, tmp_path):
    openvino = pytest.importorskip("openvino")
    out = tmp_path / "classifier"
    words = ["--format", "openvino", "--format", "torch-export", "--format", "onnx"]
    words += ["--int8", "--max-drop", "100", "--resize-inside"]
    result = export(charm_run, out, charm_world, *words)
    assert result.exit_code == 0, result.output
    rows = {row[0]: row[1:] for row in map(cells, result.stdout.splitlines()) if len(row) == 6}
    assert [*rows][1:] == [
        "PyTorch eager",
        "ONNX Runtime",
        "OpenVINO",
        "torch.export",
        "ONNX Runtime, int8",
        "OpenVINO, int8",
        "ONNX Runtime, resizing",
        "teacher",
    ]
    for name in ("ONNX Runtime", "OpenVINO", "torch.export"):
        assert rows[name][-2:] == rows["PyTorch eager"][-2:]
    assert "fastest here: " in result.stderr
    card = (out / "README.md").read_text()
    assert "fastest here: " in card
    assert "(speed.svg)" in card
    chart = (out / "speed.svg").read_text()
    assert all(f">{name}<" in chart for name in [*rows][1:])

    pixels = finished_charm_run.pixels["unseen"][:5]
    expected = torch.nn.functional.normalize(finished_charm_run.student.encode(pixels), dim=1)
    program = torch.export.load(out / "image_encoder.pt2").module()
    torch.testing.assert_close(program(pixels), expected, rtol=0, atol=1e-4)
    compiled = openvino.compile_model(out / "image_encoder_openvino.xml", "CPU")
    torch.testing.assert_close(
        torch.from_numpy(compiled(pixels.numpy())[0]), expected, rtol=0, atol=2e-2
    )  # by default it computes in what the processor is best at
    photo = np.asarray(Image.new("RGB", (80, 50), (200, 40, 40))).transpose(2, 0, 1)
    session = open_session(out / "image_encoder.onnx")
    assert session.run(None, {"pixels": photo[None]})[0].shape == (1, expected.shape[1])
    assert len(Classifier.load(out).classify([charm_photo(finished_charm_run)])) == 1


def charm_photo(run):
    return run.splits["seen"].paths[0]


def test_a_process_that_made_openvino_formats_survives_signals(finished_charm_run, tmp_path):
    """Two of OpenVINO's cores, ended in their order, leave a signal stack that is unmapped."""
    pytest.importorskip("openvino")
    model = tmp_path / "model.onnx"
    model.write_bytes(image_encoder(finished_charm_run.student, 32))
    program = (
        "import gc, signal, sys\n"
        "from pathlib import Path\n"
        "from distill.export.formats import openvino_format\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "model = Path(sys.argv[1]).read_bytes()\n"
        "formats = [openvino_format(model), openvino_format(model)]\n"
        "while formats:\n"
        "    del formats[0]\n"
        "    gc.collect()\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
    )
    command = [sys.executable, "-c", program, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_missing_openvino_is_a_one_line_error(charm_run, charm_world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not there
    result = export(charm_run, tmp_path / "x", charm_world, "--format", "openvino")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "distill: --format openvino needs the package openvino: install enrich-distill[openvino]"
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("sides", [(48, 48), (300, 201), (95, 240), (31, 17), (400, 49)])
def test_resizing_in_the_graph_gives_the_pixels_of_pillow(sides):
    """Larger and smaller photos, and odd margins."""
    student = build_student("test_efficientnet", 8, image_size=48)
    student(torch.rand(4, 3, 48, 48))
    plain = image_encoder(student, 48)
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize(sides, Image.Resampling.BICUBIC)
    whole = torch.from_numpy(np.array(photo).transpose(2, 0, 1)).unsqueeze(0)
    resized = torch.from_numpy(square(photo, 48)).unsqueeze(0)
    found = onnx_features(open_session(with_resize(plain, 48)), whole)
    expected = onnx_features(open_session(plain), resized)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # a level of 255 here and there


def test_the_fastest_format_is_named():
    onnx = FormatRow("ONNX Runtime", 4.0, Speed(2.0, 100.0), 80.0, 60.0)
    other = FormatRow("OpenVINO", 4.0, Speed(1.0, 90.0), 80.0, 60.0)
    assert fastest([onnx, other], other) == (
        "fastest here: OpenVINO for one image, ONNX Runtime in batches"
    )
    assert fastest([onnx, other], onnx) == (
        "fastest here: OpenVINO for one image, ONNX Runtime in batches; the classifier uses ONNX "
        "Runtime, which takes 2.0 times as long"
    )
    near = replace(other, speed=Speed(1.96, 90.0))
    assert fastest([onnx, near], onnx).endswith(
        "; the classifier uses ONNX Runtime, which is as fast for one image"
    )
