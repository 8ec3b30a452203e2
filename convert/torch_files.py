"""The weight files of a PyTorch checkpoint folder, read lazily."""

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # registers bfloat16 with numpy, which safetensors needs to read it
import numpy as np
from safetensors import SafetensorError, safe_open

from flax_rerank.convert.rules import CheckpointError, Shape, TensorSource

logger = logging.getLogger(__name__)

FLOATS = {"F64", "F32", "F16", "BF16"}


def open_torch_files(folder: Path) -> TensorSource:
    """Open the weights in `folder`: safetensors if there are any, else pytorch_model.bin.

    Raises:
        FileNotFoundError: no weights in the folder.
        CheckpointError: corrupt or missing files.
        ImportError: only a pickle, and no torch to read it safely.
    """
    if (folder / "model.safetensors").is_file():
        return SafetensorsFiles(folder, ["model.safetensors"])
    if (folder / "model.safetensors.index.json").is_file():
        return SafetensorsFiles.from_index(folder / "model.safetensors.index.json")
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        return PickleFiles(folder, pickles)
    raise FileNotFoundError(
        f"no weights in {folder}: looked for model.safetensors, model.safetensors.index.json and pytorch_model.bin"
    )


class SafetensorsFiles:
    """Tensors of one safetensors file, or of the shards that an index lists."""

    def __init__(self, folder: Path, files: list[str], weight_map: Mapping[str, str] | None = None) -> None:
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, Shape] = {}
        faults = []
        unread = set()
        found = set()
        for file in files:
            try:
                handle = safe_open(folder / file, framework="numpy")
            except FileNotFoundError:
                faults.append(f"{file} is missing")
                unread.add(file)
                continue
            except SafetensorError as error:
                faults.append(f"{file} is truncated or corrupt ({error})")
                unread.add(file)
                continue
            for name in handle.keys():  # noqa: SIM118  (not a dict)
                entry = handle.get_slice(name)
                if name in self._files:
                    faults.append(f"tensor {name} stands in two files")
                if entry.get_dtype() not in FLOATS and not name.endswith("position_ids"):
                    faults.append(
                        f"tensor {name} has dtype {entry.get_dtype()}; float32, float16 and bfloat16 can be read"
                    )
                self._files[name] = handle
                found.add((name, file))
                self._shapes[name] = tuple(entry.get_shape())
        faults += [
            f"tensor {name} is not in {file}, where the index has it"
            for name, file in (weight_map or {}).items()
            if (name, file) not in found and file not in unread
        ]
        if faults:
            raise CheckpointError(folder, faults)

    @classmethod
    def from_index(cls, path: Path) -> "SafetensorsFiles":
        try:
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise TypeError("weight_map does not map tensors to files")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(path.parent, [f"{path.name} is no index of tensors ({error!r})"]) from error
        return cls(path.parent, sorted(set(weight_map.values())), weight_map)

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)

    def read_row(self, name: str, row: int) -> np.ndarray:
        return self._files[name].get_slice(name)[row : row + 1][0]


class PickleFiles:
    """Tensors of pytorch_model.bin, read by torch's weights_only loader: no code in the pickle runs."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        try:
            import torch
        except ImportError as error:
            raise ImportError(
                f"{folder} has its weights only as a pickle ({files[0].name}), which takes torch to read safely: "
                "pip install 'flax-rerank[torch]', or save it once as safetensors: "
                "AutoModel...from_pretrained(folder).save_pretrained(out, safe_serialization=True)"
            ) from error
        logger.info("reading %s with torch's weights_only loader", folder)
        self._tensors = {}
        for file in files:
            try:
                self._tensors |= torch.load(file, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, TypeError) as error:
                reason = str(error).partition("\n")[0]
                raise CheckpointError(folder, [f"{file.name} is no plain dictionary of tensors ({reason})"]) from error
        self._bfloat16 = torch.bfloat16
        self._int16 = torch.int16

    def shapes(self) -> Mapping[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        if tensor.dtype == self._bfloat16:
            return tensor.view(self._int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def read_row(self, name: str, row: int) -> np.ndarray:
        return self.read(name)[row]
