"""A reranker without weights, from config.json alone: it prepares and traces exactly what scoring would run."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import jax
import tokenizers
from flax import nnx
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from flax_rerank import checkpoint, convert
from flax_rerank.auto import class_of
from flax_rerank.batching import Shape
from flax_rerank.convert.load import architecture_with, family_of, parameters_of
from flax_rerank.hub import local_folder
from flax_rerank.planning.topology import Topology
from flax_rerank.rerankers import AbsReranker
from flax_rerank.rerankers.base import Call, Prepared
from flax_rerank.sharding import ShardingRules, parameter_shardings
from flax_rerank.text.pairs import TokenizedPairs
from flax_rerank.text.tokenizer import Tokenizer

PUBLISHED = files("flax_rerank") / "published_configs.json"


@dataclass(frozen=True)
class Model:
    """What a plan needs to know of a model.

    Attributes:
        hf: config.json of the PyTorch checkpoint.
        kind: the class that scores with it.
        arguments: those for the class that a Flax checkpoint keeps.
        tokenizer: its own; or, where only its name is known, one that makes a token of each word and mark.
        has_tokenizer: it is its own.
    """

    name: str
    hf: Mapping[str, Any]
    kind: type[AbsReranker]
    arguments: Mapping[str, Any]
    tokenizer: Tokenizer
    has_tokenizer: bool


def find_model(name: str, model_class: str | None = None, cache_dir: str | None = None) -> Model:
    """A model from a folder's config.json, from the published ones by name, or from the hub.

    Raises:
        As `FlaxAutoReranker.from_finetuned`.
    """
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    folder = Path(name).expanduser()
    known = name.removeprefix("BAAI/")
    if not folder.is_dir() and known in published:
        hf = published[known]
    else:
        folder = local_folder(name, cache_dir, config_only=True)
        hf = convert.read_config(folder)
        hf = hf["source_config"] if checkpoint.is_flax_config(hf) else hf
    kind, arguments = class_of(name, model_class, cache_dir)
    has_tokenizer = (folder / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_folder(folder) if has_tokenizer else _tokenizer_of_words()
    return Model(name, hf, kind, arguments, tokenizer, has_tokenizer)


class WeightlessReranker(AbsReranker):
    """A reranker as its class makes it, but for the weights, of which only shapes, dtypes and places are there. Mixed
    into a class by `weightless_reranker`."""

    source: ClassVar[Model]

    def _open(self, cache_dir: str | None) -> None:
        self.source_config, self.tokenizer = self.source.hf, self.source.tokenizer
        family = family_of(self.source.hf)
        config, readout = architecture_with(family, self.source.hf, **self._config_overrides())
        self.model = nnx.eval_shape(lambda: family.module(config, readout, self.dtypes))
        shardings = parameter_shardings(self.model, self.mesh, self.sharding_rules)
        for path, param in parameters_of(self.model).items():
            shape = param.get_value().shape
            param.set_value(jax.ShapeDtypeStruct(shape, self.dtype, sharding=shardings[path]))

    @property
    def parameters(self) -> list[jax.ShapeDtypeStruct]:
        """All parameters, with their shardings."""
        return jax.tree.leaves(nnx.state(self.model))

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters on each device."""
        return sum(math.prod(each.sharding.shard_shape(each.shape)) * each.dtype.itemsize for each in self.parameters)

    def trace(self, shape: Shape, options: Mapping[str, Any]) -> jax.stages.Traced:
        """A step of a shape, as scoring runs it."""
        return self._scorer.trace(shape, options)

    def resolve(self) -> Call:
        """What scoring makes of the constructor's arguments."""
        return self._resolve()

    def plan(self, pairs: TokenizedPairs) -> Prepared:
        """The table and the steps in which scoring runs these pairs."""
        return self._plan(self._resolve(), pairs, None, False)


def weightless_reranker(
    model: Model, topology: Topology, mesh: str, rules: ShardingRules, **arguments: Any
) -> WeightlessReranker:
    """A model's reranker without weights.

    Args:
        mesh: as "data=2,model=4".
        rules: which axes of the parameters are split.
        arguments: further ones of the class.

    Raises:
        ValueError: a mesh that takes more or fewer devices than there are, or that heads do not divide over; and as
            the class.
    """
    kind = type(model.kind.__name__, (WeightlessReranker, model.kind), {"source": model})
    given = dict(model.arguments) | arguments
    reranker = kind(model.name, devices=topology.devices, mesh=mesh, sharding_rules=rules, **given)
    reranker._platform = topology.chip.platform  # CPUs may stand for GPUs
    return reranker


def _tokenizer_of_words() -> Tokenizer:
    """Prompts and separators have nearly as many tokens as with the model's own."""
    backend = tokenizers.Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(tokenizers.Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    # XLM-RoBERTa's, the only encoder among the published models.
    backend.post_processor = TemplateProcessing(
        pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return Tokenizer(backend, bos_token_id=1, pad_token_id=0, truncation_side="right", files=())
