"""Each loss against a slow computation in plain Python numbers, straight from the paper."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.method.losses import (
    l_cap,
    l_cls,
    l_im_cst,
    l_im_cst_distance,
    l_mse,
    l_mse_unnormalised,
    l_vlprox,
)

TAU = 0.07
Rows = list[list[float]]


# The slow side: lists of floats, one loop a sum.


def unit(rows: Rows) -> Rows:
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x - max(logits)) for x in logits)
    return [math.exp(x - max(logits)) / total for x in logits]


def slow_cls(student: Rows, text: Rows, targets: list[int], tau: float) -> float:
    total = 0.0
    for s, target in zip(unit(student), targets, strict=True):
        total -= math.log(softmax([dot(s, t) / tau for t in unit(text)])[target])
    return total / len(student)


def slow_mse(student: Rows, teacher: Rows) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += sum((x - y) ** 2 for x, y in zip(s, t, strict=True))
    return total / len(student)


def slow_im_cst(queries: Rows, keys: Rows, tau: float) -> float:
    total = 0.0
    for i, query in enumerate(unit(queries)):
        total -= math.log(softmax([dot(query, key) / tau for key in unit(keys)])[i])
    return total / len(queries)


def slow_vlprox(
    student: Rows, teacher: Rows, text: Rows, targets: list[int] | None, k: int, tau: float
) -> float:
    terms = []
    for i, (s, t) in enumerate(zip(unit(student), unit(teacher), strict=True)):
        p_t = softmax([dot(t, c) / tau for c in unit(text)])
        p_s = softmax([dot(s, c) / tau for c in unit(text)])
        ranked = sorted(range(len(text)), key=lambda c: (-p_t[c], c))
        if targets is not None and ranked[0] != targets[i]:
            continue
        kept = ranked[:k]
        mass_t, mass_s = sum(p_t[c] for c in kept), sum(p_s[c] for c in kept)
        terms.append(
            sum(p_t[c] / mass_t * math.log((p_t[c] / mass_t) / (p_s[c] / mass_s)) for c in kept)
        )
    return sum(terms) / len(terms) if terms else 0.0


def slow_cap(student: Rows, captions: Rows, targets: list[int], tau: float) -> float:
    total = 0.0
    for i, s in enumerate(unit(student)):
        others = [
            dot(s, c) / tau
            for j, c in enumerate(unit(captions))
            if j == i or targets[j] != targets[i]
        ]
        total += math.log(sum(math.exp(x) for x in others)) - dot(s, unit(captions)[i]) / tau
    return total / len(student)


# The comparison.


def features(rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def labels(images: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (images,), generator=torch.Generator().manual_seed(seed))


sizes = given(
    images=st.integers(1, 7),
    classes=st.integers(1, 6),
    dim=st.integers(2, 9),
    seed=st.integers(0, 10_000),
)
quick = settings(max_examples=25, deadline=None)
DTYPES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.3}


@quick
@sizes
def test_l_cls_is_equation_1(images: int, classes: int, dim: int, seed: int) -> None:
    student, text = features(images, dim, seed), features(classes, dim, seed + 1)
    targets = labels(images, classes, seed)
    slow = slow_cls(student.tolist(), text.tolist(), targets.tolist(), 0.2)
    assert l_cls(student, text, targets, temperature=0.2).item() == pytest.approx(slow, abs=1e-10)


@quick
@sizes
def test_l_mse_is_equation_2(images: int, classes: int, dim: int, seed: int) -> None:
    student, teacher = features(images, dim, seed), features(images, dim, seed + 1)
    slow = slow_mse(unit(student.tolist()), unit(teacher.tolist()))
    assert l_mse(student, teacher).item() == pytest.approx(slow, abs=1e-10)
    raw = math.log(1 + slow_mse(student.tolist(), teacher.tolist()) / 10)
    assert l_mse_unnormalised(student, teacher).item() == pytest.approx(raw, abs=1e-10)


@quick
@sizes
def test_l_im_cst_is_equation_3_on_cosines(images: int, classes: int, dim: int, seed: int) -> None:
    student, teacher = features(images, dim, seed), features(images, dim, seed + 1)
    there = slow_im_cst(student.tolist(), teacher.tolist(), TAU)
    back = slow_im_cst(teacher.tolist(), student.tolist(), TAU)
    one_way = l_im_cst(student, teacher, bidirectional=False).item()
    assert one_way == pytest.approx(there, abs=1e-9)
    assert l_im_cst(student, teacher).item() == pytest.approx((there + back) / 2, abs=1e-9)


def test_the_printed_form_of_equation_3_contrasts_squared_distances() -> None:
    student, teacher = features(5, 4, 0), features(5, 4, 1)
    s, t = unit(student.tolist()), unit(teacher.tolist())
    slow = 0.0
    for i in range(5):
        distances = [sum((x - y) ** 2 for x, y in zip(s[i], t[j], strict=True)) for j in range(5)]
        slow -= math.log(softmax([-d / TAU for d in distances])[i]) / 5
    fast = l_im_cst_distance(student, teacher, bidirectional=False).item()
    assert fast == pytest.approx(slow, abs=1e-9)
    assert fast != pytest.approx(l_im_cst(student, teacher, bidirectional=False).item(), abs=1e-3)


@quick
@given(
    images=st.integers(1, 7),
    classes=st.integers(1, 6),
    dim=st.integers(2, 9),
    k=st.integers(1, 9),
    filtered=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_l_vlprox_is_equation_6(
    images: int, classes: int, dim: int, k: int, filtered: bool, seed: int
) -> None:
    student, teacher = features(images, dim, seed), features(images, dim, seed + 1)
    text = features(classes, dim, seed + 2)
    targets = labels(images, classes, seed) if filtered else None
    slow = slow_vlprox(
        student.tolist(),
        teacher.tolist(),
        text.tolist(),
        targets.tolist() if targets is not None else None,
        k,
        TAU,
    )
    fast = l_vlprox(student, teacher, text, targets, k=k).item()
    assert fast == pytest.approx(slow, abs=1e-9)


@quick
@sizes
def test_l_cap_is_equation_8(images: int, classes: int, dim: int, seed: int) -> None:
    student, captions = features(images, dim, seed), features(images, dim, seed + 1)
    targets = labels(images, classes, seed)
    slow = slow_cap(student.tolist(), captions.tolist(), targets.tolist(), TAU)
    assert l_cap(student, captions, targets).item() == pytest.approx(slow, abs=1e-9)


# All losses as functions of the student alone, for what holds of each.

IMAGES, CLASSES, DIM = 6, 5, 8
TEACHER, TEXT = features(IMAGES, DIM, 1), features(CLASSES, DIM, 2)
TARGETS = (TEACHER @ torch.nn.functional.normalize(TEXT, dim=1).T).argmax(dim=1)
TARGETS[0] = (TARGETS[0] + 1) % CLASSES  # one image that the teacher gets wrong
ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "l_cls": lambda s: l_cls(s, TEXT.to(s), TARGETS),
    "l_mse": lambda s: l_mse(s, TEACHER.to(s)),
    "l_mse_unnormalised": lambda s: l_mse_unnormalised(s, TEACHER.to(s)),
    "l_im_cst": lambda s: l_im_cst(s, TEACHER.to(s)),
    "l_im_cst_one_way": lambda s: l_im_cst(s, TEACHER.to(s), bidirectional=False),
    "l_im_cst_distance": lambda s: l_im_cst_distance(s, TEACHER.to(s)),
    "l_vlprox": lambda s: l_vlprox(s, TEACHER.to(s), TEXT.to(s), k=3),
    "l_vlprox_filtered": lambda s: l_vlprox(s, TEACHER.to(s), TEXT.to(s), TARGETS, k=3),
    "l_cap": lambda s: l_cap(s, TEACHER.to(s), TARGETS),
}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL.keys())


@every_loss
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    student = features(IMAGES, DIM, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, student)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
def test_lower_precision_gives_nearly_the_same_loss(
    loss: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    student = features(IMAGES, DIM, 3)
    value = loss(student.to(dtype))
    assert value.dim() == 0
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(loss(student).item(), rel=DTYPES[dtype])


@pytest.mark.parametrize("loss", [ALL[name] for name in ALL if name != "l_mse_unnormalised"])
def test_the_length_of_features_does_not_matter(loss: Callable[[Tensor], Tensor]) -> None:
    student = features(IMAGES, DIM, 3)
    lengths = torch.rand(IMAGES, 1, dtype=torch.float64) * 100 + 0.01
    assert loss(student * lengths).item() == pytest.approx(loss(student).item(), abs=1e-9)


@quick
@given(st.permutations(range(IMAGES)), st.permutations(range(CLASSES)))
def test_the_order_of_images_and_classes_does_not_matter(
    images: list[int], classes: list[int]
) -> None:
    student = features(IMAGES, DIM, 3)
    s, t, y = student[images], TEACHER[images], TARGETS[images]
    text = TEXT[classes]
    y_of = torch.tensor(classes).argsort()[y]
    for before, after in (
        (ALL["l_cls"](student), l_cls(s, text, y_of)),
        (ALL["l_mse"](student), l_mse(s, t)),
        (ALL["l_im_cst"](student), l_im_cst(s, t)),
        (ALL["l_vlprox_filtered"](student), l_vlprox(s, t, text, y_of, k=3)),
        (ALL["l_cap"](student), l_cap(s, t, y)),
    ):
        assert after.item() == pytest.approx(before.item(), abs=1e-10)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_imitation() -> None:
    assert l_mse(TEACHER, TEACHER).item() == 0
    assert l_mse_unnormalised(TEACHER, TEACHER).item() == 0
    assert l_vlprox(TEACHER, TEACHER, TEXT).item() == pytest.approx(0, abs=1e-12)
    other = features(IMAGES, DIM, 3)
    assert l_im_cst(TEACHER, TEACHER) < l_im_cst(other, TEACHER)


def test_one_class_leaves_nothing_to_choose() -> None:
    one = torch.zeros(IMAGES, dtype=torch.long)
    student = features(IMAGES, DIM, 3)
    assert l_cls(student, TEXT[:1], one).item() == pytest.approx(0, abs=1e-12)
    assert l_vlprox(student, TEACHER, TEXT[:1], one).item() == pytest.approx(0, abs=1e-12)
    assert l_cap(student, TEACHER, one).item() == pytest.approx(0, abs=1e-12)


def test_k_above_the_number_of_classes_means_all_classes() -> None:
    student = features(IMAGES, DIM, 3)
    all_classes = l_vlprox(student, TEACHER, TEXT, k=CLASSES)
    assert torch.equal(l_vlprox(student, TEACHER, TEXT, k=1000), all_classes)


def test_a_batch_that_the_filter_empties_costs_nothing_and_can_be_differentiated() -> None:
    student = features(IMAGES, DIM, 3).requires_grad_()
    wrong = (TARGETS + 2) % CLASSES
    wrong[0] = (TARGETS[0] + 1) % CLASSES
    loss = l_vlprox(student, TEACHER, TEXT, wrong)
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and not student.grad.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: l_cls(s * math.nan, TEXT, TARGETS), "student has NaN or infinity"),
        (lambda s: l_mse(s, TEACHER / 0), "teacher has NaN or infinity"),
        (lambda s: l_cls(s, TEXT[:, :4], TARGETS), "differ in dimension"),
        (lambda s: l_mse(s, TEACHER[:3]), "6 student features, but 3 teacher features"),
        (lambda s: l_cap(s, TEACHER[:3], TARGETS), "6 student features, but 3 captions features"),
        (lambda s: l_im_cst(s[0], TEACHER), r"student has shape \[8\]"),
        (lambda s: l_cls(s[:0], TEXT, TARGETS[:0]), r"student has shape \[0, 8\]"),
        (lambda s: l_cls(s, TEXT, TARGETS[:2]), r"targets have shape \[2\]"),
        (lambda s: l_cls(s, TEXT, TARGETS + 5), "outside of the 5 classes"),
        (lambda s: l_vlprox(s, TEACHER, TEXT, k=0), "k is 0"),
    ],
)
def test_invalid_input_is_a_one_line_error(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call(features(IMAGES, DIM, 3))
    assert "\n" not in str(raised.value)
