"""The command that hands a training to Ray."""

import sys

from distill.on_ray import submit


def test_without_ray_its_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)  # as if it were not there
    options = ["--address", "http://127.0.0.1:8265", "--processes", "2", "--out", str(tmp_path)]
    assert submit.main(options) == 1
    said = "distill: --ray needs the extra `ray`: pip install 'enrich-distill[ray]'\n"
    assert capsys.readouterr().err == said
