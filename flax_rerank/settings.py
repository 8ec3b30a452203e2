"""All that a user can set, one frozen dataclass for each kind of reranker.

A field says everything about a setting once: its name, type, default and help. From it follow the argument of the
constructor and of `compute_score`, the command-line option, and the entry in a Flax checkpoint.
"""

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from os import PathLike
from typing import Any, ClassVar, Literal, Self

import numpy as np

from flax_rerank.calibration.curve import Calibration
from flax_rerank.compile_cache import USERS
from flax_rerank.field_types import check_field_types
from flax_rerank.sharding import DEFAULT_RULES, Devices, MeshShape, ShardingRules
from flax_rerank.text.prompts import Instruction, PromptFormat, Truncation, refuse_surrogates

CutoffLayers = int | Sequence[int] | None

RATIOS = (1, 2, 4, 8)
MOST = 2**31 - 1  # of anything that is counted
_INSTRUCTIONS = (
    *("query_instruction_for_rerank", "query_instruction_format"),
    *("passage_instruction_for_rerank", "passage_instruction_format"),
)
_LENGTHS = ("batch_size", "query_max_length", "max_length")


class RerankerModelClass(Enum):
    """The kinds of reranker."""

    ENCODER_ONLY_BASE = "encoder-only-base"
    DECODER_ONLY_BASE = "decoder-only-base"
    DECODER_ONLY_LAYERWISE = "decoder-only-layerwise"
    DECODER_ONLY_LIGHTWEIGHT = "decoder-only-lightweight"
    LISTWISE = "listwise"


def setting(default: Any, help: str, *, kept: bool = False, **option: Any) -> Any:
    """A field of a class of settings.

    Args:
        default: its default.
        help: what it does, for the command line and the docs.
        kept: it belongs to the model rather than to the machine, so a Flax checkpoint keeps it.
        option: what the command-line option needs besides; see `flax_rerank.cli.options`.
    """
    return dataclasses.field(default=default, metadata={"help": help, "kept": kept, **option})


class UnknownSettingError(TypeError):
    """A setting that a kind of reranker does not have.

    Attributes:
        name: the setting.
    """

    def __init__(self, name: str, model_class: str) -> None:
        super().__init__(f"a reranker of the kind {model_class} has no setting {name!r}")
        self.name = name


@dataclass(frozen=True, kw_only=True)
class CallSettings:
    """What may differ from call to call: arguments of the constructor and of `compute_score` of every reranker.

    Names, defaults and meanings are those of FlagEmbedding's arguments.
    """

    # What FlagEmbedding takes by position, in its order. A name may be missing in some of the classes.
    call_positional: ClassVar[tuple[str, ...]] = (
        *(*_LENGTHS, "cutoff_layers", "compress_layer", "compress_layers", "compress_ratio", "prompt", "normalize"),
        *("use_dataloader", "num_workers"),
    )
    # Arguments of FlagEmbedding's `compute_score` that have nothing to choose here, and old names of others.
    without_effect: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}

    query_instruction_for_rerank: str | None = setting(
        None, "put before each query", kept=True, flag="--query-instruction", metavar="TEXT"
    )
    query_instruction_format: str = setting(
        "{}{}", "puts instruction and query together, as in '{}: {}'", kept=True, metavar="FORMAT"
    )
    passage_instruction_for_rerank: str | None = setting(
        None, "put before each passage", kept=True, flag="--passage-instruction", metavar="TEXT"
    )
    passage_instruction_format: str = setting(
        "{}{}", "puts instruction and passage together, as in '{}: {}'", kept=True, metavar="FORMAT"
    )
    batch_size: int = setting(128, "a step computes at most this many times max_length tokens", metavar="N")
    query_max_length: int | None = setting(
        None,
        "tokens of the query; by default 3/4 of max_length, and with truncation longest_first all of it",
        kept=True,
        metavar="N",
    )
    max_length: int = setting(512, "tokens of the pair", kept=True, metavar="N")
    truncation: Truncation | None = setting(
        None,
        "how long texts are cut: only_second cuts the passage, after a query of query_max_length; longest_first cuts "
        "the longer text; by default as the library that the model was published for does it",
        kept=True,
    )
    normalize: bool | Literal["calibrated"] = setting(
        False, "give sigmoid(logit) instead of the logit; calibrated: what the calibration makes of it", kept=True
    )
    calibration: Calibration | None = setting(
        None, "from scores to probabilities, see flax-rerank calibrate", kept=True, cli=False
    )
    show_progress_bar: bool | None = setting(
        None, "show one; by default for calls of more than batch_size pairs", cli=False
    )

    def __post_init__(self) -> None:
        _from_json(self, "calibration", Calibration)
        check_field_types(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.metadata["kept"] and isinstance(value, str):
                refuse_surrogates(field.name, value)
        for name in ("batch_size", "max_length", "query_max_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise ValueError(f"{name} is {value}; it must be at least 1 and at most {MOST}")
        for name in ("query_instruction", "passage_instruction"):
            try:
                getattr(self, name)
            except ValueError as error:
                raise ValueError(f"{name}_format: {error}") from error
        if self.query_tokens("only_second") < 1:
            raise ValueError("query_max_length is 0 (3/4 of max_length); it must be at least 1")

    def query_tokens(self, truncation: Truncation) -> int:
        """The most tokens of a query."""
        if self.query_max_length is not None:
            return self.query_max_length
        return self.max_length * 3 // 4 if truncation == "only_second" else MOST

    @property
    def query_instruction(self) -> Instruction:
        """What is put around each query."""
        return Instruction(self.query_instruction_for_rerank, self.query_instruction_format)

    @property
    def passage_instruction(self) -> Instruction:
        """What is put around each passage."""
        return Instruction(self.passage_instruction_for_rerank, self.passage_instruction_format)

    @classmethod
    def call_names(cls) -> list[str]:
        """What `compute_score` takes besides the pairs, those that FlagEmbedding takes by position first."""
        names = {field.name for field in fields(cls)} | {*cls.without_effect, *cls.renamed}
        return [name for name in cls.call_positional if name in names] + sorted(names - {*cls.call_positional})


@dataclass(frozen=True, kw_only=True)
class Settings(CallSettings):
    """All that the constructor of a reranker takes: what may differ from call to call, and how it is loaded."""

    # As `call_positional`.
    positional: ClassVar[tuple[str, ...]] = (
        *("use_fp16", *_INSTRUCTIONS, "trust_remote_code", "cache_dir", "devices"),
        *(*_LENGTHS, "normalize"),
    )
    call: ClassVar[type[CallSettings]] = CallSettings
    # An entry of `PROMPT_FORMATS`.
    default_format: ClassVar[str] = "pair"

    use_fp16: bool = setting(False, "half precision on TPU and GPU, which is the default there", cli=False)
    use_bf16: bool = setting(False, "bfloat16, on a CPU too", cli=False)
    dtype: str | type | np.dtype | None = setting(
        None,
        "the dtype of parameters and computation; by default bfloat16 on TPU and GPU, float32 on CPU",
        parse=str,
        choices=("float32", "bfloat16"),
    )
    trust_remote_code: bool = setting(False, "no remote code ever runs here, so True changes nothing", cli=False)
    cache_dir: str | PathLike[str] | None = setting(
        None, "where snapshots from the hub are kept", parse=str, metavar="DIR"
    )
    compile_cache: str | PathLike[str] | None = setting(
        USERS,
        "a folder that keeps compiled programs for the next start, or none; by default FLAX_RERANK_CACHE, else the "
        "user's cache folder",
        parse=lambda text: None if text == "none" else text,
        metavar="DIR",
    )
    devices: Devices = setting(
        None,
        '"cpu", "gpu", "tpu", "cuda:0", 0, ...; by default all local devices share each batch',
        parse=lambda text: int(text) if text.isdecimal() else text,
        metavar="DEVICE",
    )
    mesh: MeshShape = setting(
        None,
        'sizes of the mesh\'s axes, as "data=4,model=2": the batch is split over data, the parameters over model',
        parse=str,
        metavar="MESH",
    )
    sharding_rules: ShardingRules = setting(DEFAULT_RULES, "which axes of the parameters are split", cli=False)
    passage_max_length: int | None = setting(
        None, "has no effect, here as in FlagEmbedding: max_length bounds the pair", cli=False
    )

    def override(self, **given: Any) -> Self:
        """These settings with those of one call; None stands for the value that is there.

        Raises:
            TypeError: a name that `compute_score` does not take.
            ValueError: a value out of range.
        """
        names = self.call.call_names()
        for name in given:
            if name not in names:
                raise TypeError(f"compute_score() got an unexpected keyword argument {name!r}")
        known = {name: value for name, value in given.items() if value is not None and name not in self.without_effect}
        for old, new in self.renamed.items():
            if old in known:
                if new in known:
                    raise TypeError(f"{old} is the old name of {new}: give one of them")
                warn_caller(f"{old} is the old name of {new}", DeprecationWarning)
                known[new] = known.pop(old)
        return dataclasses.replace(self, **known) if known else self

    def kept(self) -> dict[str, Any]:
        """What a Flax checkpoint keeps: the settings of the model that are not the defaults, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.metadata["kept"]}
        defaults = {field.name: field.default for field in fields(self)}
        return {
            name: dataclasses.asdict(value) if isinstance(value, PromptFormat | Calibration) else value
            for name, value in values.items()
            if value != defaults[name]
        }


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """The settings of `FlaxReranker`."""


@dataclass(frozen=True, kw_only=True)
class LLMCall(CallSettings):
    """What `FlaxLLMReranker.compute_score` takes."""

    without_effect: ClassVar[tuple[str, ...]] = ("use_dataloader", "num_workers")

    query_instruction_for_rerank: str | None = setting(
        "A: ", "put before each query", kept=True, flag="--query-instruction", metavar="TEXT"
    )
    passage_instruction_for_rerank: str | None = setting(
        "B: ", "put before each passage", kept=True, flag="--passage-instruction", metavar="TEXT"
    )
    prompt: str | None = setting(None, "the question put after the passage (LLM rerankers)", kept=True, metavar="TEXT")
    instruction: str | None = setting(
        None,
        "what makes a passage relevant, for prompt formats that have a place for it; empty for none (LLM rerankers)",
        kept=True,
        metavar="TEXT",
    )
    share_prefix: bool = setting(
        True, "compute what several pairs begin with once for all of them, where that is faster (LLM rerankers)"
    )


@dataclass(frozen=True, kw_only=True)
class LLMSettings(LLMCall, Settings):
    """The settings of `FlaxLLMReranker`."""

    positional: ClassVar[tuple[str, ...]] = (
        *("peft_path", "use_fp16", "use_bf16", *_INSTRUCTIONS, "cache_dir", "trust_remote_code", "devices"),
        *("cutoff_layers", "compress_layers", "compress_ratio", "prompt", *_LENGTHS, "normalize"),
    )
    call: ClassVar[type[CallSettings]] = LLMCall
    default_format: ClassVar[str] = "flag-llm"

    peft_path: str | PathLike[str] | None = setting(
        None, "a LoRA adapter to merge: a folder or a name on the hub", parse=str, metavar="PATH"
    )
    prompt_format: str | PromptFormat | None = setting(
        None,
        "the name of a prompt format, which says what is put around query and passage (LLM rerankers)",
        kept=True,
        parse=str,
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        _from_json(self, "prompt_format", PromptFormat)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class LayerwiseCall(LLMCall):
    """What `LayerWiseFlaxLLMReranker.compute_score` takes."""

    cutoff_layers: CutoffLayers = setting(
        None, "layers to score after, counted from 1; by default the last (layerwise, lightweight)", kept=True,
        metavar="N",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerwiseSettings(LayerwiseCall, LLMSettings):
    """The settings of `LayerWiseFlaxLLMReranker`."""

    call: ClassVar[type[CallSettings]] = LayerwiseCall
    default_format: ClassVar[str] = "flag-layerwise"


@dataclass(frozen=True, kw_only=True)
class LightweightCall(LayerwiseCall):
    """What `LightWeightFlaxLLMReranker.compute_score` takes."""

    without_effect: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {"compress_layer": "compress_layers"}

    compress_layers: Sequence[int] = setting(
        (8,), "layers, counted from 0, before which passage tokens are averaged (lightweight)", kept=True, metavar="N"
    )
    compress_ratio: int = setting(
        1, "passage tokens that become one: 1 (none), 2, 4 or 8 (lightweight)", kept=True, metavar="N"
    )
    head_index: Literal["reference", "layer"] = setting(
        "reference",
        "the head of each layer: reference takes the first head for the lowest layer asked, and so on, as "
        "FlagEmbedding does; layer takes each layer's own (lightweight)",
        kept=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compress_ratio not in RATIOS:
            raise ValueError(f"compress_ratio {self.compress_ratio!r} is not one of {', '.join(map(str, RATIOS))}")


@dataclass(frozen=True, kw_only=True)
class LightweightSettings(LightweightCall, LayerwiseSettings):
    """The settings of `LightWeightFlaxLLMReranker`."""

    call: ClassVar[type[CallSettings]] = LightweightCall
    default_format: ClassVar[str] = "flag-lightweight"

    attention_softcap: Literal["reference", "config"] = setting(
        "reference",
        "reference leaves out Gemma 2's bound of attention scores, as FlagEmbedding does; config applies it "
        "(lightweight)",
        kept=True,
    )


@dataclass(frozen=True, kw_only=True)
class ListwiseCall(LLMCall):
    """What `FlaxListwiseReranker.compute_score` takes."""

    query_max_length: int | None = setting(512, "tokens of the query", kept=True, metavar="N")
    passage_max_length: int = setting(
        2048, "tokens of a passage (listwise; other rerankers cut by max_length)", kept=True, metavar="N"
    )
    max_length: int = setting(131072, "tokens of the texts in one prompt", kept=True, metavar="N")
    passages_per_prompt: int = setting(125, "passages in one prompt, at most 125 (listwise)", kept=True, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in {"passage_max_length": MOST, "passages_per_prompt": 125}.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1 and at most {most}")


@dataclass(frozen=True, kw_only=True)
class ListwiseSettings(ListwiseCall, LLMSettings):
    """The settings of `FlaxListwiseReranker`."""

    call: ClassVar[type[CallSettings]] = ListwiseCall
    default_format: ClassVar[str] = "jina-v3"


SETTINGS: Mapping[RerankerModelClass, type[Settings]] = {
    RerankerModelClass.ENCODER_ONLY_BASE: EncoderSettings,
    RerankerModelClass.DECODER_ONLY_BASE: LLMSettings,
    RerankerModelClass.DECODER_ONLY_LAYERWISE: LayerwiseSettings,
    RerankerModelClass.DECODER_ONLY_LIGHTWEIGHT: LightweightSettings,
    RerankerModelClass.LISTWISE: ListwiseSettings,
}


def _from_json(settings: CallSettings, name: str, kind: Any) -> None:
    """Make a setting that is a dataclass of the object that JSON has."""
    value = getattr(settings, name)
    if not isinstance(value, dict):
        return
    names = [field.name for field in fields(kind)]
    unknown = [field for field in value if field not in names]
    if unknown:
        raise TypeError(f"{name} has no field {unknown[0]!r}; it has {', '.join(names)}")
    object.__setattr__(settings, name, kind(**value))


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point to the first caller outside of this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("flax_rerank"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
