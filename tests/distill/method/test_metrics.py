"""Each metric against a slow computation in plain Python numbers, straight from the paper."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.method import metrics
from distill.method.metrics import (
    class_margins,
    confusable_pairs,
    effective_rank,
    feature_mse,
    m_neigh,
    m_rel,
    m_vlalign,
    mean_angle,
    mean_cosine,
    mean_nearest_cosine,
    nearest_cosines,
    singular_values,
)

Rows = list[list[float]]


# The slow side: lists of floats, one loop a sum. Distances, where the fast side has cosines.


def unit(rows: Rows) -> Rows:
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def distance(a: list[float], b: list[float]) -> float:
    """Squared distance; ties are equal, as in the fast side."""
    return round(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 2, 10)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_m_rel(student: Rows, teacher: Rows) -> float:
    s, t = unit(student), unit(teacher)
    hits = [
        distance(s[i], t[i]) <= min(distance(s[i], other) for other in t) for i in range(len(s))
    ]
    return sum(hits) / len(hits)


def slow_neighbours(rows: Rows, i: int, k: int) -> set[int]:
    others = [j for j in range(len(rows)) if j != i]
    return set(sorted(others, key=lambda j: (distance(rows[i], rows[j]), j))[:k])


def slow_m_neigh(student: Rows, teacher: Rows, k: int) -> float:
    s, t = unit(student), unit(teacher)
    shared = [len(slow_neighbours(s, i, k) & slow_neighbours(t, i, k)) / k for i in range(len(s))]
    return sum(shared) / len(shared)


def slow_m_vlalign(student: Rows, teacher: Rows, text: Rows, k: int) -> float:
    s, t, texts = unit(student), unit(teacher), unit(text)
    total = 0
    for a, b in zip(s, t, strict=True):
        order = sorted(range(len(texts)), key=lambda c: (distance(b, texts[c]), c))[:k]
        ours = [distance(a, texts[c]) for c in order]
        total += sum(ours[i] > ours[j] for i in range(k) for j in range(i + 1, k))
    return total / len(s)


def features(rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def twins(rows: int, dim: int, seed: int) -> Tensor:
    """Features of which many are equal, so that ties decide."""
    kinds = features(max(1, rows // 3), dim, seed)
    return kinds[torch.arange(rows) % len(kinds)]


makers = st.sampled_from([features, twins])
quick = settings(max_examples=25, deadline=None)


@pytest.fixture(params=[2**25, 16], ids=["one block", "small blocks"], scope="class")
def blocks(request: pytest.FixtureRequest) -> object:
    """Every test that asks for this runs with blocks of several sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", request.param)
        yield


@pytest.mark.usefixtures("blocks")
class TestAgainstTheSlowComputation:
    @quick
    @given(
        images=st.integers(1, 12), dim=st.integers(2, 6), make=makers, seed=st.integers(0, 10_000)
    )
    def test_m_rel_is_equation_4(
        self, images: int, dim: int, make: Callable[..., Tensor], seed: int
    ) -> None:
        teacher = make(images, dim, seed)
        student = teacher + features(images, dim, seed + 1) / 2
        slow = slow_m_rel(student.tolist(), teacher.tolist())
        assert m_rel(student, teacher) == pytest.approx(slow, abs=1e-12)

    @quick
    @given(
        images=st.integers(2, 12),
        dim=st.integers(2, 6),
        make=makers,
        seed=st.integers(0, 10_000),
        data=st.data(),
    )
    def test_m_neigh_is_equation_5(
        self, images: int, dim: int, make: Callable[..., Tensor], seed: int, data: st.DataObject
    ) -> None:
        k = data.draw(st.integers(1, images - 1))
        student, teacher = make(images, dim, seed), make(images, dim, seed + 1)
        slow = slow_m_neigh(student.tolist(), teacher.tolist(), k)
        assert m_neigh(student, teacher, k) == pytest.approx(slow, abs=1e-12)

    @quick
    @given(
        images=st.integers(1, 8),
        classes=st.integers(1, 9),
        dim=st.integers(2, 6),
        make=makers,
        seed=st.integers(0, 10_000),
        data=st.data(),
    )
    def test_m_vlalign_is_equation_7(
        self,
        images: int,
        classes: int,
        dim: int,
        make: Callable[..., Tensor],
        seed: int,
        data: st.DataObject,
    ) -> None:
        k = data.draw(st.integers(1, classes))
        student, teacher = features(images, dim, seed), features(images, dim, seed + 1)
        text = make(classes, dim, seed + 2)
        slow = slow_m_vlalign(student.tolist(), teacher.tolist(), text.tolist(), k)
        assert m_vlalign(student, teacher, text, k) == pytest.approx(slow, abs=1e-12)

    @quick
    @given(
        classes=st.integers(2, 12), dim=st.integers(2, 6), make=makers, seed=st.integers(0, 10_000)
    )
    def test_text_diagnostics(
        self, classes: int, dim: int, make: Callable[..., Tensor], seed: int
    ) -> None:
        text = make(classes, dim, seed)
        rows = unit(text.tolist())
        pairs = [(a, b) for a in range(classes) for b in range(a + 1, classes)]
        cosines = {pair: round(cosine(rows[pair[0]], rows[pair[1]]), 10) for pair in pairs}
        nearest = [max(c for pair, c in cosines.items() if a in pair) for a in range(classes)]
        mean = sum(cosines.values()) / len(pairs)
        assert mean_cosine(text) == pytest.approx(mean, abs=1e-9)
        assert mean_nearest_cosine(text) == pytest.approx(sum(nearest) / classes, abs=1e-9)
        assert nearest_cosines(text).tolist() == pytest.approx(nearest, abs=1e-9)
        assert class_margins(text).tolist() == pytest.approx([1 - c for c in nearest], abs=1e-9)
        ranked = sorted(pairs, key=lambda pair: (-cosines[pair], pair))
        for count in (1, 3, 1000):
            found = confusable_pairs(text, count)
            assert [(a, b) for a, b, _ in found] == ranked[:count]
            assert [c for _, _, c in found] == pytest.approx([cosines[p] for p in ranked[:count]])

    @quick
    @given(images=st.integers(1, 9), dim=st.integers(2, 6), seed=st.integers(0, 10_000))
    def test_the_feature_gap(self, images: int, dim: int, seed: int) -> None:
        student, teacher = features(images, dim, seed), features(images, dim, seed + 1)
        s, t = unit(student.tolist()), unit(teacher.tolist())
        squares = [
            sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for a, b in zip(s, t, strict=True)
        ]
        angles = [
            math.degrees(math.acos(max(-1, min(1, cosine(a, b)))))
            for a, b in zip(s, t, strict=True)
        ]
        assert feature_mse(student, teacher) == pytest.approx(sum(squares) / images, abs=1e-9)
        assert mean_angle(student, teacher) == pytest.approx(sum(angles) / images, abs=1e-5)


def test_singular_values_are_the_roots_of_the_covariance_eigenvalues() -> None:
    text = features(7, 4, 0)
    rows = torch.tensor(unit(text.tolist()), dtype=torch.float64)
    centred = rows - rows.mean(dim=0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    assert singular_values(text).tolist() == pytest.approx(eigenvalues.sqrt().tolist(), abs=1e-9)


def test_effective_rank_is_the_exponential_of_the_entropy() -> None:
    text = features(7, 4, 0)
    values = singular_values(text).tolist()
    shares = [value / sum(values) for value in values]
    entropy = -sum(share * math.log(share) for share in shares)
    assert effective_rank(text) == pytest.approx(math.exp(entropy), abs=1e-12)


def test_effective_rank_counts_equal_directions() -> None:
    axes = torch.eye(4)
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(4)
    assert effective_rank(torch.cat([axes[:1], -axes[:1]])) == pytest.approx(1)
    assert effective_rank(axes[:1].expand(5, 4)) == 0


def test_the_known_embeddings_of_1203_names(shared) -> None:
    np = pytest.importorskip("numpy")
    with np.load(shared / "bench/lvis1203-clip-vitb32-text.npz", allow_pickle=False) as archive:
        name, photo = torch.from_numpy(archive["name"]), torch.from_numpy(archive["photo_of_name"])
    assert mean_cosine(name) == pytest.approx(0.7426, abs=5e-5)
    assert mean_nearest_cosine(name) == pytest.approx(0.8867, abs=5e-5)
    assert mean_cosine(photo) == pytest.approx(0.7155, abs=5e-5)
    assert mean_nearest_cosine(photo) == pytest.approx(0.8784, abs=5e-5)


# What holds of all of them.

IMAGES, CLASSES, DIM = 40, 12, 6
TEACHER, TEXT = features(IMAGES, DIM, 1), features(CLASSES, DIM, 2)
STUDENT = TEACHER + features(IMAGES, DIM, 3)
PAIRED: dict[str, Callable[[Tensor, Tensor, Tensor], float]] = {
    "m_rel": lambda s, t, c: m_rel(s, t),
    "m_neigh": lambda s, t, c: m_neigh(s, t, 5),
    "m_vlalign": lambda s, t, c: m_vlalign(s, t, c, 7),
    "feature_mse": lambda s, t, c: feature_mse(s, t),
    "mean_angle": lambda s, t, c: mean_angle(s, t),
    "mean_cosine": lambda s, t, c: mean_cosine(c),
    "mean_nearest_cosine": lambda s, t, c: mean_nearest_cosine(c),
    "effective_rank": lambda s, t, c: effective_rank(c),
}
every_metric = pytest.mark.parametrize("metric", PAIRED.values(), ids=PAIRED.keys())


@every_metric
def test_order_and_length_of_features_do_not_matter(metric: Callable[..., float]) -> None:
    generator = torch.Generator().manual_seed(0)
    images, classes = (torch.randperm(n, generator=generator) for n in (IMAGES, CLASSES))
    lengths = torch.rand(IMAGES, 1, generator=generator, dtype=torch.float64) * 9 + 0.1
    before = metric(STUDENT, TEACHER, TEXT)
    shuffled = metric(STUDENT[images] * lengths, TEACHER[images] / lengths, 7 * TEXT[classes])
    assert shuffled == pytest.approx(before, abs=1e-9)
    assert isinstance(before, float)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_float32_gives_the_result_of_float64(
    metric: Callable[..., float], dtype: torch.dtype
) -> None:
    low = [x.to(dtype) for x in (STUDENT, TEACHER, TEXT)]
    assert metric(*low) == pytest.approx(metric(*(x.double() for x in low)), abs=1e-6)


def test_a_student_equal_to_its_teacher_is_perfect() -> None:
    for teacher in (TEACHER, TEACHER.float(), twins(IMAGES, DIM, 0), twins(IMAGES, DIM, 0).float()):
        assert m_rel(teacher, teacher) == 1
        assert m_neigh(teacher, teacher, 5) == 1
        assert m_vlalign(teacher, teacher, TEXT.to(teacher), CLASSES) == 0
        assert feature_mse(teacher, teacher) == 0
        assert mean_angle(teacher, teacher) == 0


def test_a_student_that_sees_the_opposite_is_as_wrong_as_can_be() -> None:
    pairs = CLASSES * (CLASSES - 1) / 2
    assert m_vlalign(-TEACHER, TEACHER, TEXT, CLASSES) == pairs
    assert feature_mse(-TEACHER, TEACHER) == pytest.approx(4)
    assert mean_angle(-TEACHER, TEACHER) == pytest.approx(180)


def test_small_angles_are_measured() -> None:
    tilted = torch.tensor([[1.0, 1e-7]], dtype=torch.float64)
    angle = mean_angle(tilted, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert angle == pytest.approx(math.degrees(1e-7), rel=1e-6)


def test_cosines_that_are_equal_in_float32_are_ranked() -> None:
    """Near twins: float32 alone would put the wrong one first."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 32, generator=generator)
    teacher = base + 1e-4 * torch.randn(100, 32, generator=generator)
    student = teacher + 1e-5 * torch.randn(100, 32, generator=generator)
    rows = [x.double().tolist() for x in (student, teacher)]
    assert m_rel(student, teacher) == pytest.approx(slow_m_rel(*rows), abs=1e-12)
    assert m_neigh(student, teacher, 3) == pytest.approx(slow_m_neigh(*rows, 3), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m_neigh(STUDENT, TEACHER, 40), "k is 40, but 40 images have 39 neighbours each"),
        (lambda: m_neigh(STUDENT[:1], TEACHER[:1], 1), "1 images have 0 neighbours"),
        (lambda: m_vlalign(STUDENT, TEACHER, TEXT, 13), "k is 13, but there are 12 texts"),
        (lambda: m_vlalign(STUDENT, TEACHER, TEXT, 0), "k is 0"),
        (lambda: m_vlalign(STUDENT, TEACHER, TEXT[:, :3], 2), "6 dimensions, but the texts 3"),
        (lambda: m_rel(STUDENT[:3], TEACHER), "differ in shape"),
        (lambda: m_rel(STUDENT * math.nan, TEACHER), "student has NaN or infinity"),
        (lambda: m_rel(STUDENT[0], TEACHER[0]), r"student has shape \[6\]"),
        (lambda: mean_cosine(TEXT[:1]), "only one class"),
        (lambda: mean_nearest_cosine(TEXT[:0]), r"text has shape \[0, 6\]"),
        (lambda: effective_rank(TEXT / 0), "text has NaN or infinity"),
    ],
)
def test_invalid_input_is_a_one_line_error(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
