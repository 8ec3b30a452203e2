"""Replay FlagEmbedding's own training runs and compare every step.

A case is a folder as FlagEmbedding's trainer left it: case.json (arguments, and what one ulp in the starting weights
does to each quantity), batches.json, steps.json (loss, logits, gradient norm and learning rate of each step),
final.safetensors, and start.safetensors where training does not start from the checkpoint. A quantity holds if it is
within ten times what one ulp does to it.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flax_rerank.convert.rules import TRANSPOSE, Assignment, assignments
from flax_rerank.convert.torch_files import SafetensorsFiles
from flax_rerank.dtypes import FLOAT32
from flax_rerank.models.readout import Readout
from flax_rerank.params import load_arrays, shapes_of
from flax_rerank.sharding import DEFAULT_RULES, make_mesh, parameter_shardings
from flax_rerank.spec import Spec, describe, open_spec
from flax_rerank.training import lora
from flax_rerank.training.heads import new_head
from flax_rerank.training.losses import Objective
from flax_rerank.training.optimizer import OptimizerSettings
from flax_rerank.training.step import Batch, Metrics, TrainingStep, place

TIMES_NOISE = 10
LEARNING_RATE_ERROR = 1e-6  # relative: float32, and the nine digits of steps.json
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Deviation:
    """How far a quantity is from FlagEmbedding's, and how far it may be."""

    found: float
    allowed: float
    where: str = ""

    @property
    def holds(self) -> bool:
        return self.found <= self.allowed

    def __str__(self) -> str:
        mark = "" if self.holds else f" FAILS {self.where}"
        return f"{self.found:.1e} ({self.allowed:.1e}){mark}"


class Case:
    """One training run of FlagEmbedding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.case = self.json("case")
        self.steps = self.json("steps")
        self.arguments = self.case["training_arguments"]
        self.model_arguments = self.case["model_arguments"]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def tensors(self, name: str) -> SafetensorsFiles:
        return SafetensorsFiles(self.folder, [f"{name}.safetensors"])

    @cached_property
    def spec(self) -> Spec:
        """That of the trained model."""
        arguments, base = self.model_arguments, self.base
        if arguments.get("model_type") != "from_raw_model":
            return base
        changed = {name: arguments[name] for name in ("head_type", "head_multi", "start_layer")}
        return describe(base.name, base.folder, {**base.hf, **changed}, base.tokenizer)

    @cached_property
    def base(self) -> Spec:
        """That of the checkpoint. Training reads the last token of "Yes", inference the first."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'Yes' is 2 tokens", UserWarning)
            spec = open_spec(str(self.folder / self.case["checkpoint"]))
        yes = (self.case["yes_token_of_training"],)
        return replace(spec, readout=replace(spec.readout, tokens=yes)) if spec.readout.tokens else spec

    @property
    def readout(self) -> Readout:
        """The layers that are trained: without the patch, FlagEmbedding trains the last one only."""
        readout = self.spec.readout
        return readout if "cutoff_layers" in self.case["patch"] else readout.at(readout.layers[-1:])

    @property
    def lora(self) -> lora.LoRASettings | None:
        arguments = self.model_arguments
        if not arguments.get("use_lora"):
            return None
        targets = tuple("head" if name == "linear_head" else name for name in arguments["target_modules"])
        return lora.LoRASettings(arguments["lora_rank"], arguments["lora_alpha"], arguments["lora_dropout"], targets)

    @property
    def optimizer(self) -> OptimizerSettings:
        same = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
        return OptimizerSettings(
            **{name: self.arguments[name] for name in (*same, "lr_scheduler_type", "max_steps")},
            warmup_steps=self.arguments["warmup_steps_used"],
            average="mean_accumulation" in self.case["patch"],
        )

    def params(self, module: nnx.Module, mesh: Mesh) -> dict[str, jax.Array]:
        """The parameters of the model as training begins, without LoRA."""
        base = self.base.module(FLOAT32)
        shardings = parameter_shardings(base, mesh, DEFAULT_RULES)
        params = load_arrays(self.base.weights(base), FLOAT32.stored, shardings)
        if self.spec is not self.base:
            params |= new_head(module, jax.random.key(0), row=params["head"][0])
        return params

    def batches(self) -> Iterator[Batch]:
        """One batch for each step."""
        micros, count = self.json("batches"), self.arguments["gradient_accumulation_steps"]
        for first in range(0, len(micros), count):
            yield Batch(*(None if parts[0] is None else np.stack(parts) for parts in zip(
                *(self._micro(micro) for micro in micros[first : first + count]), strict=True
            )))  # fmt: skip

    def _micro(self, micro: Mapping[str, Any]) -> tuple[Any, ...]:
        present = np.asarray(micro["attention_mask"], bool)
        input_ids = np.zeros(present.shape, np.int32)
        for row, (ids, real) in enumerate(zip(micro["input_ids"], present, strict=True)):
            input_ids[row, : real.sum()] = np.asarray(ids)[real]  # decoders are padded on the left there
        types = np.asarray(micro.get("token_type_ids", present * 0))
        starts = np.where(types.any(axis=1), types.argmax(axis=1), present.sum(axis=1)).astype(np.int32)
        groups = (-1, self.case["data_arguments"]["train_group_size"])
        labels = np.zeros(len(present), np.float32).reshape(groups)
        labels[:, 0] = 1
        teacher = None
        if self.case["data_arguments"]["knowledge_distillation"]:
            teacher = np.asarray(micro["teacher_scores"], np.float32).reshape(groups)
        return input_ids, present.sum(axis=1, dtype=np.int32), starts, labels, np.ones_like(labels, bool), teacher

    def assignments(self, module: nnx.Module) -> dict[str, list[Assignment]]:
        """The tensors of the whole model that fill each parameter."""
        spec = self.spec
        rules = spec.family.rules(spec.config, spec.readout, spec.hf)
        by_path: dict[str, list[Assignment]] = {path: [] for path in shapes_of(module)}
        for item in assignments(rules, shapes_of(module)):
            by_path[item.path].append(item)
        return by_path

    def expected(self, module: nnx.Module, name: str) -> Iterator[tuple[str, str, Any, np.ndarray]]:
        """What start.safetensors or final.safetensors has: tensor, trained parameter, its region, values there."""
        source = self.tensors(name)
        for tensor, path, item in self.trained(module):
            if tensor not in source.shapes():
                continue
            transform = TRANSPOSE if self.lora else item.transform
            yield tensor, path, item.region, transform.read(source, tensor)

    def trained(self, module: nnx.Module) -> Iterator[tuple[str, str, Assignment]]:
        """The tensors that are trained, and the parameter that each is a part of."""
        targets = self.lora and lora.target_paths(shapes_of(module), self.lora)
        for path, items in self.assignments(module).items():
            for item in items:
                if targets is None:
                    yield item.tensor, path, item
                if targets is None or path not in targets:
                    continue
                base = PREFIX + item.tensor.removesuffix(".weight")
                yield f"{base}.lora_A.weight", path + lora.DOWN, item
                yield f"{base}.lora_B.weight", path + lora.UP, item


def replay(case: Case, mesh: Mesh | None = None, *, weights: bool = True, **settings: Any) -> dict[str, Deviation]:
    """Train as the case did, and compare.

    Args:
        case: the run.
        mesh: the devices; by default one.
        weights: compare with final.safetensors too.
        settings: more arguments of `TrainingStep`.
    """
    mesh = make_mesh(jax.devices()[0]) if mesh is None else mesh
    module = case.spec.module(FLOAT32)
    shardings = parameter_shardings(module, mesh, DEFAULT_RULES)
    trained, frozen = lora.start(case.params(module, mesh), shardings, case.lora, jax.random.key(0))
    if (case.folder / "start.safetensors").is_file():
        trained = _started(case, module, trained)
    where = lora.trained_shardings(shardings, {path: array.shape for path, array in trained.items()})
    trained = jax.device_put(trained, where)
    step = TrainingStep(
        module, mesh, FLOAT32, where, objective=Objective(), optimizer=case.optimizer, lora=case.lora,
        decays=_decays(case, module), **settings,
    )  # fmt: skip
    state = step.init(trained)
    metrics: list[Metrics] = []
    for batch in case.batches():
        state, result = step(state, frozen, place(batch, mesh), case.readout)
        metrics.append(jax.device_get(result))
    found = _compare(case, metrics)
    return found | {"weights": _compare_weights(case, module, state.trained)} if weights else found


def _started(case: Case, module: nnx.Module, trained: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """The parameters at the start: factors are those of the run; new heads must be the same as ours."""
    arrays = {path: np.array(array) for path, array in trained.items()}
    for tensor, path, region, values in case.expected(module, "start"):
        if case.lora is None:
            np.testing.assert_array_equal(arrays[path][region], values, tensor)
        arrays[path][region] = values
    return arrays


def _decays(case: Case, module: nnx.Module) -> dict[str, bool]:
    """Which parameters decayed: in transformers 4.46 the norms of Gemma, as all that is not registered as a norm."""
    decaying = {name for group in case.case["optimizer_groups"] if group["weight_decay"] for name in group["names"]}
    return {path: tensor in decaying for tensor, path, _ in case.trained(module)}


def _compare(case: Case, metrics: list[Metrics]) -> dict[str, Deviation]:
    noise, steps = case.case["noise_of_one_ulp"], case.steps
    encoder = case.case["kind"] == "encoder"

    def logits(values: Any) -> np.ndarray:
        values = np.asarray(values, np.float64)
        return values - values.mean(axis=-1, keepdims=True) if encoder else values

    def of(error: Callable[[Metrics, Any], Any], allowed: float) -> Deviation:
        errors = [float(np.max(error(ours, theirs))) for ours, theirs in zip(metrics, steps, strict=True)]
        worst = int(np.argmax(errors))
        return Deviation(errors[worst], allowed, f"step {worst}")

    def micro(theirs: Any, name: str) -> np.ndarray:
        return np.asarray([part[name] for part in theirs["micro"]])

    return {
        "loss": of(lambda a, b: np.abs(a.losses - micro(b, "loss")), TIMES_NOISE * noise["loss"]),
        "gradient norm": of(
            lambda a, b: abs(a.gradient_norm / b["grad_norm"] - 1), TIMES_NOISE * noise["grad_norm_rel"]
        ),
        "learning rate": of(
            lambda a, b: abs(a.learning_rate - b["lr"]) / case.arguments["learning_rate"], LEARNING_RATE_ERROR
        ),
        "logits": of(
            lambda a, b: np.abs(logits(a.logits) - logits(micro(b, "logits").reshape(a.logits.shape))),
            TIMES_NOISE * noise["logits_less_group_mean" if encoder else "logits"],
        ),
    }


def _compare_weights(case: Case, module: nnx.Module, trained: Mapping[str, jax.Array]) -> Deviation:
    """The tensor that is farthest beyond, or nearest to, what it may deviate."""
    left_out, noise = set(case.case["gradient_is_rounding_noise"]), case.case["weight_noise_of_one_ulp"]
    # What has no gradient, such as the head of a layer that is not scored, PyTorch does not even decay.
    touched = case.tensors("first_gradient").shapes()
    worst = Deviation(0.0, 1.0)
    for tensor, path, region, values in case.expected(module, "final"):
        if tensor in left_out or tensor not in touched:
            continue
        found = Deviation(
            float(np.abs(np.asarray(trained[path])[region] - values).max()), TIMES_NOISE * noise[tensor], tensor
        )
        if found.found * worst.allowed > worst.found * found.allowed:
            worst = found
    return worst


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of cases")
    parser.add_argument("--remat", action="store_true", help="compute layers twice instead of keeping their states")
    options = parser.parse_args(arguments)
    found = sorted(path.parent for path in options.folder.glob("*/case.json"))
    if not found:
        parser.error(f"no case in {options.folder}: looked for */case.json")
    failed = []
    for number, folder in enumerate(found):
        deviations = replay(Case(folder), remat=options.remat)
        if number == 0:
            print("largest deviation (allowed: ten times what one ulp in the starting weights does)")
            print(" | ".join(["case", *deviations]))
        print(" | ".join([folder.name, *map(str, deviations.values())]), flush=True)
        failed += [] if all(deviation.holds for deviation in deviations.values()) else [folder.name]
    print(f"{len(found) - len(failed)} of {len(found)} cases hold" + (f", not {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
