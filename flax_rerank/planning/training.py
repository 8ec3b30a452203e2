"""How long a training takes on a topology, and on which mesh its step fits."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flax_rerank.batching import Shape
from flax_rerank.dtypes import DTYPES, DTypes, choose_dtype
from flax_rerank.models.attention import scores_of
from flax_rerank.operations import count_work, sizes_of
from flax_rerank.params import shapes_of
from flax_rerank.planning.plan import sensible_meshes
from flax_rerank.planning.step import DoesNotFit, StepPlan, measure, scores_on_tpu, sizes_on_a_device
from flax_rerank.planning.topology import Topology
from flax_rerank.sharding import DATA, MeshError, make_mesh, parameter_shardings, replicated
from flax_rerank.spec import Spec
from flax_rerank.training.lora import LoRASettings, trained_shapes, trained_shardings
from flax_rerank.training.losses import Objective
from flax_rerank.training.optimizer import OptimizerSettings
from flax_rerank.training.step import Batch, TrainingStep

BACKWARD = 2  # products for each of the forward pass: a gradient by its input, and one by its weight


@dataclass(frozen=True)
class Training:
    """A training to plan. All inputs have the greatest length that the spec's `max_length` allows.

    Attributes:
        per_device_train_batch_size: queries in a micro batch, for each device on the mesh's data axis.
        train_group_size: passages to a query.
        gradient_accumulation_steps: micro batches in a step.
        gradient_checkpointing: layers are computed twice, and only their inputs kept.
        lora: of the factors; None if all parameters are trained.
        examples: queries of the run, each as often as it is seen; None if not known.
    """

    per_device_train_batch_size: int = 8
    train_group_size: int = 8
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    lora: LoRASettings | None = None
    examples: int | None = None

    def describe(self) -> str:
        """The kind of training, in words."""
        kind = "all parameters" if self.lora is None else f"LoRA of rank {self.lora.rank}"
        return f"{kind}, groups of {self.train_group_size} passages"


@dataclass(frozen=True)
class TrainingPlan:
    """What was found for a training on a topology.

    Attributes:
        mesh: the first that the step fits, of those that split the model least; None if it fits none.
        step: on that mesh.
        others: the other meshes, each with the reason why it is not taken.
        price: of a chip for an hour, if it was given.
    """

    model: str
    topology: Topology
    dtype: str
    training: Training
    mesh: str | None
    step: StepPlan | None
    others: dict[str, str]
    price: float | None

    @property
    def examples_per_step(self) -> int:
        """Queries of a step, on all devices; 0 if it does not fit."""
        return self.step.shape.rows // self.training.train_group_size if self.step else 0

    @property
    def steps(self) -> int | None:
        """Of the run; None if its size is not known."""
        if self.training.examples is None or not self.examples_per_step:
            return None
        return -(-self.training.examples // self.examples_per_step)

    @property
    def hours(self) -> float | None:
        """Of the run, at the least; None if its size or the machine's speed is not known."""
        if self.step is None or self.steps is None or not self.step.seconds:
            return None
        return self.steps * self.step.seconds / 3600


def plan_training(
    spec: Spec, topology: Topology, training: Training, *, mesh: str | None = None, price: float | None = None
) -> TrainingPlan:
    """Plan a training: its step is compiled for the meshes of a topology, until it fits.

    Args:
        mesh: the only one to try, as "data=2,model=4".
        price: of a chip for an hour.

    Raises:
        MeshError: `mesh` is impossible.
        ValueError: a GPU, or settings that do not fit the model.
    """
    if topology.chip.platform == "gpu":
        raise ValueError(f"{topology.name}: trainings are planned by compiling, for TPUs alone: take v5e:2x4")
    found, step, others = None, None, {}
    for candidate in [mesh] if mesh is not None else sensible_meshes(topology):
        if step is not None:
            others[candidate] = "not compiled: it splits the model further"
            continue
        try:
            found, step = candidate, compile_training(spec, topology, candidate, training)
        except DoesNotFit as error:
            others[candidate] = str(error)
        except MeshError as error:
            if mesh is not None:
                raise
            others[candidate] = str(error)
    dtype = _dtypes(spec, topology, training).computed.name
    return TrainingPlan(spec.name, topology, dtype, training, found if step else None, step, others, price)


def compile_training(spec: Spec, topology: Topology, mesh: str, training: Training) -> StepPlan:
    """Compile a training's step and count what it does. Its shape has the rows of all devices and micro batches.

    Raises:
        DoesNotFit: the step takes more memory than a device has.
        MeshError: the mesh takes another number of devices than the topology has, or does not suit the model.
    """
    devices, dtypes = make_mesh(topology.devices, mesh), _dtypes(spec, topology, training)
    module = spec.module(dtypes)
    shapes, shardings = shapes_of(module), parameter_shardings(module, devices, spec.settings.sharding_rules)
    trained = trained_shapes(shapes, training.lora)
    step = TrainingStep(
        module,
        devices,
        dtypes,
        trained_shardings(shardings, trained),
        objective=Objective(),
        optimizer=OptimizerSettings(),
        lora=training.lora,
        remat=training.gradient_checkpointing,
    )
    frozen = {
        path: jax.ShapeDtypeStruct(shape, dtypes.stored, sharding=shardings[path])
        for path, shape in shapes.items()
        if path not in trained
    }
    groups = training.per_device_train_batch_size * devices.shape[DATA]
    micro, length = training.gradient_accumulation_steps, spec.template(spec.settings).max_tokens
    rows, everywhere = NamedSharding(devices, PartitionSpec(None, DATA)), replicated(devices)
    of_rows = partial(jax.ShapeDtypeStruct, sharding=rows)
    of_groups = partial(jax.ShapeDtypeStruct, (micro, groups, training.train_group_size), sharding=everywhere)
    size = micro, groups * training.train_group_size
    starts = of_rows(size, jnp.int32)
    batch = Batch(of_rows((*size, length), jnp.int32), starts, starts, of_groups(jnp.float32), of_groups(jnp.bool_))
    key = None
    if training.lora is not None and training.lora.dropout:
        key = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype, sharding=everywhere)
    traced = step.jitted.trace(step.abstract_state(trained), frozen, batch, spec.readout, None, key)
    on_device = sizes_on_a_device(sizes_of(spec.config, spec.readout), devices, spec.settings.sharding_rules)
    scores = scores_on_tpu if topology.chip.platform == "tpu" else scores_of
    work = count_work(on_device, length, spec.readout.layers[-1], count_scores=scores)
    passes = 1 + BACKWARD + training.gradient_checkpointing
    flops = micro * size[1] // devices.shape[DATA] * work.operations * passes
    shape = Shape(micro * size[1], length)
    return measure(traced, topology, shape, flops, 8 * dtypes.computed.itemsize)


def _dtypes(spec: Spec, topology: Topology, training: Training) -> DTypes:
    """As in training: what is trained is float32 in any case, and what is frozen has the dtype that is computed in."""
    settings = spec.settings
    computed = choose_dtype(
        settings.dtype, use_fp16=settings.use_fp16, use_bf16=settings.use_bf16, platform=topology.chip.platform
    ).computed
    return DTypes(DTYPES["float32"] if training.lora is None else computed, computed)
