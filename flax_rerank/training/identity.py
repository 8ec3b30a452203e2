"""What a run is: its model, data and settings. A run that goes on must be the same one."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flax_rerank import checkpoint
from flax_rerank.checkpoint.manifest import file_hashes
from flax_rerank.spec import Spec
from flax_rerank.training.settings import TrainingSettings

RUN = "run.json"
FORMAT = "flax-rerank-training"
_NAMES = {"groups": "per_device_train_batch_size times the devices on the data axis"}


@dataclass(frozen=True)
class Identity:
    """What decides the weights that a run gives.

    Attributes:
        model: the name of the base.
        weights: the sha256 of each file of its weights.
        data: the sha256 of each file of data.
        settings: of the run.
        steps: of the run.
        groups: in a micro batch, on all devices together.
    """

    model: str
    weights: Mapping[str, str]
    data: Mapping[str, str]
    settings: Mapping[str, Any]
    steps: int
    groups: int

    @classmethod
    def of(
        cls, spec: Spec, settings: TrainingSettings, data: Mapping[str, str], steps: int, groups: int
    ) -> "Identity":
        """That of a run. All weights are read once."""
        weights = {}
        if spec.folder is not None:
            root = spec.folder / checkpoint.PARAMS if spec.is_flax else spec.folder
            files = sorted(file for file in root.rglob("*") if file.is_file() and _is_weight(file, spec))
            weights = {str(file.relative_to(spec.folder)): digest for file, digest in file_hashes(files).items()}
        values = json.loads(json.dumps(settings.identity(), default=str))
        return cls(spec.name, weights, dict(data), values, steps, groups)

    def enter(self, out: Path, *, overwrite: bool = False) -> None:
        """Make the folder of the run, or find that it is this run's.

        Raises:
            FileExistsError: the folder holds something else.
            ValueError: it is that of another run; all differences, by name.
        """
        file = out / RUN
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"output_dir {out} is a file")
        if file.is_file() and overwrite:
            shutil.rmtree(out)
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            faults = self._differences(stored)
            if faults:
                raise ValueError(
                    f"the run in {out} was started with others:\n"
                    + "\n".join(f"  - {fault}" for fault in faults)
                    + "\ngive the same ones, another output_dir, or overwrite_output_dir"
                )
            return
        if out.is_dir() and any(out.iterdir()):
            raise FileExistsError(f"output_dir {out} is not empty, and holds no {RUN} of a run: give another one")
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f".{RUN}.partial"
        partial.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")
        partial.replace(file)

    def _differences(self, stored: Mapping[str, Any]) -> list[str]:
        faults = []
        for name, now in asdict(self).items():
            before = stored.get(name)
            if before == now:
                continue
            if not isinstance(now, dict) or not isinstance(before, dict):
                faults.append(f"{_NAMES.get(name, name)} is {now}, it was {before}")
                continue
            for key in sorted(before.keys() | now.keys()):
                if before.get(key) != now.get(key):
                    faults.append(_difference(name, key, before.get(key), now.get(key)))
        return faults


def _difference(kind: str, key: str, before: Any, now: Any) -> str:
    if kind == "settings":
        return f"{key} is {now!r}, it was {before!r}"
    what = "file of weights" if kind == "weights" else "file of data"
    if before is None:
        return f"the {what} {key} is new"
    return f"the {what} {key} has changed" if now is not None else f"the {what} {key} is missing"


def _is_weight(file: Path, spec: Spec) -> bool:
    return spec.is_flax or file.suffix in (".safetensors", ".bin")
