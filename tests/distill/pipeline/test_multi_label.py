"""The multi-label loss and mean average precision, each against loops over plain numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.method.losses import l_asl
from distill.method.metrics import average_precision, mean_average_precision


def random(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def slow_asl(student, text, targets, tau, threshold, positive, negative, margin):
    total = 0.0
    for s, present in zip(student, targets, strict=True):
        for t, is_in in zip(text, present, strict=True):
            dot = sum(x * y for x, y in zip(s, t, strict=True))
            cosine = dot / math.hypot(*s) / math.hypot(*t)
            p = 1 / (1 + math.exp(-(cosine - threshold) / tau))
            if is_in:
                total -= (1 - p) ** positive * math.log(p)
            else:
                shifted = max(p - margin, 0)
                total -= shifted**negative * math.log(1 - shifted)
    return total / len(student)


@pytest.mark.parametrize(
    "options", [(0.07, 0.0, 0, 4, 0.05), (0.1, 0.2, 1, 2, 0.0), (0.5, -0.3, 2, 0, 0.3)]
)
def test_the_loss_is_that_of_the_paper_on_cosines(options):
    student, text, targets = random(0, 5, 8), random(1, 7, 8), random(2, 5, 7) > 0.5
    tau, threshold, positive, negative, margin = options
    loss = l_asl(
        student, text, targets,
        temperature=tau, threshold=threshold, gamma_positive=positive, gamma_negative=negative,
        margin=margin,
    )  # fmt: skip
    expected = slow_asl(student.tolist(), text.tolist(), targets.tolist(), *options)
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-9)


def test_without_focus_and_margin_it_is_binary_cross_entropy():
    student, text, targets = random(0, 5, 8), random(1, 7, 8), random(2, 5, 7) > 0
    loss = l_asl(student, text, targets, gamma_negative=0, margin=0)
    cosines = torch.nn.functional.cosine_similarity(student[:, None], text[None], dim=2)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        cosines / 0.07, targets.double(), reduction="sum"
    )
    assert loss.item() == pytest.approx(entropy.item() / 5, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 4.0])
def test_its_gradient_is_that_of_finite_differences(gamma):
    student, text, targets = random(3, 4, 6).requires_grad_(), random(4, 5, 6), random(5, 4, 5) > 0

    def loss(features):
        return l_asl(
            features, text, targets, temperature=0.5, gamma_positive=gamma, gamma_negative=gamma
        )

    assert torch.autograd.gradcheck(loss, (student,))


def test_a_certain_answer_keeps_loss_and_gradient_finite():
    text = torch.eye(3)
    student = text.clone().requires_grad_()
    loss = l_asl(student, text, 1 - torch.eye(3), temperature=1e-3, margin=0)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma_negative": 0.5}, "gamma is 0.5"),
        ({"gamma_positive": -1.0}, "gamma is -1"),
        ({"margin": 1.0}, "margin is 1"),
        ({"targets": torch.ones(2, 9)}, r"shape \[2, 9\]: \[2, 3\]"),
    ],
)
def test_what_makes_no_loss_is_refused(changes, message):
    options = {"targets": torch.ones(2, 3)} | changes
    with pytest.raises(ValueError, match=message):
        l_asl(torch.ones(2, 4), torch.ones(3, 4), **options)


def slow_precision(scores, shown):
    shares = []
    for score, is_in in zip(scores, shown, strict=True):
        if is_in:
            above = [other for each, other in zip(scores, shown, strict=True) if each >= score]
            shares.append(sum(above) / len(above))
    return sum(shares) / len(shares) if shares else math.nan


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20))
def test_average_precision_is_the_mean_share_above_each_image_that_shows_the_class(rows):
    scores, shown = zip(*rows, strict=True)  # few values, so that many tie
    (found,) = average_precision(
        torch.tensor(scores)[:, None].float(), torch.tensor(shown)[:, None]
    ).tolist()
    assert found == pytest.approx(slow_precision(scores, shown), nan_ok=True)


def test_the_mean_leaves_out_classes_that_nobody_shows():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.4, 0.3, 0.5]])
    targets = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0]])
    assert average_precision(scores, targets).tolist()[:2] == [1, 0.5]
    assert mean_average_precision(scores, targets) == 0.75
    with pytest.raises(ValueError, match="no image shows any class"):
        mean_average_precision(scores, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="shape"):
        average_precision(scores, torch.zeros(3, 2))
