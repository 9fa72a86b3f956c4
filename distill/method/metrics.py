"""The metrics of Li et al. (ICCV 2023, arXiv 2307.03135), and diagnostics of text features.

- Results are exact. Large matrices are multiplied in blocks of float32; rows in which two cosines
  are closer than float32 resolves are recomputed in float64.
- Cosines that differ by less than 1e-10 are ties. Ties go to the lower index; a tie with the
  correct answer counts as correct.
- Memory: a few copies of the features and blocks of at most 2**25 numbers, so that 100,000 images
  of 512 dimensions fit in 8 GiB.
- Features need not be normalised. NaN, mismatched shapes and a k out of range raise ValueError.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 2**25  # numbers in the largest intermediate
UNSURE = 4e-6  # float32 cosines this close may be in the wrong order
DIGITS = 10  # cosines equal to this many decimals are ties


def m_rel(student: Tensor, teacher: Tensor) -> float:
    """M_rel (Eq. 4): fraction of images whose S(x) is nearer to its own T_img(x) than to any other.

    student, teacher [images, dim]. 0 to 1, higher is better.
    """
    student, teacher = _pairs(student, teacher)
    unit = normalize(teacher, dim=1)
    hits = 0
    for rows in _blocks(len(student), len(teacher)):
        cosines = normalize(student[rows], dim=1) @ unit.T
        index = torch.arange(rows.start, rows.stop, device=cosines.device)[:, None]
        own = cosines.gather(1, index)[:, 0]
        gap = own - cosines.scatter_(1, index, -torch.inf).amax(dim=1)
        unsure = (gap.abs() < UNSURE).nonzero()[:, 0]
        hits += int((gap >= UNSURE).sum())
        if len(unsure):
            exact = _cosines(student[rows][unsure], teacher)
            hits += int((exact.gather(1, index[unsure])[:, 0] >= exact.amax(dim=1)).sum())
    return hits / len(student)


def m_neigh(student: Tensor, teacher: Tensor, k: int) -> float:
    """M_neigh(k) (Eq. 5): mean overlap of the k nearest neighbours in S and in T_img space.

    Neighbours are other images of the set, by cosine. student, teacher [images, dim]. 0 to 1,
    higher is better.
    """
    student, teacher = _pairs(student, teacher)
    images = len(student)
    _check_k(k, images - 1, f"{images} images have {images - 1} neighbours each")
    unit_student, unit_teacher = normalize(student, dim=1), normalize(teacher, dim=1)
    shared = 0
    for rows in _blocks(images, images):
        of_student = _neighbours(student, unit_student, rows, k)
        of_teacher = _neighbours(teacher, unit_teacher, rows, k)
        mask = torch.zeros(len(of_teacher), images, dtype=torch.bool, device=of_teacher.device)
        shared += int(mask.scatter_(1, of_teacher, True).gather(1, of_student).sum())
    return shared / (images * k)


def m_vlalign(student: Tensor, teacher: Tensor, text: Tensor, k: int) -> float:
    """M_vlalign(k) (Eq. 7): mean number of reversed pairs among the teacher's k nearest texts.

    Of the k texts nearest to T_img(x), in that order, a pair is reversed if S(x) is closer to the
    later text. student, teacher [images, dim], text [classes, dim]. 0 to k(k − 1)/2, lower is
    better.
    """
    student, teacher = _pairs(student, teacher)
    text = _checked(text, "text")
    if text.shape[1] != student.shape[1]:
        raise ValueError(
            f"the images have {student.shape[1]} dimensions, but the texts {text.shape[1]}"
        )
    _check_k(k, len(text), f"there are {len(text)} texts")
    reversals = 0
    for rows in _blocks(len(student), len(text)):
        order = _cosines(teacher[rows], text).argsort(dim=1, descending=True, stable=True)[:, :k]
        cosines = _cosines(student[rows], text).gather(1, order).T.contiguous()  # [k, rows]
        # One rank at a time, so that the k × k pairs of an image are never in memory together.
        reversals += sum(int((cosines[:j] < cosines[j]).sum()) for j in range(1, k))
    return reversals / len(student)


def feature_mse(student: Tensor, teacher: Tensor) -> float:
    """Feature gap: ‖S(x) − T_img(x)‖² of unit features, mean over images (0 to 4, as L_mse)."""
    student, teacher = _pairs(student, teacher)
    total = sum(
        (_unit64(student[rows]) - _unit64(teacher[rows])).square().sum().item()
        for rows in _blocks(len(student), student.shape[1])
    )
    return total / len(student)


def mean_angle(student: Tensor, teacher: Tensor) -> float:
    """Feature gap: mean angle between S(x) and T_img(x) in degrees (0 to 180)."""
    student, teacher = _pairs(student, teacher)
    total = 0.0
    for rows in _blocks(len(student), student.shape[1]):
        a, b = _unit64(student[rows]), _unit64(teacher[rows])
        # Unlike the arc cosine, this is accurate for small angles.
        total += (2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))).sum().item()
    return math.degrees(total / len(student))


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each class: float64 [classes], NaN for classes in no image.

    The mean of the precision at the score of each image that shows the class. scores
    [images, classes], targets [images, classes], true for classes in the image.
    """
    scores = _checked(scores, "scores").double()
    if targets.shape != scores.shape:
        raise ValueError(
            f"targets have shape {list(targets.shape)}: {list(scores.shape)} is needed"
        )
    precisions = []
    for class_scores, is_shown in zip(scores.T, targets.T.bool(), strict=True):
        positives, ranked = class_scores[is_shown].sort().values, class_scores.sort().values
        above = len(ranked) - torch.searchsorted(ranked, positives)
        positives_above = len(positives) - torch.searchsorted(positives, positives)
        precisions.append((positives_above / above.double()).mean())
    return torch.stack(precisions)


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean of `average_precision` over the classes in at least one image, 0 to 1."""
    precision = average_precision(scores, targets)
    if bool(precision.isnan().all()):
        raise ValueError("no image shows any class: targets must have at least one true value")
    return precision.nanmean().item()


def mean_cosine(text: Tensor) -> float:
    """Mean cosine over all pairs of different classes. text [classes, dim]."""
    unit = _unit64(_at_least_two(text))
    # The squared norm of the sum counts every pair twice, and each class with itself.
    pairs = unit.sum(dim=0).square().sum() - unit.square().sum()
    return pairs.item() / (len(unit) * (len(unit) - 1))


def mean_nearest_cosine(text: Tensor) -> float:
    """Mean over classes of the cosine with the nearest other class. text [classes, dim]."""
    return nearest_cosines(text).mean().item()


def nearest_cosines(text: Tensor) -> Tensor:
    """Cosine of each class with its nearest other class: float64 [classes]."""
    text = _at_least_two(text)
    return torch.cat([_others(text, rows).amax(dim=1) for rows in _blocks(len(text), len(text))])


def class_margins(text: Tensor) -> Tensor:
    """Margin of each class, 1 − cosine with the nearest other class: float64 [classes].

    0 means that another class has the same text feature.
    """
    return 1 - nearest_cosines(text)


def confusable_pairs(text: Tensor, count: int) -> list[tuple[int, int, float]]:
    """The `count` pairs (a, b, cosine), a < b, with the largest cosines, largest first.

    Ties are in the order of (a, b). Returns fewer pairs if there are fewer. text [classes, dim].
    """
    text = _at_least_two(text)
    pairs = text.new_empty(0, 3, dtype=torch.float64)  # a, b, cosine
    for rows in _blocks(len(text), len(text)):
        cosines = _cosines(text[rows], text)
        later = torch.ones_like(cosines, dtype=torch.bool).triu(diagonal=rows.start + 1)
        cosines = cosines.masked_fill(~later, -torch.inf)
        threshold = cosines.flatten().topk(min(count, cosines.numel())).values[-1]
        a, b = (later & (cosines >= threshold)).nonzero(as_tuple=True)
        block = torch.stack([a.double() + rows.start, b.double(), cosines[a, b]], dim=1)
        pairs = torch.cat([pairs, block])
        pairs = pairs[pairs[:, 2].argsort(descending=True, stable=True)[:count]]
    return [(int(a), int(b), cosine) for a, b, cosine in pairs.tolist()]


def singular_values(text: Tensor) -> Tensor:
    """Singular values of the mean-centred unit features, largest first: float64 [min(classes,dim)].

    Values that are only rounding errors are 0. text [classes, dim].
    """
    unit = _unit64(_at_least_two(text))
    values: Tensor = torch.linalg.svdvals(unit - unit.mean(dim=0))
    # Unit rows make a matrix of norm √classes, and rounding stays far below 1e-12 of that.
    return values.masked_fill(values < 1e-12 * math.sqrt(len(unit)), 0)


def effective_rank(text: Tensor) -> float:
    """exp of the entropy of the singular values divided by their sum (Roy & Vetterli, 2007).

    Of the mean-centred unit features: 1 for texts on a line, up to min(classes − 1, dim); 0 where
    all texts are the same. text [classes, dim].
    """
    values = singular_values(text)
    if not values.any():
        return 0.0
    share = values / values.sum()
    return math.exp(-torch.special.xlogy(share, share).sum().item())


def _checked(features: Tensor, name: str) -> Tensor:
    """The features [rows, dim], detached and in float32; float64 is kept."""
    if features.dim() != 2 or 0 in features.shape:
        raise ValueError(f"{name} has shape {list(features.shape)}: [rows, dim] is needed")
    if not features.isfinite().all():
        raise ValueError(f"{name} has NaN or infinity: the model has diverged or is damaged")
    features = features.detach()
    return features if features.dtype == torch.float64 else features.float()


def _pairs(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = _checked(student, "student"), _checked(teacher, "teacher")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {list(student.shape)} and teacher {list(teacher.shape)} differ in shape: "
            "each needs one feature per image"
        )
    return student, teacher


def _at_least_two(text: Tensor) -> Tensor:
    text = _checked(text, "text")
    if len(text) < 2:
        raise ValueError("there is only one class: at least two are needed")
    return text


def _check_k(k: int, most: int, reason: str) -> None:
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}, but {reason}: choose k from 1 to {most}")


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows such that rows × columns of each is at most BLOCK."""
    step = max(1, BLOCK // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _unit64(features: Tensor) -> Tensor:
    return normalize(features.double(), dim=1)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines [len(a), len(b)] in float64, rounded so that ties are equal."""
    a = _unit64(a)
    # In blocks, to avoid a float64 copy of all of b.
    columns = [a @ _unit64(b[part]).T for part in _blocks(len(b), 16 * b.shape[1])]
    return torch.cat(columns, dim=1).round(decimals=DIGITS)


def _others(features: Tensor, rows: slice) -> Tensor:
    """Cosines of the rows with all of `features`; −inf for a row with itself."""
    cosines = _cosines(features[rows], features)
    cosines.diagonal(offset=rows.start).fill_(-torch.inf)
    return cosines


def _neighbours(features: Tensor, unit: Tensor, rows: slice, k: int) -> Tensor:
    """Indices [rows, k] of the k nearest other rows of `features`, in no particular order."""
    cosines = unit[rows] @ unit.T
    cosines.diagonal(offset=rows.start).fill_(-torch.inf)
    values, nearest = cosines.topk(k + 1, dim=1)
    unsure = (values[:, k - 1] - values[:, k] < UNSURE).nonzero()[:, 0]
    nearest = nearest[:, :k]
    if len(unsure):
        exact = _cosines(features[rows][unsure], features)
        exact[torch.arange(len(unsure)), rows.start + unsure] = -torch.inf
        nearest[unsure] = exact.argsort(dim=1, descending=True, stable=True)[:, :k]
    return nearest
