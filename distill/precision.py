"""Where bfloat16 is quicker than float32."""

import torch


def bfloat16_is_quick(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 here; where it is emulated it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
