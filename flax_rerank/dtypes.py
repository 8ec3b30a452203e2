"""Which dtypes a model stores, computes and sums in."""

from dataclasses import dataclass, fields

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
INT8 = np.dtype(np.int8)
STORED = DTYPES | {"int8": INT8}  # what a checkpoint can have: see `flax_rerank.quantization`


@dataclass(frozen=True)
class DTypes:
    """The dtype policy of a model. Frozen and hashable.

    Norms, softmax, biases and heads are computed in float32 whatever the policy, from the parameters as stored.

    Attributes:
        stored: of the parameters.
        computed: of activations, and of parameters in products.
        summed: of the sums in products.
    """

    stored: np.dtype
    computed: np.dtype
    summed: np.dtype = DTYPES["float32"]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, np.dtype(getattr(self, field.name)))


FLOAT32 = DTypes(DTYPES["float32"], DTYPES["float32"])


def choose_dtype(dtype: str | type | np.dtype | None, *, use_fp16: bool, use_bf16: bool, platform: str) -> DTypes:
    """The policy for scoring: parameters are stored in the dtype that is computed in.

    `dtype` decides if given. Else `use_bf16` gives bfloat16 everywhere. Else it is bfloat16 on TPU and GPU,
    whether `use_fp16` is set or not, and float32 on CPU, where FlagEmbedding too ignores `use_fp16`.

    Raises:
        ValueError: an unknown dtype, or float32 together with a request for half precision.
    """
    if dtype is None:
        name = "bfloat16" if use_bf16 or platform != "cpu" else "float32"
    else:
        name = str(dtype) if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if dtype is not None and name == "float32" and (use_fp16 or use_bf16):
        raise ValueError("dtype='float32' contradicts use_fp16 or use_bf16: give one of them")
    return DTypes(stored=DTYPES[name], computed=DTYPES[name])


def stored_dtype(name: str) -> np.dtype:
    """The dtype of a checkpoint by its name. ValueError if it is not one of `STORED`."""
    if name not in STORED:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(STORED)}")
    return STORED[name]
