"""A spec on a mesh, without weights: its steps are planned and traced as scoring runs them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from flax_rerank.batching import Shape, max_step_tokens
from flax_rerank.dtypes import choose_dtype
from flax_rerank.params import shapes_of
from flax_rerank.planning.topology import Topology
from flax_rerank.rerankers.base import plan
from flax_rerank.rerankers.call import Call, resolve
from flax_rerank.rerankers.prepared import Prepared
from flax_rerank.scoring import Scorer, Static
from flax_rerank.sharding import make_mesh, parameter_shardings
from flax_rerank.spec import Spec
from flax_rerank.text.pairs import TokenizedPairs


@dataclass(frozen=True)
class AbstractScorer:
    """What scoring with a spec runs on a mesh.

    Attributes:
        params: the shape, dtype and sharding of each parameter, by its dotted path.
        max_step_tokens: on each device.
    """

    spec: Spec
    params: Mapping[str, jax.ShapeDtypeStruct]
    scorer: Scorer
    call: Call
    dtype: np.dtype
    max_step_tokens: int

    @property
    def mesh(self) -> Mesh:
        return self.scorer.mesh

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters on each device."""
        return sum(
            math.prod(each.sharding.shard_shape(each.shape)) * each.dtype.itemsize for each in self.params.values()
        )

    def trace(self, shape: Shape, static: Static) -> jax.stages.Traced:
        """A step of a shape."""
        return self.scorer.trace(self.params, shape, static)

    def plan(self, pairs: TokenizedPairs) -> Prepared:
        """The shapes and the steps in which these pairs are scored."""
        return plan(self.call, pairs, None, (), self.scorer.row_multiple, self.max_step_tokens)


def abstract_scorer(spec: Spec, topology: Topology, mesh: str | None = None) -> AbstractScorer:
    """Put a spec on a mesh.

    Args:
        mesh: as "data=2,model=4"; by default all devices are on "data".

    Raises:
        MeshError: the mesh takes another number of devices than the topology has, or does not suit the model.
        ValueError: settings that do not fit the model.
    """
    settings, platform = spec.settings, topology.chip.platform
    placed = make_mesh(topology.devices, mesh)
    dtypes = choose_dtype(settings.dtype, use_fp16=settings.use_fp16, use_bf16=settings.use_bf16, platform=platform)
    module = spec.module(dtypes)
    shardings = parameter_shardings(module, placed, settings.sharding_rules)
    params = {
        path: jax.ShapeDtypeStruct(shape, dtypes.stored, sharding=shardings[path])
        for path, shape in shapes_of(module).items()
    }
    most = max_step_tokens(platform, spec.config.hidden_size)
    return AbstractScorer(spec, params, Scorer(module, placed, dtypes), resolve(spec, settings), dtypes.computed, most)
