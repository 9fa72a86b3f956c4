"""The losses of "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability"
(Li et al., ICCV 2023, arXiv 2307.03135), one function per formula.

- S(x) is the student's feature of an image, T_img(x) and T_txt(y) the teacher's of an image and of
  a text. All are normalised to unit length here, so callers may pass raw features.
- Half precision is converted to float32 first; call these functions outside of autocast.
- Each function returns a 0-d tensor. NaN and mismatched shapes raise ValueError.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid, normalize


def l_cls(student: Tensor, text: Tensor, targets: Tensor, *, temperature: float = 0.07) -> Tensor:
    """L_cls (Eq. 1): cross-entropy of softmax over classes of cos(S(x), T_txt(label)) / tau.

    student [batch, dim], text [classes, dim], targets [batch] indices into `text`.
    """
    student, text = _unit(student=student, text=text)
    _check_targets(targets, len(student), len(text))
    return cross_entropy(student @ text.T / temperature, targets)


def l_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """L_mse (Eq. 2): ‖S(x) − T_img(x)‖², summed over dimensions, mean over the batch.

    student, teacher [batch, dim].
    """
    student, teacher = _unit(student=student, teacher=teacher)
    _check_pairs(student, teacher)
    return (student - teacher).square().sum(dim=1).mean()


def l_mse_unnormalised(student: Tensor, teacher: Tensor) -> Tensor:
    """L_mse on features as they are: log(1 + mean‖S(x) − T_img(x)‖² / 10).

    The logarithm keeps large raw features from dominating the other losses.
    student, teacher [batch, dim].
    """
    student, teacher = _matrices(student=student, teacher=teacher)
    _check_pairs(student, teacher)
    return torch.log1p((student - teacher).square().sum(dim=1).mean() / 10)


def l_im_cst(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.07, bidirectional: bool = True
) -> Tensor:
    """L_im-cst (Eq. 3): cross-entropy over the batch on cos(S(x_i), T_img(x_j)) / tau.

    One direction identifies each student feature's own teacher feature in the batch; with
    `bidirectional`, the loss is the mean of both directions, as in CLIP. Cosines are the default,
    not the printed distances (`l_im_cst_distance`), so that tau means the same in every loss.
    student, teacher [batch, dim].
    """
    student, teacher = _unit(student=student, teacher=teacher)
    _check_pairs(student, teacher)
    logits = student @ teacher.T / temperature
    own = torch.arange(len(student), device=student.device)
    loss = cross_entropy(logits, own)
    return (loss + cross_entropy(logits.T, own)) / 2 if bidirectional else loss


def l_im_cst_distance(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.07, bidirectional: bool = True
) -> Tensor:
    """L_im-cst as Eq. 3 prints it: cross-entropy over the batch on −‖S(x_i) − T_img(x_j)‖² / tau.

    For unit vectors ‖a − b‖² = 2 − 2 cos(a, b), and softmax drops the constant: this is the cosine
    form at tau / 2.
    """
    return l_im_cst(student, teacher, temperature=temperature / 2, bidirectional=bidirectional)


def l_vlprox(
    student: Tensor,
    teacher: Tensor,
    text: Tensor,
    targets: Tensor | None = None,
    *,
    k: int = 256,
    temperature: float = 0.07,
) -> Tensor:
    """L_vlprox (Eq. 6): KL(P_T ‖ P_S) over the teacher's k most probable classes.

    P_T and P_S are the softmax over classes of cos(T_img(x), T_txt) / tau and of
    cos(S(x), T_txt) / tau, both renormalised on those k = min(k, classes) classes; equally probable
    classes are chosen in index order. With `targets`, the filter I(x) of the paper is applied: only
    images whose label is the teacher's top class are used. The mean is over the images used; 0
    without any.
    student, teacher [batch, dim], text [classes, dim], targets [batch].
    """
    student, teacher, text = _unit(student=student, teacher=teacher, text=text)
    _check_pairs(student, teacher)
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    logits_s, logits_t = student @ text.T / temperature, teacher @ text.T / temperature
    mask = logits_s.new_ones(len(logits_s))
    if targets is not None:
        _check_targets(targets, len(student), len(text))
        mask = (logits_t.argmax(dim=1) == targets).to(logits_s)
    if k < len(text):  # the softmax of the k largest logits is the renormalised softmax
        nearest = logits_t.argsort(dim=1, descending=True, stable=True)[:, :k]
        logits_s, logits_t = logits_s.gather(1, nearest), logits_t.gather(1, nearest)
    log_s, log_t = log_softmax(logits_s, dim=1), log_softmax(logits_t, dim=1)
    divergence = kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)
    return (divergence * mask).sum() / mask.sum().clamp(min=1)


def l_cap(
    student: Tensor, captions: Tensor, targets: Tensor, *, temperature: float = 0.07
) -> Tensor:
    """L_cap (Eq. 8): contrast of S(x_i) with the text feature of its own image's caption.

    Cross-entropy over the batch's captions on cos(S(x_i), T_txt(caption_j)) / tau; captions of
    other images of the same class are masked out of the negatives.
    student, captions [batch, dim], targets [batch].
    """
    student, captions = _unit(student=student, captions=captions)
    _check_pairs(student, captions, "captions")
    _check_targets(targets, len(student))
    logits = student @ captions.T / temperature
    own = torch.eye(len(student), dtype=torch.bool, device=student.device)
    same_class = targets[:, None] == targets[None, :]
    logits = logits.masked_fill(same_class & ~own, -torch.inf)
    return cross_entropy(logits, torch.arange(len(student), device=student.device))


def l_asl(  # noqa: PLR0913 - the constants of the paper
    student: Tensor,
    text: Tensor,
    targets: Tensor,
    *,
    temperature: float = 0.07,
    threshold: float | Tensor = 0.0,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
) -> Tensor:
    """L_asl: the asymmetric multi-label loss (arXiv 2009.14119) on cosine scores.

    With p = sigmoid((cos(S(x), T_txt(c)) − threshold) / tau) and p_m = max(p − margin, 0):
    −(1 − p)^γ₊ log p for a class in the image and −p_m^γ₋ log(1 − p_m) for any other class, summed
    over classes, mean over the batch. Easy negatives, the great majority, get a low weight,
    and none below the margin. A threshold tensor, 0-d or [classes], can be learned.
    student [batch, dim], text [classes, dim], targets [batch, classes], true for classes in the
    image.
    """
    student, text = _unit(student=student, text=text)
    if targets.shape != (len(student), len(text)):
        needed = [len(student), len(text)]
        raise ValueError(f"targets have shape {list(targets.shape)}: {needed} is needed")
    for gamma in (gamma_positive, gamma_negative):
        if not (gamma == 0 or gamma >= 1):
            raise ValueError(f"a gamma is {gamma:g}: it must be 0, or at least 1")
    if not 0 <= margin < 1:
        raise ValueError(f"the margin is {margin:g}: it must be at least 0 and below 1")
    logits = (student @ text.T - threshold) / temperature
    p = logits.sigmoid()
    shifted = (p - margin).clamp(min=0)
    log_absent = logsigmoid(-logits) if margin == 0 else torch.log1p(-shifted)
    present = (1 - p) ** gamma_positive * logsigmoid(logits)
    absent = shifted**gamma_negative * log_absent
    return -torch.where(targets.bool(), present, absent).sum(dim=1).mean()


def _matrices(**features: Tensor) -> tuple[Tensor, ...]:
    """The features in float32 or float64, checked to be [rows, dim], of equal dim and finite.

    Values on a GPU are not checked: the check would wait for it.
    """
    dims = {name: matrix.shape[-1] for name, matrix in features.items() if matrix.dim() == 2}
    for name, matrix in features.items():
        if matrix.dim() != 2 or 0 in matrix.shape:
            raise ValueError(f"{name} has shape {list(matrix.shape)}: [rows, dim] is needed")
        if _is_on_cpu(matrix) and not matrix.isfinite().all():
            raise ValueError(f"{name} has NaN or infinity: the model has diverged or is damaged")
    if len(set(dims.values())) > 1:
        raise ValueError(f"the features differ in dimension: {dims}")
    return tuple(
        matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
        for matrix in features.values()
    )


def _is_on_cpu(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _unit(**features: Tensor) -> tuple[Tensor, ...]:
    """Like `_matrices`, with each row normalised to unit length."""
    return tuple(normalize(matrix, dim=1) for matrix in _matrices(**features))


def _check_pairs(student: Tensor, other: Tensor, name: str = "teacher") -> None:
    if len(student) != len(other):
        raise ValueError(f"{len(student)} student features, but {len(other)} {name} features")


def _check_targets(targets: Tensor, images: int, classes: int | None = None) -> None:
    if targets.shape != (images,):
        raise ValueError(f"targets have shape {list(targets.shape)}: [{images}] is needed")
    if classes is None or not _is_on_cpu(targets):
        return
    if not ((targets >= 0) & (targets < classes)).all():
        raise ValueError(f"a target is outside of the {classes} classes")
