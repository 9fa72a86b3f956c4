"""The benchmark of streamed pixels, on few photos."""

from benchmarks.speed import streaming


def test_memory_first_step_and_both_rates_are_shown(tmp_path, capsys):
    streaming.main(
        ["--images", "300", "--rate-images", "200", "--student", "test_resnet", "--rounds", "1",
         "--folder", str(tmp_path)]
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "256 of 300 images: peak" in shown and "first step after" in shown
    assert "streamed by cached:" in shown
