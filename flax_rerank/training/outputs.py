"""What a run leaves: the trained model, in the forms that were asked for."""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax

from flax_rerank.checkpoint.manifest import CARD
from flax_rerank.dtypes import DTypes
from flax_rerank.saving import save, save_pretrained
from flax_rerank.sharding import find_devices, host_device
from flax_rerank.spec import Spec
from flax_rerank.training.adapter import save_adapter
from flax_rerank.training.lora import LoRASettings

MODEL, PYTORCH, ADAPTER = "model", "pytorch", "adapter"


@dataclass(frozen=True)
class Outputs:
    """What is written, and where.

    Attributes:
        folder: of the run.
        spec, dtypes: of the model.
        card: the text of its README.md.
        pytorch: write a folder for PyTorch too.
        lora: of the adapter, if one was trained.
    """

    folder: Path
    spec: Spec
    dtypes: DTypes
    card: str
    pytorch: bool
    lora: LoRASettings | None

    def write(self, params: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> None:
        """Write the model with these parameters, and the adapter if it is given; each folder appears complete.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        module = self.spec.module(self.dtypes)
        save(self.folder / MODEL, self.spec, self.spec.settings, module, params, overwrite=True)
        (self.folder / MODEL / CARD).write_text(self.card, encoding="utf-8")
        if self.pytorch:
            save_pretrained(self.folder / PYTORCH, self.spec, params, overwrite=True)
        if adapter is not None and self.lora is not None:
            save_adapter(self.folder / ADAPTER, self.spec, self.lora, adapter, overwrite=True)

    def write_alone(self, params: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> None:
        """As `write`, in a process of its own: orbax writes only if all processes of `jax.distributed` do."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_write, self, dict(params), adapter).result()


def _write(outputs: Outputs, params: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> None:
    jax.config.update("jax_platforms", "cpu")  # the devices are those of the process that started this one
    device = find_devices(host_device())[0]
    outputs.write({path: jax.device_put(array, device) for path, array in params.items()}, adapter)
