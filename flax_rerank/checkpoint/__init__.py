"""The Flax checkpoint, a folder:

config.json         format version, kind of reranker, its settings, and the source's own config.json
params/             the parameters, an orbax tree
manifest.json       where they came from, and the sha256 of every other file
tokenizer.json      and the other tokenizer files, as the source had them
kept.safetensors    only if asked for: the source's matrices of which the model has one or two rows
"""

from flax_rerank.checkpoint.folder import (
    FORMAT_VERSION,
    KEPT,
    PARAMS,
    is_flax_config,
    new_folder,
    refuse_existing,
    require_known_format,
)
from flax_rerank.checkpoint.manifest import MANIFEST, read_manifest, verify_manifest
from flax_rerank.checkpoint.params import StoredParams, open_params

__all__ = [
    "FORMAT_VERSION",
    "KEPT",
    "MANIFEST",
    "PARAMS",
    "StoredParams",
    "is_flax_config",
    "new_folder",
    "open_params",
    "read_manifest",
    "refuse_existing",
    "require_known_format",
    "verify_manifest",
]
