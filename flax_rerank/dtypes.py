"""Which dtype a model computes in."""

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def choose_dtype(dtype: str | None, *, use_fp16: bool, use_bf16: bool, platform: str) -> np.dtype:
    """The dtype of parameters and activations.

    `dtype` decides if given. Else `use_bf16` gives bfloat16 everywhere. Else it is bfloat16 on TPU and GPU,
    whether `use_fp16` is set or not, and float32 on CPU, where FlagEmbedding too ignores `use_fp16`.

    Raises:
        ValueError: an unknown dtype, or float32 together with a request for half precision.
    """
    if dtype is not None:
        name = str(dtype) if isinstance(dtype, str) else np.dtype(dtype).name
        if name not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if name == "float32" and (use_fp16 or use_bf16):
            raise ValueError("dtype='float32' contradicts use_fp16 or use_bf16: give one of them")
        return DTYPES[name]
    if use_bf16:
        return DTYPES["bfloat16"]
    return DTYPES["float32" if platform == "cpu" else "bfloat16"]
