"""The last step of a job: exports the student as a classifier folder.

Since the training may have taken days, an export that fails is logged in one line, and the job
succeeds without a classifier.
"""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contract import Report
from distill.data.files.classifier_zip import FOLDER, MANIFEST
from distill.data.pixels import Progress
from distill.errors import Interrupted
from distill.evaluation.score_norm import FILE as SCORE_NORM_FILE
from distill.evaluation.score_norm import ScoreNorm
from distill.models.student import Student
from distill.pipeline.results import EVALUATED, RunInputs

if TYPE_CHECKING:
    from distill.export.classifier_folder import Exported

REQUIRED_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime", "tokenizers", "ftfy")


def export_classifier(
    run: RunInputs,
    student: Student,
    report: Report,
    out: Path,
    *,
    log: Callable[[str], None],
    progress: Progress,
) -> None:
    """Write the classifier folder of a trained student below `out`, or log why this failed.

    Raises:
        Interrupted: raised by `progress`.
    """
    folder = out / FOLDER
    if missing := [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]:
        log(
            f"no classifier was exported, {' and '.join(missing)} is not installed: install "
            f"enrich-distill[worker] and run `distill export {out} --out FOLDER`"
        )
        return
    try:
        exported = _export(run, student, report, folder, progress)
    except Interrupted:
        raise
    except Exception as error:
        log(
            f"no classifier was exported: {' '.join(str(error).split()) or type(error).__name__}; "
            f"after fixing this, run `distill export {out} --out FOLDER`"
        )
        return
    eager, onnx, *_ = exported.rows
    unseen = "" if onnx.unseen is None else f", unseen {onnx.unseen:.1f} %"
    log(
        f"classifier: top-1 seen {onnx.seen:.1f} %{unseen}, equal to PyTorch; "
        f"{onnx.speed.ms:.1f} ms per image, PyTorch {eager.speed.ms:.1f} ms"
    )


def check_classifier(out: Path) -> None:
    """Raise ClassifierError if the folder of a run has a classifier that cannot be replaced, since
    classes or files were added to it.
    """
    if (out / FOLDER / MANIFEST).is_file():
        from distill.runtime.write_folder import (  # of the extra `runtime`
            check_nothing_added,
            check_target,
        )

        check_target(out / FOLDER)
        check_nothing_added(out / FOLDER)


def remove_classifier(out: Path) -> None:
    """Delete the classifier of an earlier training from the folder of a run."""
    if (out / FOLDER / MANIFEST).is_file():
        shutil.rmtree(out / FOLDER, ignore_errors=True)


def _export(
    run: RunInputs, student: Student, report: Report, folder: Path, progress: Progress
) -> "Exported":
    from distill.export.classifier_folder import export_run  # of the extra `export`
    from distill.export.finished_run import FinishedRun

    evaluated = [split for split in EVALUATED if split in run.inputs.splits]
    finished = FinishedRun(
        report=report,
        release=run.release,
        bank=run.bank,
        student=student.cpu(),
        teacher=run.inputs.teacher,
        train=run.inputs.splits["train"],
        splits={split: run.inputs.splits[split] for split in evaluated},
        pixels={split: run.pixels[split] for split in evaluated},
        score_norm=ScoreNorm.load(folder.parent / SCORE_NORM_FILE),
    )
    return export_run(finished, folder, cache=run.inputs.cache, progress=progress)
