"""A Flax checkpoint to a Hugging Face folder."""

from pathlib import Path
from typing import Any

import numpy as np

from flax_rerank.conversion.to_flax import refuse_nesting
from flax_rerank.dtypes import FLOAT32
from flax_rerank.saving.hugging_face import export
from flax_rerank.spec import open_spec


def export_checkpoint(source: Path, out: Path, **options: Any) -> np.dtype:
    """Write the Hugging Face folder of a Flax checkpoint, with the options and the result of `export`.

    Raises:
        FileNotFoundError: `source` has no config.json, parameters or tokenizer.
        ValueError: `source` is not a Flax checkpoint, or one of the folders lies in the other.
        CheckpointError: a newer format, damaged parameters.
    """
    spec = open_spec(str(source))
    if not spec.is_flax:
        raise ValueError(f"{source} is not a Flax checkpoint: its config.json does not say that it is one")
    refuse_nesting(source, out)
    return export(out, spec, spec.weights(spec.module(FLOAT32)), **options)
