"""The report page: its content, that it loads no other file, and that labels are escaped."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from contract import (
    Accuracy,
    ClassMargin,
    ConfusablePair,
    Epoch,
    Imitation,
    Preflight,
    PulledApart,
    Report,
    SplitCount,
    TextDiagnostics,
    TrainConfig,
)
from distill.errors import DataError
from distill.evaluation.report.images import similarity_order
from distill.evaluation.report.training_report import headline, write_report

BIRDS = ("harlequin duck", "surf scoter", "mallard", "barn owl", "tawny owl", "puffin")
HOSTILE = "<img src=x onerror=alert(1)>"


def unit_rows(classes: int, spread: float, seed: int = 0) -> np.ndarray:
    """Features of classes in groups of three: the smaller `spread`, the more alike they all are."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal(((classes + 2) // 3, 64))[np.arange(classes) // 3]
    rows = 1 + spread * (groups + 0.7 * rng.standard_normal((classes, 64)))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def similarities(classes: int) -> dict[str, np.ndarray]:
    banks = {"name": unit_rows(classes, 0.6), "name+description": unit_rows(classes, 1.5)}
    return {text: rows @ rows.T for text, rows in banks.items()}


def accuracy_rows(values: dict[tuple[str, str], tuple[float, float]]) -> tuple[Accuracy, ...]:
    sizes = {"seen": (3000, 120), "unseen": (2400, 80)}
    return tuple(
        Accuracy(
            model=model,
            text=text,
            split=split,
            top1=top1,
            mean_per_class=top1 - 0.1,
            images=sizes[split][0],
            classes=sizes[split][1],
        )
        for (model, text), pair in values.items()
        for split, top1 in zip(("seen", "unseen"), pair, strict=True)
    )


MEASURED = {
    ("teacher", "name"): (34.0, 23.4),
    ("teacher", "name+description"): (45.7, 27.4),
    ("teacher", "shuffled"): (12.3, 9.8),
    ("student", "name"): (22.0, 7.1),
    ("student", "name+description"): (34.7, 11.7),
    ("student", "shuffled"): (9.1, 4.9),
}


def example(names=BIRDS, values=MEASURED, epochs=12, strategy="name+description") -> Report:
    """A report with the numbers of a real run."""
    photo = (
        "a photo of {} . A small sea duck with slate-blue plumage, chestnut sides and white bars"
    )
    return Report(
        config=TrainConfig(
            data="images", teacher="local-dir:teacher", text_strategy=strategy, epochs=12
        ),
        release_id=3,
        release_hash="4be2" * 16,
        label_set="tiny-imagenet",
        teacher="hf-hub:bench/lite0-minilm",
        teacher_fingerprint="9f1c" * 16,
        teacher_dim=512,
        student_parameters=11_439_168,
        epochs=tuple(
            Epoch(
                epoch=n,
                learning_rate=1e-3 * (1 - n / 13),
                loss=14 * 0.85**n + 6,
                losses={
                    "cls": 4.8 * 0.93**n,
                    "mse": 1.9 * 0.95**n,
                    "im_cst": 4.7 * 0.92**n,
                    "vlprox": 1.4 * 0.9**n,
                },
                seen_top1=35 * (1 - 0.8**n),
                seconds=21.5,
                images_per_second=558,
            )
            for n in range(1, epochs + 1)
        ),
        accuracies=accuracy_rows(values),
        imitation=tuple(
            Imitation(
                split=split,
                images=images,
                m_rel=m_rel,
                m_neigh=0.3125,
                m_neigh_k=10,
                m_vlalign=13.37,
                m_vlalign_normalised=13.37 / 45,
                m_vlalign_k=10,
                feature_mse=1.234,
                mean_angle=67.8,
            )
            for split, images, m_rel in (
                ("train", 12_000, 0.123),
                ("seen", 3000, 0.0987),
                ("unseen", 2400, 0.077),
            )
        ),
        diagnostics=tuple(
            TextDiagnostics(
                text=bank_text,
                classes=len(names),
                mean_cosine=mean,
                mean_nearest_cosine=mean + 0.4,
                effective_rank=rank,
                singular_values=tuple(3 * np.arange(1, len(names)) ** -slope),
                confusable=tuple(
                    ConfusablePair(a=names[n], b=names[n + 1], cosine=0.8 - n / 20)
                    for n in range(min(8, len(names) - 1))
                ),
                margins=tuple(
                    ClassMargin(name=name, margin=0.2 + n / 1000) for n, name in enumerate(names)
                ),
            )
            for bank_text, mean, rank, slope in (
                ("name", 0.132, 81.4, 0.9),
                ("name+description", 0.011, 120.2, 0.6),
                ("shuffled", 0.012, 119.8, 0.62),
            )
            if any(bank_text == text for _, text in values)
        ),
        pulled_apart=tuple(
            PulledApart(
                a=names[n],
                b=names[n + 1],
                before=0.93 - n / 25,
                after=0.12 - n / 30,
                text_a=photo.format(names[n]),
                text_b=photo.format(names[n + 1]),
            )
            for n in range(min(6, len(names) - 1))
        ),
        flagged_texts=("n01847000",),
        versions={"python": "3.11.9", "torch": "2.9.0", "timm": "1.0.22"},
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        finished_at=datetime(2026, 1, 2, 3, 34, 5, tzinfo=UTC),
    )


class Page(HTMLParser):
    """Tags, what they link to, and the text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_data(self, data):
        self.text += data.replace("\u00a0", " ")


def write(tmp_path, report: Report, names=BIRDS) -> str:
    write_report(report, tmp_path, similarity=similarities(len(names)), names=names)
    return (tmp_path / "report.html").read_text()


def test_the_report_as_json_is_read_back_as_it_was(tmp_path):
    report = example()
    write(tmp_path, report)
    assert Report.model_validate_json((tmp_path / "report.json").read_bytes()) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_page_loads_nothing_from_anywhere(tmp_path):
    page = Page(write(tmp_path, example()))
    assert page.links and all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in page.text and "url(http" not in page.text


def test_the_page_shows_each_accuracy_of_the_report(tmp_path):
    text = Page(write(tmp_path, example())).text
    for pair in MEASURED.values():
        for value in pair:
            assert f"{value:.1f} %" in text


def test_the_page_shows_how_closely_the_student_follows_the_teacher(tmp_path):
    text = Page(write(tmp_path, example())).text
    for value in ("12.3 %", "9.9 %", "7.7 %", "31.2 %", "13.37", "29.7 %", "1.234", "67.8°"):
        assert value in text
    assert "10 nearest images" in text and "10 nearest texts" in text
    assert "narrowestmargin" in text and "0.200" in text


def test_the_page_shows_preflight_stored_views_and_learned_weights(tmp_path):
    report = example()
    found = Preflight(
        splits=(SplitCount(split="train", images=1200, classes=3, fewest=300, most=500),),
        unreadable=(),
        without_text=(),
        teacher_sample=512,
        teacher_top1=45.67,
        chance=33.33,
    )
    last = report.epochs[-1].model_copy(update={"weights": {"cls": 1.25, "im_cst": 0.5}})
    report = report.model_copy(
        update={
            "preflight": found,
            "epochs": (*report.epochs[:-1], last),
            "config": report.config.model_copy(update={"teacher_views": 4}),
        }
    )
    text = Page(write(tmp_path, report)).text
    assert "train: 1,200 images of 3 classes, 300 to 500 per class" in text
    assert "top-1 of the teacher 45.7 % on 512 seen images (chance: 33.3 %)" in text
    assert "4 stored for each image" in text
    assert "L_cls 1.25, L_im-cst 0.50." in text
    assert "of the clean images" in Page(write(tmp_path, example())).text


def test_charts_take_their_colours_from_the_page_and_share_no_ids(tmp_path):
    source = write(tmp_path, example())
    charts = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(charts) == 5  # losses, seen accuracy, two heat maps, spectrum
    defined = set(re.findall(r"(--[a-z0-9-]+):", source))
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", source)) <= defined
    for chart in charts:
        ElementTree.fromstring(chart)
        assert "mathdefault" not in chart
    placed = [set(re.findall(r'\bid="([^"]+)"', chart)) for chart in charts]
    assert all(not one & other for place, one in enumerate(placed) for other in placed[place + 1 :])


def test_html_in_a_label_is_escaped_everywhere(tmp_path):
    names = (HOSTILE, "$\\alpha_{", "$x$ & </svg><script>", *BIRDS[3:])
    source = write(tmp_path, example(names), names)
    page = Page(source)
    assert "onerror" not in page.attributes and "script" not in page.tags
    assert page.tags.count("img") == 0
    # A pair's heading and text, the last table, the order of classes; cut short in two heat maps.
    assert page.text.count(HOSTILE) == 4
    assert page.text.count(f"{HOSTILE[:23]}…") == 2
    assert source.count("$\\alpha_{</text>") == 2


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (
            {"name": 7.1, "name+description": 11.7, "shuffled": 4.9},
            "On 80 classes never seen in training, descriptions raised the student's accuracy by "
            "4.6 points, from 7.1 % with plain names to 11.7 %. The same texts, shuffled over the "
            "classes, reach 4.9 %.",
        ),
        (
            {"name": 11.7, "name+description": 7.1, "shuffled": 4.9},
            "descriptions lowered the student's accuracy by 4.6 points, from 11.7 % with plain "
            "names to 7.1 %",
        ),
        (
            {"name": 7.1, "name+description": 7.9, "shuffled": 4.9},
            "descriptions made no significant difference to the student: from 7.1 %",
        ),
        (
            {"name": 7.1, "name+description": 11.7, "shuffled": 11.2},
            "so the gain does not come from their content.",
        ),
    ],
)
def test_the_headline_gives_the_gain_from_enrichment(student, sentence):
    values = {("student", text): (30.0, top1) for text, top1 in student.items()}
    assert sentence in headline(example(values=values))


def test_a_run_on_bare_names_claims_nothing_about_enrichment(tmp_path):
    values = {("teacher", "name"): (34.0, 23.4), ("student", "name"): (27.4, 7.1)}
    report = example(values=values, strategy="name")
    names_only = {"name": similarities(len(BIRDS))["name"]}
    write_report(report, tmp_path, similarity=names_only, names=BIRDS)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Trained only on names, the student recognises 7.1 %" in text
    assert "before" not in text and "shuffled control" not in text


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_report_of_few_epochs_has_a_page_too(tmp_path, epochs):
    text = Page(write(tmp_path, example(epochs=epochs))).text
    assert ("No epoch was trained" in text) == (epochs == 0)
    assert "11.7 %" in text


def test_like_classes_are_neighbours_in_the_heat_map():
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(30)
    rows = unit_rows(30, 1.5)[shuffled]
    order = similarity_order(rows @ rows.T)
    assert sorted(order) == list(range(30))
    groups = [shuffled[row] // 3 for row in order]
    borders = sum(one != other for one, other in pairwise(groups))
    assert borders == 9  # ten groups of three, each in one piece


def test_a_thousand_classes_make_a_page_of_a_few_megabytes(tmp_path):
    names = tuple(f"class {n}" for n in range(1000))
    assert len(write(tmp_path, example(names), names)) < 6_000_000


def test_equal_reports_give_equal_pages(tmp_path):
    assert write(tmp_path, example()) == write(tmp_path, example())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "gone").write_text("a file in the place of the folder")
    with pytest.raises(DataError, match=r"cannot write the report to .*gone.*free some space"):
        write(tmp_path / "gone", example())
