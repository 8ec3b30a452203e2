"""A `Spec`: all that is known of a reranker before a weight is read."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from flax import nnx

from flax_rerank import checkpoint, convert
from flax_rerank.convert import TorchCheckpoint
from flax_rerank.convert.family import Family
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.dtypes import DTypes
from flax_rerank.field_types import fits
from flax_rerank.hub import HubError, local_folder, model_name
from flax_rerank.message_format import format_of_messages
from flax_rerank.models import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from flax_rerank.models.readout import Readout
from flax_rerank.params import CheckpointError
from flax_rerank.quantization import DequantizedParams
from flax_rerank.settings import (
    SETTINGS,
    LightweightSettings,
    LLMSettings,
    RerankerModelClass,
    Settings,
    UnknownSettingError,
    warn_caller,
)
from flax_rerank.text.prompts import PromptFormat, Template, Truncation, find_prompt_format
from flax_rerank.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Spec:
    """A reranker without its weights.

    Attributes:
        name: what the user asked for: a folder, or a name on the Hugging Face hub.
        folder: where the checkpoint is; None where only its config is known.
        model_class: the kind of reranker.
        hf: config.json of the PyTorch checkpoint, also where the folder holds a Flax one.
        is_flax: the folder holds a Flax checkpoint.
        config: the shape of the model's body.
        readout: the layers that can be scored, and by which head.
        prompt_format: what is put around query and passage.
        tokenizer: the checkpoint's.
        settings: the user's, and the checkpoint's where the user gave none.
        adapter: the folder of the LoRA adapter that is merged into the weights.
    """

    name: str
    folder: Path | None
    model_class: RerankerModelClass
    hf: Mapping[str, Any]
    is_flax: bool
    config: EncoderConfig | DecoderConfig | EncoderDecoderConfig
    readout: Readout
    prompt_format: PromptFormat
    tokenizer: Tokenizer
    settings: Settings
    adapter: Path | None = None

    @property
    def family(self) -> Family:
        """How the checkpoint's names and config map to the model."""
        return convert.family_of(self.hf)

    @property
    def kept(self) -> Path | None:
        """The file of a Flax checkpoint with matrices of its source of which the model has one row, if it has one."""
        if self.folder is None or not self.is_flax or not (self.folder / checkpoint.KEPT).is_file():
            return None
        return self.folder / checkpoint.KEPT

    def module(self, dtypes: DTypes) -> nnx.Module:
        """The model with parameters that have shapes and no values."""
        return nnx.eval_shape(lambda: self.family.module(self.config, self.readout, dtypes))

    def truncation(self, settings: Settings) -> Truncation:
        """How texts that are too long are cut with these settings."""
        return settings.truncation or self.prompt_format.truncation

    def template(self, settings: Settings) -> Template:
        """The token ids around query and passage, and how these are cut.

        Raises:
            ValueError: inputs could be longer than the model's positions.
        """
        texts = (settings.prompt, settings.instruction) if isinstance(settings, LLMSettings) else ()
        prompt_format = replace(self.prompt_format, truncation=self.truncation(settings))
        query_tokens = settings.query_tokens(prompt_format.truncation)
        template = prompt_format.template(self.tokenizer, settings.max_length, query_tokens, *texts)
        largest = max((*template.prefix, *template.middle, *template.suffix), default=0)
        if largest >= self.config.vocab_size:
            raise ValueError(
                f"the tokenizer of {self.name} puts the token {largest} around texts; the model has "
                f"{self.config.vocab_size} embeddings (vocab_size)"
            )
        positions = self.config.max_length
        if positions is not None and template.max_tokens > positions:
            raise ValueError(
                f"max_length {settings.max_length} makes inputs of up to {template.max_tokens} tokens with all "
                f"that is put around query and passage; the model has {positions} positions (max_position_embeddings)"
            )
        return template

    def weights(self, module: nnx.Module) -> TorchCheckpoint | DequantizedParams:
        """The parameters in the checkpoint's files, matched with those of a module. None is read yet.

        Args:
            module: from `module`.

        Raises:
            FileNotFoundError: there are no weights.
            CheckpointError: they do not fit the config; all reasons at once.
        """
        if self.folder is None:
            raise FileNotFoundError(f"of {self.name} only the config is known; give a folder with its weights")
        if self.is_flax:
            return checkpoint.open_params(self.folder, module)
        return convert.open_checkpoint(self.folder, self.hf, self.config, self.readout, module, self.adapter)


class UnknownKindError(ValueError):
    """Nothing says which kind of reranker a model is."""


def open_spec(
    name: str | os.PathLike[str],
    model_class: RerankerModelClass | None = None,
    named: RerankerModelClass | None = None,
    named_format: str | PromptFormat | None = None,
    **settings: Any,
) -> Spec:
    """Open the checkpoint called `name`; no weight is read.

    Args:
        name: a folder with a PyTorch or a Flax checkpoint, or a name on the Hugging Face hub.
        model_class: the kind of reranker; by default what the checkpoint or its name says.
        named: the kind that the name stands for, if any. A Flax checkpoint says its kind itself.
        named_format: the prompt format that the name stands for, if any.
        settings: of that kind. A Flax checkpoint has its own, which count where these say nothing.

    Raises:
        FileNotFoundError: a folder without config.json or tokenizer.
        OSError: the hub cannot be reached.
        CheckpointError: a Flax checkpoint of a format that is not read here.
        TypeError: a setting that this kind of reranker does not have, or a value of another type than it takes.
        ValueError: settings that do not fit the model; an embedding model; a config that says nothing of the kind.
        NotImplementedError: an architecture that is not covered.
    """
    name = model_name(name)
    try:
        folder = local_folder(name, settings.get("cache_dir"))
    except HubError as error:
        if model_class is None and named is None:
            raise UnknownKindError(f"{name!r} is not a known name, and {error}") from error
        raise
    config = convert.read_config(folder)
    return describe(name, folder, config, Tokenizer.from_folder(folder), model_class, named, named_format, **settings)


def describe(
    name: str,
    folder: Path | None,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    model_class: RerankerModelClass | None = None,
    named: RerankerModelClass | None = None,
    named_format: str | PromptFormat | None = None,
    **settings: Any,
) -> Spec:
    """The spec of a config.json and a tokenizer. Arguments and errors are those of `open_spec`."""
    is_flax = checkpoint.is_flax_config(config)
    stored: Mapping[str, Any] = {}
    hf = config
    if is_flax:
        named, stored, hf = read_flax_config(folder or Path(name), config)
        if model_class not in (None, named):
            raise ValueError(f"{folder or name} is a reranker of the kind {named.value}, not {model_class.value}")
    peft_path = settings.get("peft_path")
    if not fits(peft_path, str | os.PathLike | None):
        raise TypeError(f"peft_path is {peft_path!r}; it must be the path or the name of an adapter")
    adapter = None if peft_path is None else local_folder(str(peft_path), settings.get("cache_dir"))
    if adapter is not None and not is_flax:
        hf = convert.peft.with_head(hf, adapter)
    value = convert.model_class_of(hf)
    says = None if value is None else RerankerModelClass(value)
    chosen = model_class or named or says
    if chosen is None:
        convert.refuse_embedding_model(hf)
        raise UnknownKindError(
            f"{name!r} is not a known name, and its config.json does not say which kind of reranker it is "
            f"(architectures: {hf.get('architectures')}, model_type: {hf.get('model_type')!r})"
        )
    if says not in (None, chosen):
        raise ValueError(f"{folder or name} is a reranker of the kind {says.value}, not {chosen.value}")
    known = {field.name for field in fields(SETTINGS[chosen])}
    for setting in settings:
        if setting not in known:
            raise UnknownSettingError(setting, chosen.value)
    family = convert.family_of(hf)
    # A Flax checkpoint keeps these settings as its own.
    of_source = chosen is RerankerModelClass.ENCODER_ONLY_BASE and not is_flax
    published = convert.sentence_transformers.settings_of(hf) if of_source else {}
    given = SETTINGS[chosen](**{**published, **stored, **settings})
    if given.passage_max_length is not None and chosen is not RerankerModelClass.LISTWISE:
        warn_caller("passage_max_length has no effect, here as in FlagEmbedding: max_length bounds the pair")
    if adapter is not None and is_flax:
        raise ValueError(f"{folder} is a Flax checkpoint: merge the adapter when its source is converted")
    shape, readout = family.architecture(HFConfig(hf))
    largest = max(tokenizer.backend.get_vocab().values(), default=0)
    if largest >= shape.vocab_size:
        raise ValueError(
            f"the tokenizer of {folder or name} has token ids up to {largest}, the model has {shape.vocab_size} "
            "embeddings (vocab_size): they do not belong together"
        )
    if isinstance(given, LLMSettings):
        own, published = given.prompt_format, {}
        saved = None if own or is_flax else format_of_messages(hf, tokenizer, shape.max_length)
        if saved is not None or not (own or is_flax or family.reads_tokens):
            published = convert.sentence_transformers.settings_of(hf)
        if saved is not None and saved.is_one_text:  # the prompt is the instruction of the chat template
            published.pop("query_instruction_for_rerank", None)
        own = own or saved or named_format or family.prompt_format
        defaults = {} if own is None else _defaults_of_format(own, tokenizer, shape) | published
        given = replace(given, **{name: defaults[name] for name in defaults.keys() - stored.keys() - settings.keys()})
    prompt_format = find_prompt_format(getattr(given, "prompt_format", None) or given.default_format)
    if chosen is RerankerModelClass.ENCODER_ONLY_BASE:
        prompt_format = replace(prompt_format, truncation=convert.truncation_of(hf))
    if family.reads_tokens:
        readout = replace(readout, tokens=_answers(prompt_format, tokenizer))
        rows = tuple(config.get("head_tokens", ()))
        if rows and rows != readout.tokens:
            raise ValueError(
                f"{folder} has the rows of the tokens {rows} of the source's head (head_tokens), the prompt "
                f"format reads {readout.tokens}: convert the source again with this prompt_format"
            )
    if prompt_format.markers:
        readout = replace(readout, markers=tuple(_whole_token(marker, tokenizer) for marker in prompt_format.markers))
    if isinstance(given, LightweightSettings) and given.attention_softcap == "reference":
        shape = replace(shape, attention_softcap=None)
    return Spec(
        name=name,
        folder=folder,
        model_class=chosen,
        hf=hf,
        is_flax=is_flax,
        config=shape,
        readout=readout,
        prompt_format=prompt_format,
        tokenizer=tokenizer,
        settings=given,
        adapter=adapter,
    )


def read_flax_config(
    folder: Path, config: Mapping[str, Any]
) -> tuple[RerankerModelClass, Mapping[str, Any], Mapping[str, Any]]:
    """The kind, the settings and the source's config.json that the config.json of a Flax checkpoint holds.

    Raises:
        CheckpointError: it does not hold them.
    """
    checkpoint.require_known_format(folder, config)
    kinds = [kind.value for kind in RerankerModelClass]
    faults = [
        f"config.json: {name} must be an object"
        for name in ("scoring", "source_config")
        if not isinstance(config.get(name), dict)
    ]
    value = config.get("model_class")
    if value not in kinds:
        faults.append(f"config.json: model_class is {value!r}; it must be one of {', '.join(kinds)}")
    if not fits(config.get("head_tokens", []), Sequence[int]):
        faults.append("config.json: head_tokens must be a list of whole numbers")
    if not faults and not {"architectures", "model_type"} & config["source_config"].keys():
        faults.append("config.json: source_config names no architecture")
    if faults:
        raise CheckpointError(folder, faults)
    kind = RerankerModelClass(value)
    kept = {field.name for field in fields(SETTINGS[kind]) if field.metadata["kept"]}
    faults = [
        f"config.json: scoring: {name} is not a setting of the model" for name in config["scoring"] if name not in kept
    ]
    if faults:
        raise CheckpointError(folder, faults)
    try:
        SETTINGS[kind](**config["scoring"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(folder, [f"config.json: scoring: {error}"]) from error
    return kind, config["scoring"], config["source_config"]


def _defaults_of_format(
    own: str | PromptFormat, tokenizer: Tokenizer, shape: EncoderConfig | DecoderConfig | EncoderDecoderConfig
) -> dict[str, Any]:
    """The settings that count with a prompt format where neither the user nor the checkpoint gives them."""
    prompt_format = find_prompt_format(own)
    defaults: dict[str, Any] = {"prompt_format": own}
    if prompt_format.limit != "flag":  # FlagEmbedding's marks, A: and B:, go with its prompts
        defaults |= {"query_instruction_for_rerank": None, "passage_instruction_for_rerank": None}
    if prompt_format.max_length is not None:
        most = prompt_format.max_length
        if shape.max_length is not None:
            tokens = prompt_format.template(tokenizer, most, most * 3 // 4).max_tokens
            most -= max(tokens - shape.max_length, 0)
        defaults["max_length"] = most
    return defaults


def _whole_token(text: str, tokenizer: Tokenizer) -> int:
    """The token that a text is."""
    pieces = tokenizer.encode(text).tolist()
    if len(pieces) != 1 and tokenizer.files:
        raise ValueError(f"the tokenizer has no token {text!r}, which the model reads")
    return pieces[0]


def _answers(prompt_format: PromptFormat, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens whose logits make the score: of an answer in words the first piece, as in FlagEmbedding.

    Raises:
        ValueError: the tokenizer does not have such a token.
    """
    tokens = []
    for answer in (prompt_format.positive, prompt_format.negative):
        if answer is None:
            continue
        pieces = tokenizer.encode(answer).tolist() if isinstance(answer, str) else [answer]
        if not pieces:
            raise ValueError(f"the tokenizer gives no token for {answer!r}")
        if isinstance(answer, int) and tokenizer.backend.id_to_token(answer) is None:
            raise ValueError(f"the tokenizer has no token {answer}, whose logit is to make the score")
        if len(pieces) > 1 and prompt_format.whole_answers:
            raise ValueError(
                f"the tokenizer has no token {answer!r}, whose logit makes the score with this prompt format, and "
                f"makes {len(pieces)} tokens of it. Is it the tokenizer that the model was trained with?"
            )
        if len(pieces) > 1:
            warn_caller(f"{answer!r} is {len(pieces)} tokens to this tokenizer; the score is the logit of the first")
        tokens.append(pieces[0])
    return tuple(tokens)
