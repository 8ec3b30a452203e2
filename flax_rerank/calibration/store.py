"""The Flax checkpoint that keeps a calibration."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from flax_rerank import checkpoint
from flax_rerank.auto import find_spec
from flax_rerank.calibration.curve import Calibration
from flax_rerank.checkpoint.folder import sync
from flax_rerank.checkpoint.manifest import CARD
from flax_rerank.conversion import convert
from flax_rerank.conversion.to_flax import refuse_nesting
from flax_rerank.json_files import read_object
from flax_rerank.settings import RerankerModelClass


def store(
    source: str,
    out: Path,
    calibration: Calibration,
    *,
    model_class: str | RerankerModelClass | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> None:
    """Write a Flax checkpoint with a calibration. It appears when it is complete, never before.

    The arrays of a Flax checkpoint are copied as they are; a PyTorch checkpoint is converted. The source is only read.

    Args:
        source: a folder (PyTorch or Flax), or a name on the Hugging Face hub.
        out: the folder to make.
        calibration: fitted to the source's scores with these settings.
        model_class: as for `FlaxAutoReranker.from_finetuned`.
        overwrite: replace an existing Flax checkpoint.
        settings: of the reranker. The checkpoint keeps those of the model.

    Raises:
        FileExistsError: `out` exists and may not be replaced.
        OSError: the disk is full, or `out` cannot be written to.
        ValueError: one of the two folders lies in the other.
        CheckpointError: the source's manifest is damaged.
    """
    settings = {name: value for name, value in settings.items() if name != "dtype"} | {"calibration": calibration}
    spec = find_spec(source, model_class, **settings)
    folder = spec.folder
    if not spec.is_flax or folder is None:
        convert(source, out, model_class=model_class, overwrite=overwrite, **settings)
        return
    refuse_nesting(folder, out)
    config = read_object(folder / "config.json") | {"scoring": spec.settings.kept()}
    text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with checkpoint.new_folder(out, overwrite=overwrite, needed_bytes=size) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json", CARD))
        if (folder / checkpoint.MANIFEST).is_file():
            manifest = checkpoint.read_manifest(folder)
            manifest["files"]["config.json"] = hashlib.sha256(text).hexdigest()
            manifest["sizes"] = manifest.get("sizes", {}) | {"config.json": len(text)}
            written = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (new / checkpoint.MANIFEST).write_text(written, encoding="utf-8")
        for entry in (*new.rglob("*"), new):
            sync(entry)
        # As in every checkpoint, config.json comes last.
        (new / "config.json").write_bytes(text)
        sync(new / "config.json")
