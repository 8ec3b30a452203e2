"""One training step of any reranker: gradients over micro batches, clipping, AdamW; jitted, donated, sharded."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_rerank.dtypes import DTypes
from flax_rerank.models.compression import Compression
from flax_rerank.models.readout import Readout
from flax_rerank.sharding import DATA, replicated
from flax_rerank.training.lora import LoRASettings, combine
from flax_rerank.training.losses import Objective
from flax_rerank.training.optimizer import OptimizerSettings, decayed, make_optimizer


class Batch(NamedTuple):
    """What a step sees: M micro batches of G groups of S passages; R is G * S rows, a group's rows side by side.

    Attributes:
        input_ids: int32 [M, R, L], padded on the right.
        lengths, passage_starts: int32 [M, R]; at least 1 in rows that only fill up the shape.
        labels: float32 [M, G, S]; of one positive and negatives 1 and 0.
        mask: bool [M, G, S]; False for rows that only fill up the shape.
        teacher: scores of a teacher, float32 [M, G, S], or None.
    """

    input_ids: Any
    lengths: Any
    passage_starts: Any
    labels: Any
    mask: Any
    teacher: Any = None


class State(NamedTuple):
    """What a step changes.

    Attributes:
        trained: parameters or LoRA factors, by their dotted paths.
        optimizer: the optimizer's state.
        step: int32 [], steps done.
    """

    trained: dict[str, Any]
    optimizer: Any
    step: Any


class Metrics(NamedTuple):
    """What a step reports, float32 on all devices.

    Attributes:
        loss: [], the mean over the groups.
        gradient_norm: [], before clipping.
        learning_rate: [], of this step.
        losses: [M], of the micro batches.
        logits: [M, layers, G, S].
    """

    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    losses: jax.Array
    logits: jax.Array


class TrainingStep:
    """Trains one model on one mesh.

    Args:
        module: the model, abstract or not; its own parameters are not used.
        mesh: the devices.
        dtypes: those of the model. What is trained is float32 whatever they are.
        shardings: where each trained parameter goes, by its dotted path; see `lora.trained_shardings`.
        objective: what is minimised.
        optimizer: how parameters are updated.
        lora: of the factors; None if all parameters are trained.
        decays: for each trained parameter whether it decays; by default `decayed`.
        remat: of the layers only their input is kept for the gradient, and they are computed twice.
    """

    def __init__(
        self,
        module: nnx.Module,
        mesh: Mesh,
        dtypes: DTypes,
        shardings: Mapping[str, NamedSharding],
        *,
        objective: Objective,
        optimizer: OptimizerSettings,
        lora: LoRASettings | None = None,
        decays: Mapping[str, bool] | None = None,
        remat: bool = False,
    ) -> None:
        module = nnx.merge(*nnx.split(module))  # a copy: the caller's stays as it is
        module.layers.remat = remat  # type: ignore[attr-defined]
        self._graphdef, state = nnx.split(module)
        self._paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]
        self._treedef = jax.tree.structure(state)
        # As in scoring: float32 means float32 on every platform.
        self._precision = "highest" if dtypes.computed == np.float32 else None
        self._objective, self._lora, self._settings = objective, lora, optimizer
        self._optimizer = make_optimizer(optimizer, decayed(shardings) if decays is None else decays)
        self._schedule = optimizer.schedule()
        self._trained = dict(shardings)
        self.mesh = mesh
        everywhere = replicated(mesh)
        abstract = {path: jax.ShapeDtypeStruct((), jnp.float32) for path in shardings}
        self.shardings = State(
            self._trained,
            jax.tree_util.tree_map_with_path(self._sharding_of, jax.eval_shape(self._optimizer.init, abstract)),
            everywhere,
        )
        self.jitted = jax.jit(
            self._step, static_argnums=(3, 4), donate_argnums=0, out_shardings=(self.shardings, everywhere)
        )

    def init(self, trained: Mapping[str, jax.Array]) -> State:
        """The state before the first step. The arrays are donated to that."""
        make = jax.jit(self._optimizer.init, out_shardings=self.shardings.optimizer)
        step = jax.device_put(jnp.zeros((), jnp.int32), self.shardings.step)
        return State(dict(trained), make(dict(trained)), step)

    def abstract_state(self, shapes: Mapping[str, tuple[int, ...]]) -> State:
        """Shapes, dtypes and shardings of the state of trained parameters of these shapes."""
        trained = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
        state = State(trained, jax.eval_shape(self._optimizer.init, trained), jax.ShapeDtypeStruct((), jnp.int32))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.shardings,
        )

    def __call__(
        self,
        state: State,
        frozen: Mapping[str, jax.Array],
        batch: Batch,
        readout: Readout,
        compression: Compression | None = None,
        key: jax.Array | None = None,
    ) -> tuple[State, Metrics]:
        """Run one step. The arrays of `state` are gone afterwards.

        Args:
            state: from `init` or the step before.
            frozen: the model's other parameters, by their dotted paths.
            batch: on the mesh; see `place`.
            readout: the layers that are trained.
            compression: where passages are compressed; None for nowhere.
            key: for the dropout of this step; None for no dropout.
        """
        return self.jitted(state, dict(frozen), batch, readout, compression, key)

    def _step(
        self,
        state: State,
        frozen: dict[str, jax.Array],
        batch: Batch,
        readout: Readout,
        compression: Compression | None,
        key: jax.Array | None,
    ) -> tuple[State, Metrics]:
        def loss(trained: dict[str, jax.Array], micro: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            params = combine(trained, frozen, self._lora, key)
            model = nnx.merge(
                self._graphdef, jax.tree.unflatten(self._treedef, [params[path] for path in self._paths])
            )
            logits = model(
                micro.input_ids, micro.lengths, micro.passage_starts, readout=readout, compression=compression
            )  # [R, layers]
            logits = logits.T.reshape(-1, *micro.labels.shape)  # [layers, G, S]
            return self._objective(logits, micro.labels, micro.teacher, micro.mask), logits

        def add(total: dict[str, jax.Array], indexed: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
            index, micro = indexed
            fold = None if key is None else jax.random.fold_in(key, index)
            (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(state.trained, micro, fold)
            weight = weights[index] if self._settings.average else jnp.ones(())
            total = jax.tree.map(lambda whole, part: whole + weight * part, total, gradient)
            return total, (value, logits)

        # Of a short micro batch each group counts as much as any other.
        groups = batch.mask.any(axis=-1).sum(axis=-1).astype(jnp.float32)  # [M]
        weights = groups / jnp.maximum(groups.sum(), 1.0)
        # The mesh tells the model which devices it is traced for.
        mesh = self.mesh.abstract_mesh
        with jax.default_matmul_precision(self._precision), jax.sharding.use_abstract_mesh(mesh):
            zeros = jax.tree.map(jnp.zeros_like, state.trained)
            gradient, (losses, logits) = jax.lax.scan(add, zeros, (jnp.arange(len(weights)), batch))
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.trained)
        metrics = Metrics(
            loss=(weights * losses).sum(),
            gradient_norm=optax.tree.norm(gradient),
            learning_rate=jnp.asarray(self._schedule(state.step), jnp.float32),
            losses=losses,
            logits=logits,
        )
        return State(optax.apply_updates(state.trained, updates), optimizer, state.step + 1), metrics

    def _sharding_of(self, path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        """Moments are where their parameter is; counts are everywhere."""
        name = getattr(path[-1], "key", None)
        return self._trained[name] if name in self._trained else replicated(self.mesh)


def cut(batch: Batch, tokens: int, multiple: int) -> Batch:
    """The same groups in more micro batches, of at most so many tokens if whole groups allow it.

    A step of cross-entropy or distillation has the same gradient then, but for the order of its sums.

    Args:
        batch: of numpy arrays.
        tokens: of a micro batch.
        multiple: a micro batch has a multiple of so many groups.
    """
    micro, groups, group_size = batch.mask.shape
    rows, length = batch.input_ids.shape[1:]
    parts = [k for k in range(1, groups + 1) if groups % (k * multiple) == 0]
    k = next((k for k in parts if rows * length <= k * tokens), parts[-1] if parts else 1)

    def split(array: np.ndarray | None, *shape: int) -> np.ndarray | None:
        return None if array is None else array.reshape(micro * k, *shape)

    flat = [split(array, rows // k, *array.shape[2:]) for array in batch[:3]]
    return Batch(*flat, *(split(array, groups // k, group_size) for array in batch[3:]))


def place(batch: Batch, mesh: Mesh) -> Batch:
    """A batch of numpy arrays onto a mesh: rows over its data axis, which must divide them; the rest on all devices.
    Each process gives the whole batch."""
    rows, everywhere = NamedSharding(mesh, PartitionSpec(None, DATA)), replicated(mesh)

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    placed = [put(array, rows) for array in batch[:3]]
    return Batch(*placed, *(None if array is None else put(array, everywhere) for array in batch[3:]))
