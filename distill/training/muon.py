"""Muon in float32, for processors that only emulate bfloat16.

timm's Muon orthogonalises each matrix X [rows, columns] by five steps X ← (aI + bA + cA²)X, where
A = XXᵀ. Here the steps are applied to the square matrix A, and their product is multiplied with X
once at the end: the polynomials of A commute, so that A becomes MAM with M = aI + bA + cA². For a
3 × 3 convolution, whose matrix is nine times as wide as high, this takes 40 % of the products. In
bfloat16 it would lose the small singular values of X, which A has squared.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from timm.optim import Muon  # type: ignore[attr-defined]
from timm.optim import muon as timm_muon
from torch import Tensor

timm_iteration: Final = timm_muon.zeropower_via_newtonschulz
WIDE: Final = 2  # minimum of columns / rows; below 1.5 timm's iteration takes fewer products


class Float32Muon(Muon):
    """timm's Muon with `orthogonalise` instead of timm's iteration, which is in bfloat16."""

    def step(self, closure: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        """Take a step with timm's function replaced; not thread-safe."""
        timm_muon.zeropower_via_newtonschulz = orthogonalise  # type: ignore[assignment]
        try:
            return super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            timm_muon.zeropower_via_newtonschulz = timm_iteration


def orthogonalise(
    matrix: Tensor,
    steps: int,
    coefficients: Sequence[tuple[float, float, float]],
    **options: Any,  # noqa: ANN401 - as in timm
) -> Tensor:
    """Like timm's `zeropower_via_newtonschulz` for a [rows, columns] matrix, in float32.

    `coefficients` has (a, b, c) of each step; the last is repeated.
    """
    rows, columns = sorted(matrix.shape[-2:])
    if matrix.ndim > 2 or columns < WIDE * rows or options.get("scale_eps"):
        return timm_iteration(matrix, steps, list(coefficients), dtype=torch.float32, **options)
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    norm = wide.norm().mul(options.get("safety_factor", 1.0)).clamp(min=options["eps"])
    wide = (wide.float() / norm).contiguous()
    square = wide @ wide.mT
    product = None
    for index in range(steps):
        a, b, c = coefficients[min(index, len(coefficients) - 1)]
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if index < steps - 1:
            square = factor @ square @ factor
    result: Tensor = wide if product is None else product @ wide
    return result.mT if matrix.shape[0] > matrix.shape[1] else result
