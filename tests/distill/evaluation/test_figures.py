"""The joint setting and the calibration of a run: in its report and at the command line."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from distill.cli.main import app
from distill.data.splits import scan_split
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError
from distill.evaluation.figures import calibrate, joint_accuracy
from distill.evaluation.report.training_report import read_report
from distill.evaluation.score_norm import FILE as SCORE_NORM
from distill.evaluation.score_norm import ScoreNorm
from tests.distill.conftest import DEMO


def evaluate(run, world, *options):
    arguments = ["evaluate", "--data", world, "--teacher", f"local-dir:{DEMO / 'teacher'}"]
    arguments += ["--cache", world / "cache", "--text-bank", run / "text_bank.safetensors"]
    words = list(map(str, (*arguments, *options)))
    return CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_report_has_the_joint_accuracy_of_seen_and_unseen_classes(charm_run):
    report = read_report(charm_run)
    rows = {(row.model, row.text, row.bias == 0): row for row in report.joint}
    alone = {(row.model, row.text, row.split): row.top1 for row in report.accuracies}
    for text in ("name", "name+description", "shuffled"):
        row = rows["teacher", text, True]
        assert row.seen <= alone["teacher", text, "seen"]
        assert row.unseen <= alone["teacher", text, "unseen"]
        assert row.best_harmonic_mean >= row.harmonic_mean
    assert rows["teacher", "name+description", True].harmonic_mean > 60
    assert report.joint[-1].bias == report.calibration.seen_bias
    page = (charm_run / "report.html").read_text()
    assert "Seen and unseen classes together" in page
    assert "expected calibration error" in page and "Reliability: accuracy of" in page


def test_a_report_has_the_calibration_of_its_probabilities(charm_run):
    calibration = read_report(charm_run).calibration
    assert calibration.ece_after < calibration.ece_before
    cosine, softmax, normalised = calibration.unknown_scores
    assert (cosine.score, softmax.score, normalised.score) == ("cosine", "softmax", "normalised")
    assert calibration.unknown_auroc == cosine.auroc
    assert calibration.unknown_fpr_at_95_tpr == cosine.fpr_at_95_tpr
    page = (charm_run / "report.html").read_text()
    for row in calibration.unknown_scores:
        assert 0 <= row.auroc <= 1
        assert f"<th>{row.score}</th><td>{row.auroc:.3f}</td>" in page
    assert -1 <= calibration.unknown_threshold <= 1


@pytest.mark.parametrize("of_student", [True, False])
def test_evaluate_prints_the_joint_accuracy_of_the_report(of_student, charm_run, charm_world):
    options = ("--student", charm_run) if of_student else ()
    found = json.loads(evaluate(charm_run, charm_world, "--joint", "--json", *options).stdout)
    report = read_report(charm_run)
    expected = (
        report.joint[-1]
        if of_student
        else next(
            row for row in report.joint if (row.model, row.text) == ("teacher", "name+description")
        )
    )
    for name in ("model", "text", "bias", "seen", "unseen", "harmonic_mean", "ausuc", "classes"):
        assert found[name] == pytest.approx(getattr(expected, name)), name
    other = evaluate(charm_run, charm_world, "--joint", "--seen-bias", "9", "--json", *options)
    assert json.loads(other.stdout)["seen"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seen-bias", "0.1"), "--seen-bias needs --joint: give both"),
        (
            ("--joint", "--normalised"),
            "--joint cannot be combined with --normalised: leave one of them out",
        ),
    ],
)
def test_incompatible_options_are_a_one_line_error(options, message, charm_run, charm_world):
    result = evaluate(charm_run, charm_world, "--student", charm_run, *options)
    assert result.exit_code == 1
    assert result.stderr == f"distill: {message}\n"


def test_a_text_bank_of_another_dimension_is_a_one_line_error(charm_run, charm_world, tmp_path):
    bank = TextBank.load(charm_run / "text_bank.safetensors")
    width = bank.features.shape[1]
    replace(bank, features=bank.features[:, :8]).save(tmp_path / "bank.safetensors")
    options = ("--joint", "--text-bank", tmp_path / "bank.safetensors")
    result = evaluate(charm_run, charm_world, *options)
    assert result.exit_code == 1
    assert result.stderr == (
        f"distill: the image features have {width} dimensions and the texts have 8: make both "
        "with the same teacher\n"
    )


def test_a_calibration_of_features_that_are_not_finite_is_refused(charm_run, charm_world):
    bank = TextBank.load(charm_run / "text_bank.safetensors")
    splits = {name: scan_split(charm_world, name) for name in ("seen", "unseen")}
    features = {
        name: torch.full((len(split), bank.features.shape[1]), torch.nan)
        for name, split in splits.items()
    }
    norm = ScoreNorm.load(charm_run / SCORE_NORM)
    with pytest.raises(DataError, match="NaN or infinity"):
        calibrate(features, splits, bank, temperature=0.1, seen_bias=0, norm=norm)
    with pytest.raises(DataError, match="NaN or infinity"):
        joint_accuracy("student", features, splits, bank)
