"""The settings of a training: names and defaults are those of FlagEmbedding and transformers where they mean the
same."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from flax_rerank.settings import RATIOS, RerankerModelClass, setting
from flax_rerank.sharding import Devices, MeshShape
from flax_rerank.training.data.settings import DataSettings
from flax_rerank.training.lora import LoRASettings
from flax_rerank.training.losses import LOSSES, Objective
from flax_rerank.training.optimizer import AdamWSettings, OptimizerSettings

POSITIVE = ("eval_steps", "save_steps", "logging_steps", "early_stopping_patience", "max_steps")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(DataSettings, AdamWSettings):
    """All that a training can be told, besides the model and the data."""

    output_dir: str = setting(
        "", "the folder of the run: its checkpoints, curves and the trained model", metavar="DIR"
    )
    overwrite_output_dir: bool = setting(False, "start over, and remove what an earlier run left in output_dir")

    model_class: str | None = setting(
        None,
        "the kind of reranker, where neither name nor config.json says it, or to train from a raw model",
        choices=[kind.value for kind in RerankerModelClass],
    )
    from_raw: bool = setting(False, "the model has no head that scores a pair yet: make new ones")
    start_layer: int | None = setting(None, "first layer with a head; with from_raw (layerwise, lightweight)")
    layer_sep: int | None = setting(None, "layers from one head to the next; with from_raw (lightweight)")
    prompt_format: str | None = setting(None, "the name of a prompt format (LLM rerankers)", metavar="NAME")

    loss: str = setting("cross_entropy", "what is minimised", choices=sorted(LOSSES))
    distillation_weight: float = setting(1.0, "weight of the distillation from teacher scores", metavar="WEIGHT")
    distillation_temperature: float = setting(1.0, "temperature of that", metavar="TEMPERATURE")
    self_distillation_weight: float = setting(
        1.0, "weight of the distillation of the last layer into the others (layerwise, lightweight)", metavar="WEIGHT"
    )
    compress_layers: Sequence[int] = setting(
        (8,), "layers, each of which compresses passages in half of the steps (lightweight)", metavar="N"
    )
    compress_ratios: Sequence[int] = setting(
        RATIOS, "passage tokens that become one: one of these for each step (lightweight)", metavar="N"
    )

    use_lora: bool = setting(False, "train an adapter of low rank, and not all parameters")
    lora_rank: int = setting(64, "of the adapter", metavar="N")
    lora_alpha: float = setting(16.0, "the adapter counts alpha / rank times", metavar="ALPHA")
    lora_dropout: float = setting(0.1, "share of input features that an adapter does not see in a step", metavar="P")
    target_modules: Sequence[str] | None = setting(
        None, "parameters that get an adapter, by the ends of their names; by default all of the layers",
        metavar="NAME",
    )  # fmt: skip
    train_heads: bool | None = setting(
        None,
        "train the head whole beside the adapter; by default if it is new or that of an encoder",
        flag="--train-heads",
    )

    warmup_ratio: float = setting(0.0, "share of the steps in which the learning rate rises from 0", metavar="SHARE")
    warmup_steps: int = setting(0, "steps in which it rises, in place of warmup_ratio", metavar="N")
    max_steps: int | None = setting(None, "steps of the run; by default those of num_train_epochs", metavar="N")
    gradient_checkpointing: bool = setting(False, "compute the layers twice and keep only their inputs: less memory")
    bf16: bool | None = setting(
        None, "compute in bfloat16, with float32 parameters; by default on TPU and GPU", flag="--bf16"
    )
    devices: Devices = setting(
        None,
        '"cpu", "gpu", "tpu", "cuda:0", 0, ...; by default all',
        parse=lambda text: int(text) if text.isdecimal() else text,
        metavar="DEVICE",
    )
    mesh: MeshShape = setting(None, 'sizes of the mesh\'s axes, as "data=4,model=2"', parse=str, metavar="MESH")

    coordinator: str | None = setting(
        None, "address of process 0 for jax.distributed, where JAX cannot find it", metavar="HOST:PORT"
    )
    num_processes: int | None = setting(None, "number of processes, with coordinator", metavar="N")
    process_id: int | None = setting(None, "which of them this process is, with coordinator", metavar="I")

    eval_data: str | None = setting(
        None, "a ranking to evaluate on: a folder with corpus.jsonl, queries.jsonl, qrels and run.txt", metavar="DIR"
    )
    eval_steps: int | None = setting(None, "steps from one evaluation to the next; by default a tenth", metavar="N")
    eval_max_length: int = setting(512, "tokens of a pair in evaluations", metavar="N")
    metric_for_best_model: str = setting("nDCG@10", "the measure that says which checkpoint is the best", metavar="M")
    load_best_model_at_end: bool = setting(True, "give the best checkpoint, not the last one", flag="--no-best-model")
    early_stopping_patience: int | None = setting(
        None, "stop when this many evaluations brought nothing better", metavar="N"
    )

    save_steps: int = setting(500, "steps from one checkpoint to the next", metavar="N")
    save_total_limit: int = setting(2, "checkpoints that are kept, besides the best one", metavar="N")
    logging_steps: int = setting(10, "steps from one report to the next", metavar="N")
    report_to: Sequence[Literal["tensorboard", "wandb"]] = setting((), "where the figures go, besides curve.jsonl")
    export: Sequence[Literal["pytorch", "adapter"]] = setting(
        (), "write the model for PyTorch too, or the adapter in PEFT's format"
    )
    show_progress_bar: bool | None = setting(
        None, "show no progress bar; by default it is shown on a terminal", flag="--no-progress"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio is {self.warmup_ratio}; it must be between 0 and 1")
        wrong = [ratio for ratio in self.compress_ratios if ratio not in RATIOS]
        if wrong or not self.compress_ratios:
            raise ValueError(f"compress_ratios {list(self.compress_ratios)} must be of {', '.join(map(str, RATIOS))}")
        if "adapter" in self.export and not self.use_lora:
            raise ValueError("export adapter: there is one only with use_lora")
        _ = self.objective  # which checks its values

    @property
    def objective(self) -> Objective:
        """What a step minimises."""
        return Objective(
            self.loss, self.distillation_weight, self.distillation_temperature, self.self_distillation_weight
        )

    def optimizer(self, steps: int) -> OptimizerSettings:
        """How a run of this many steps updates parameters."""
        warmup = self.warmup_steps or math.ceil(self.warmup_ratio * steps)
        values = {field.name: getattr(self, field.name) for field in fields(AdamWSettings)}
        return OptimizerSettings(**values, warmup_steps=min(warmup, steps), max_steps=steps)

    def lora(self, *, new_head: bool) -> LoRASettings | None:
        """The adapter's, if one is trained."""
        if not self.use_lora:
            return None
        targets = None if self.target_modules is None else tuple(self.target_modules)
        heads = new_head if self.train_heads is None else self.train_heads
        return LoRASettings(self.lora_rank, self.lora_alpha, self.lora_dropout, targets, heads)

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the trained weights are, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in _WITHOUT_EFFECT}


# On the weights.
_WITHOUT_EFFECT = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "devices", "mesh", "coordinator", "num_processes", "process_id"),
        *("save_steps", "save_total_limit", "logging_steps", "report_to", "export", "show_progress_bar"),
    }
)
