"""Whether a converted checkpoint is its source: file by file, tensor by tensor, score by score."""

import gc
import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from flax_rerank import checkpoint
from flax_rerank.auto import FlaxAutoReranker
from flax_rerank.conversion.check import Check, check_tensors
from flax_rerank.convert import family_of
from flax_rerank.convert.family import Family
from flax_rerank.dtypes import FLOAT32
from flax_rerank.params import largest_dtype
from flax_rerank.sharding import Devices, host_device
from flax_rerank.spec import open_spec
from flax_rerank.text.pairs import TokenizedPairs

TOLERANCE = 1e-4  # of a score in float32, relative where it is above 1
# The same from weights in 8 bits. Of 3,709 pairs of queries and entities, a trained encoder of 6 layers has 99 %
# within 0.26 and all within 0.53; it has the pairs below within 0.018.
INT8_TOLERANCE = 0.25
MAX_LENGTH = 128
PAIRS = (
    ("what is panda?", "hi"),
    (
        "what is panda?",
        "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
        "endemic to China.",
    ),
    ("Wie heißt die Hauptstadt von Frankreich?", "Paris ist die Hauptstadt und die größte Stadt Frankreichs."),
    ("how do vaccines work", "A vaccine trains the immune system to recognise a pathogen before it is met."),
    ("世界上最高的山是什么?", "珠穆朗玛峰是世界最高峰,海拔 8848 米。"),
    ("x", "f(x) = x ** 2; f(3) == 9"),
)


def verify(source: Path, folder: Path, adapter: Path | None = None, devices: Devices = None) -> list[Check]:
    """Compare a Flax checkpoint with the PyTorch checkpoint, and the adapter, that it was converted from.

    Its files have the hashes of its manifest; every tensor is that of the source, bit for bit in the checkpoint's
    dtype; and where torch and transformers can run the source, a few pairs score alike in float32, on the CPU if JAX
    has one.

    Raises:
        FileNotFoundError, ValueError: one of the folders is not such a checkpoint.
    """
    files = checkpoint.read_manifest(folder)["files"]
    size = sum((folder / name).stat().st_size for name in files if (folder / name).is_file())
    checks = [
        Check("files", len(files), size, faults=tuple(checkpoint.verify_manifest(folder))),
        check_tensors(source, folder, adapter),
    ]
    if not any(check.faults for check in checks):
        checks.append(check_scores(source, folder, adapter, devices))
    return checks


def check_scores(source: Path, folder: Path, adapter: Path | None = None, devices: Devices = None) -> Check:
    """Score a few pairs in float32 with the Flax checkpoint and with its PyTorch source, as for `verify`.

    The source is rounded to the checkpoint's dtype first: what is compared is the conversion, not the dtype. Of a
    checkpoint in 8 bits the error of these is compared, with a tolerance of its own.
    """
    spec = open_spec(str(folder))
    params = checkpoint.open_params(folder, spec.module(FLOAT32))
    class_name = class_of_transformers(spec.hf)
    skipped = _why_not(spec.family, class_name, adapter, 4 * sum(map(math.prod, params.shapes().values())))
    if skipped:
        return Check("scores", skipped=skipped)
    # A template of the model's own may be longer than the texts may be here.
    max_length = spec.settings.max_length if spec.prompt_format.is_one_text else MAX_LENGTH
    scores, pairs = _score_with_flax(folder, host_device() if devices is None else devices, max_length)
    gc.collect()  # of the two models one at a time is in memory
    expected = score_with_transformers(source, class_name, largest_dtype(params), spec.readout.tokens, pairs)
    differences = np.abs(scores - expected)
    tolerance = INT8_TOLERANCE if params.quantized else TOLERANCE
    faults = tuple(
        f"pair {pair} scores {scores[pair]:.6f}, {expected[pair]:.6f} in PyTorch"
        for pair in np.flatnonzero(~(differences <= tolerance * np.maximum(1, np.abs(expected)))).tolist()
    )
    return Check("scores", len(scores), None, float(differences.max()), faults)


def class_of_transformers(hf: Mapping[str, Any]) -> str:
    """The class that runs a checkpoint in PyTorch, by its Hugging Face config.json."""
    covered = family_of(hf).model_classes
    return next(name for name in (*(hf.get("architectures") or ()), *covered) if name in covered)


def _why_not(family: Family, class_name: str, adapter: Path | None, size: int) -> str | None:
    """Why PyTorch cannot score here, or None; `size` is that of the parameters in float32."""
    if find_spec("torch") is None:
        return "torch is not installed"
    if adapter is not None:
        return "an adapter was merged, which the source does not have"
    import transformers

    if not family.in_transformers:
        return f"transformers has no class that runs this kind of {class_name} as it is"
    if not hasattr(transformers, class_name):
        return f"transformers {transformers.__version__} has no {class_name}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / 2:
        return f"{size / 1e9:.0f} GB in float32 would take more than half of this machine's {memory / 1e9:.0f} GB"
    return None


def _score_with_flax(folder: Path, devices: Devices, max_length: int) -> tuple[np.ndarray, TokenizedPairs]:
    reranker = FlaxAutoReranker.from_finetuned(
        str(folder),
        dtype="float32",
        devices=devices,
        query_max_length=None,
        max_length=max_length,
        normalize=False,
        show_progress_bar=False,
    )
    return np.asarray(reranker.compute_score(PAIRS)), reranker.prepare(PAIRS).pairs


def score_with_transformers(
    source: Path, class_name: str, dtype: np.dtype, tokens: tuple[int, ...], pairs: TokenizedPairs
) -> np.ndarray:
    """Logits (float64) of pairs in PyTorch, one at a time, in float32, with weights rounded to `dtype`.

    The score is the logit of the first of `tokens` at the last position, minus that of the second if there are two; or
    the logit of a classification head if there are none. Of an encoder-decoder it is the first one's log-softmax.
    """
    import torch
    import transformers

    name_of_dtype = "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"
    model = getattr(transformers, class_name).from_pretrained(
        source, trust_remote_code=False, attn_implementation="eager", **{name_of_dtype: torch.float32}
    )
    model.eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype.name)).to(torch.float32)
    scores = []
    with torch.no_grad():
        for pair in range(len(pairs)):
            ids = pairs.ids(pair)
            inputs = {"input_ids": torch.from_numpy(ids).long()[None]}
            if not tokens and getattr(model.config, "type_vocab_size", 0) > 1:
                inputs["token_type_ids"] = (torch.arange(len(ids))[None] >= int(pairs.passage_starts[pair])).long()
            if model.config.is_encoder_decoder:
                inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(**inputs).logits[0]
            if model.config.is_encoder_decoder:
                scores.append(float(logits[-1, list(tokens)].log_softmax(-1)[0]))
            elif tokens:
                positive, *negative = logits[-1, list(tokens)].tolist()
                scores.append(positive - sum(negative))
            else:
                scores.append(float(logits[0]))
    return np.asarray(scores)
