"""The model card of a classifier folder (README.md), in the format of the Hugging Face Hub."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from contract import ForecastValue, Report, TextSource
from distill.errors import counted
from distill.export.verify import FormatRow
from distill.runtime.manifest import INT8_ENCODER, SPEED_CHART, Manifest

CHART: Final = f"![Accuracy against milliseconds for one image]({SPEED_CHART})"

ORT_WEB: Final = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.bundle.min.mjs"


def model_card(
    manifest: Manifest,
    report: Report,
    sources: Sequence[TextSource],
    rows: Sequence[FormatRow],
    remarks: Sequence[str] = (),
) -> str:
    """The model card in Markdown.

    `sources` are those of the release, `remarks` are lines about the formats in `rows`.
    """
    seen = sum(entry.seen for entry in manifest.classes)
    sections = (
        _front_matter(manifest),
        f"# {manifest.release.label_set} classifier",
        f"A {manifest.student.name} ({manifest.student.parameters:,} parameters) that classifies "
        f"images into {len(manifest.classes)} classes: {seen} that it was trained on, and "
        f"{len(manifest.classes) - seen} that it recognises by their texts only. A class can be "
        "added by a description, without training. It was distilled from the vision-language model "
        f"`{manifest.teacher.name}` with the method of Li et al. (ICCV 2023, arXiv 2307.03135).",
        "## Accuracy\n\n" + _accuracies(manifest, report),
        "\n\n".join(("## Speed", "Measured at export.", format_table(rows), *remarks, CHART)),
        "## Use\n\n" + _usage(manifest),
        "## Data\n\n" + _data(manifest, report, sources),
        "## Licences\n\nThe student's weights derive from the teacher's outputs and the training "
        "images; the texts come from the language model named above. Check the licences of all "
        "three before you publish this classifier.",
    )
    return "\n\n".join(sections) + "\n"


def published_name(model: str) -> str:
    """The name of an open_clip `model`; of a model in a local folder only the folder's name."""
    scheme, _, folder = model.partition(":")
    return f"{scheme}:{Path(folder).resolve().name}" if scheme == "local-dir" else model


def _front_matter(manifest: Manifest) -> str:
    fields = {
        "library_name": "onnxruntime",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["image-classification", "distillation", "onnx"],
        "base_model": None,
    }
    if manifest.teacher.name.startswith("hf-hub:"):
        fields["base_model"] = manifest.teacher.name.removeprefix("hf-hub:")
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items() if value is not None]
    return "\n".join(("---", *lines, "---"))


def _accuracies(manifest: Manifest, report: Report) -> str:
    numbers = manifest.accuracies
    parts = [_accuracy_table(manifest, report)]
    if "unseen" in numbers:
        parts.append(
            f"Harmonic mean of the last two rows: {numbers['joint_harmonic_mean']:.1f} with the "
            f"stored bias of {manifest.calibration.seen_bias:.3f} against seen classes; area under "
            f"the seen-unseen curve (AUSUC): {numbers['joint_ausuc'] / 100:.3f}."
        )
    elif report.forecast is None:
        parts.append(
            "Without images of unseen classes, the accuracy on classes that are added by a "
            "description and the detection of unknown images were not measured."
        )
    parts.append(_precision(manifest))
    parts.append(_probabilities(manifest))
    if manifest.look_alikes and "unseen" in numbers:
        parts.append(_look_alikes(manifest))
    if forecast := _forecast(report):
        parts.append(forecast)
    return "\n\n".join(parts)


def _accuracy_table(manifest: Manifest, report: Report) -> str:
    images: dict[str, tuple[int, int]] = {
        row.split: (row.images, row.classes) for row in report.accuracies
    }
    joint = [f"joint_{split}" for split in ("seen", "unseen")]
    lines = ["| top-1 % | | images | classes |", "| --- | ---: | ---: | ---: |"]
    for name in [name for name in ("seen", "unseen", *joint) if name in manifest.accuracies]:
        count, classes = images[name.removeprefix("joint_")]
        title = f"{name} classes only"
        if name in joint:
            title = f"{name.removeprefix('joint_')} images, all classes competing"
            classes = len(manifest.classes)
        top1 = manifest.accuracies[name]
        deviation = 1.96 * (top1 * (100 - top1) / count) ** 0.5
        lines.append(f"| {title} | {top1:.1f} ± {deviation:.1f} | {count:,} | {classes} |")
    return "\n".join(lines)


def _precision(manifest: Manifest) -> str:
    """What the intervals are, and which figures are not those of the encoder in use."""
    without = "; the harmonic mean and AUSUC have none" if "unseen" in manifest.accuracies else ""
    intervals = f"Intervals are 95 % confidence intervals over images{without}."
    if manifest.image_encoder != INT8_ENCODER:
        return intervals
    return (
        f'{intervals} The encoder in use is int8: the rows "classes only" were measured with it, '
        "and all other figures of this section with the float32 student."
    )


def _probabilities(manifest: Manifest) -> str:
    calibration = manifest.calibration
    fitted = (
        f"Probabilities: temperature {calibration.temperature:.4f}, fitted on the seen validation "
        f"images; expected calibration error {calibration.ece_after:.1f} % (with the training "
        f"temperature: {calibration.ece_before:.1f} %). An image whose best cosine is below "
        f"{calibration.unknown_threshold:.3f} is reported as unknown; this threshold rejects 5 % "
        "of the images of seen classes."
    )
    if "unseen" not in manifest.accuracies:
        return fitted
    return (
        f"{fitted} Compared with the seen classes only, it accepts "
        f"{calibration.unknown_fpr_at_95_tpr:.0f} % of the images of unseen classes (AUROC "
        f"{calibration.unknown_auroc:.3f})."
    )


def _look_alikes(manifest: Manifest) -> str:
    """How well look-alikes and other scores detect unknown images."""
    calibration = manifest.calibration
    lines = ["| score for unknown images | AUROC | FPR at 95 % TPR |", "| --- | ---: | ---: |"]
    lines += [
        f"| {row.score} | {row.auroc:.3f} | {row.fpr_at_95_tpr:.1f} % |"
        for row in calibration.unknown_scores
    ]
    rejected = (
        f"An image that is more similar to one of {len(manifest.look_alikes)} look-alikes than to "
        f"any class is also reported as unknown. Compared with the seen classes only, this rejects "
        f"{calibration.look_alikes_reject_seen:.1f} % of seen and "
        f"{calibration.look_alikes_reject_unseen:.1f} % of unseen images. "
        "A cosine threshold that rejects as many seen images rejects "
        f"{calibration.threshold_rejects_unseen:.1f} % of unseen ones."
    )
    return rejected + "\n\n" + "\n".join(lines)


def _forecast(report: Report) -> str | None:
    """The forecast of the accuracy on new classes, if the run has one."""
    if report.forecast is None:
        return None
    rows = "; ".join(
        f"{point.classes} new classes: {_range(point.alone)} among them, "
        f"{_range(point.joint_unseen)} among all"
        for point in report.forecast.points
    )
    return (
        "Forecast for classes that are added by a description, top-1 % of their images with "
        f"95 % intervals: {rows}. Estimated by a second, shorter training without "
        f"{report.forecast.left_out} of the seen classes; valid for classes that are as similar to "
        "each other, and as well known to the teacher, as the seen ones."
    )


def _range(value: ForecastValue) -> str:
    return f"{value.value:.0f} ({value.low:.0f} to {value.high:.0f})"


def format_table(rows: Sequence[FormatRow]) -> str:
    """The table of formats in Markdown."""
    lines = [
        "| format | MB | ms at batch 1 | images/s at batch 32 | seen top-1 % | unseen top-1 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        size = "" if row.megabytes is None else f"{row.megabytes:.1f}"
        unseen = "–" if row.unseen is None else f"{row.unseen:.1f}"
        lines.append(
            f"| {row.name} | {size} | {row.speed.ms:.1f} | {row.speed.images_per_second:,.0f} | "
            f"{row.seen:.1f} | {unseen} |"
        )
    return "\n".join(lines)


def _usage(manifest: Manifest) -> str:
    size = manifest.preprocessing.image_size
    return f"""With the package `enrich-distill[runtime]`, without torch:

```python
from distill.runtime import Classifier

classifier = Classifier.load(".")
classifier.add("okapi", "a horse-like animal with striped legs")
print(classifier.classify(["photo.jpg"])[0].best)
```

With ONNX Runtime only (`Classifier` resizes before cropping, so pixels may differ slightly):

```python
import json, pathlib
import numpy as np, onnxruntime, safetensors.numpy
from PIL import Image, ImageOps
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
pixels = ImageOps.fit(photo, ({size}, {size}), Image.BICUBIC)
session = onnxruntime.InferenceSession("image_encoder.onnx")
features = session.run(None, {{"pixels": np.asarray(pixels).transpose(2, 0, 1)[None]}})[0]
manifest = json.loads(pathlib.Path("classifier.json").read_text())
bank = next(name for name in manifest["files"] if name.startswith("text_bank"))
cosines = (features @ safetensors.numpy.load_file(bank)["tensor"].T)[0].tolist()
print({{entry["name"]: cosine for entry, cosine in zip(manifest["classes"], cosines)}})
```

In C++:

```cpp
#include <onnxruntime_cxx_api.h>  // and <array>, <vector>; what follows belongs into a function

Ort::Env env;
Ort::Session session(env, "image_encoder.onnx", Ort::SessionOptions{{}});
std::array<int64_t, 4> shape{{1, 3, {size}, {size}}};
std::vector<uint8_t> pixels(3 * {size} * {size});  // RGB, channels first: fill it
auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
auto input = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), &shape[0], 4);
const char *inputs[] = {{"pixels"}}, *outputs[] = {{"features"}};
auto features = session.Run(Ort::RunOptions{{}}, inputs, &input, 1, outputs, 1);
```

In a browser, for a square `photo` (a File or Blob). `docs/browser` of enrich-distill is a complete
page, which resizes and crops like Pillow and shows class names:

```js
import * as ort from "{ORT_WEB}";
const session = await ort.InferenceSession.create("image_encoder.onnx");
const canvas = new OffscreenCanvas({size}, {size}).getContext("2d");
canvas.drawImage(await createImageBitmap(photo), 0, 0, {size}, {size});
const rgba = canvas.getImageData(0, 0, {size}, {size}).data;
const planes = [0, 1, 2].flatMap((channel) => [...rgba].filter((_, i) => i % 4 === channel));
const pixels = new ort.Tensor("uint8", Uint8Array.from(planes), [1, 3, {size}, {size}]);
const {{ features }} = await session.run({{ pixels }});
```"""


def _data(manifest: Manifest, report: Report, sources: Sequence[TextSource]) -> str:
    release, text = manifest.release, manifest.text
    origin = Counter(entry.origin for entry in manifest.classes)
    prompt = f"prompt `{text.prompt}`, version {text.prompt_version}" if text.prompt else "none"
    images = (
        {count.split: count.images for count in report.preflight.splits} if report.preflight else {}
    )
    lines = [
        f"- Training images: {images.get('train', 0):,}.",
        f"- Texts: release `{release.name}` of the label set `{release.label_set}`, SHA-256 "
        f"`{release.hash}`; text strategy `{text.strategy}`; {prompt}.",
        f"- Classes: {', '.join(f'{count} from {name}' for name, count in origin.items())}.",
        f"- Teacher: `{manifest.teacher.name}`, SHA-256 of its weights "
        f"`{manifest.teacher.fingerprint}`.",
    ]
    if sources:
        lines.insert(2, f"- Texts written by: {_writers(sources)}.")
    return "\n".join(lines)


def _writers(sources: Sequence[TextSource]) -> str:
    """Who wrote the texts of a release, and what the answers of language models cost."""
    # An answer may serve several labels; answers of imported releases have no id.
    answers = {source.generation_id or f"{i}": source for i, source in enumerate(sources)}
    writers: defaultdict[tuple[str, str | None], list[TextSource]] = defaultdict(list)
    for answer in answers.values():
        writers[answer.source, answer.resolved_model or answer.requested_model].append(answer)
    return "; ".join(
        _writer(source, f"`{model}`" if model else "a model without a name", group)
        for (source, model), group in writers.items()
    )


def _writer(source: str, model: str, answers: Sequence[TextSource]) -> str:
    count = counted(len(answers), "answer")
    if source == "model":
        return f"{model}, {count}, {_cost(model, answers)}"
    if source == "replay":
        return f"{model}, {count} read from a file"
    return f"a person, {count}" if source == "person" else f"an import, {count}"


def _cost(model: str, answers: Sequence[TextSource]) -> str:
    known = [answer.cost_usd for answer in answers if answer.cost_usd is not None]
    if not known:
        return f"cost unknown: {model} had no price"
    total = sum(known)
    amount = "less than 0.001 USD" if 0 < total < 0.0005 else f"{total:.3f} USD"
    unknown = len(answers) - len(known)
    without = f" without {unknown} whose cost is unknown" if unknown else ""
    return f"for {amount}{without} (rejected answers not counted)"
