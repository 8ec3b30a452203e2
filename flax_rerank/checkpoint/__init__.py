"""The Flax checkpoint, a folder:

config.json         format version, kind of reranker, its settings, and the source's own config.json
params/             the parameters, an orbax tree
manifest.json       where they came from, and the sha256 of every other file
tokenizer.json      and the other tokenizer files, as the source had them
kept.safetensors    only if asked for: tensors of the source of which the model has but one row, as the source had them
"""

from flax_rerank.checkpoint.folder import (
    FORMAT,
    FORMAT_VERSION,
    KEPT,
    PARAMS,
    is_flax_config,
    new_folder,
    refuse_existing,
    require_known_format,
)
from flax_rerank.checkpoint.manifest import describe_source, file_hashes, read_manifest, read_source, verify_manifest
from flax_rerank.checkpoint.params import StoredParams, open_params
from flax_rerank.checkpoint.saving import Contents, write

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "KEPT",
    "PARAMS",
    "Contents",
    "StoredParams",
    "describe_source",
    "file_hashes",
    "is_flax_config",
    "new_folder",
    "open_params",
    "read_manifest",
    "read_source",
    "refuse_existing",
    "require_known_format",
    "verify_manifest",
    "write",
]
