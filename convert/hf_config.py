"""Reading a Hugging Face config.json strictly: a field that is not understood is an error.

A model that ignores a field which changes the result gives wrong scores. So each family takes the fields that it knows
and says which values it supports; every other field must be on the list of those that cannot change a score. A field
that is taken has the type and is in the range that `KINDS` says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from flax_rerank.models.layers import ACTIVATIONS

REQUIRED = object()
# What `read_config` adds to the fields of config.json: the files of sentence-transformers, and whether there is this
# tensor, which tells two families apart. A Flax checkpoint keeps them, and an export leaves them out.
FILES, TENSOR = "sentence_transformers_files", "roberta.emb_ln.weight"
MOST = 2**31 - 1


@dataclass(frozen=True)
class Kind:
    """What a field may hold: the condition and its words, and what stands in for a wrong value, so that the fields
    after it are checked too before the error is raised."""

    words: str
    holds: Callable[[Any], bool]
    stand_in: Any


def _whole(least: int, most: int) -> Kind:
    return Kind(
        f"a whole number from {least:,} to {most:,}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        least,
    )


def _real(least: float, most: float) -> Kind:
    return Kind(
        f"a number from {least:g} to {most:g}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most,
        most,
    )


def _each(kind: Kind, *names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, kind)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(_real(0, 1e6).holds(each) for each in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


FLAG = Kind("true or false", lambda value: isinstance(value, bool), False)
TEXT = Kind("a string", lambda value: isinstance(value, str), "")
TEXTS = Kind("a list of strings", _is_texts, ())
TEXT_OR_TEXTS = Kind("a string or a list of strings", lambda value: TEXT.holds(value) or TEXTS.holds(value), ())
OBJECT = Kind("an object", lambda value: isinstance(value, dict), {})
NUMBERS = Kind("an object of finite numbers", _is_numbers, {})
LABELS = Kind("an object or a list", lambda value: isinstance(value, dict | list), ())

KINDS: Mapping[str, Kind] = {
    **_each(_whole(1, 2**20), "hidden_size", "intermediate_size", "dim", "hidden_dim", "embedding_size"),
    **_each(_whole(1, 2**20), "d_model", "d_ff"),
    **_each(_whole(1, 2**20), "in_features", "out_features", "dimension"),
    **_each(_whole(1, 2**10), "num_hidden_layers", "layer_sep", "n_layers", "global_attn_every_n_layers"),
    **_each(_whole(1, 2**10), "num_layers", "num_decoder_layers"),
    **_each(_whole(0, 2**10), "start_layer", "max_window_layers"),
    **_each(_whole(1, 2**12), "num_attention_heads", "num_key_value_heads", "head_dim", "n_heads"),
    **_each(_whole(1, 2**12), "num_heads", "d_kv"),
    **_each(_whole(8, 2**10), "relative_attention_num_buckets"),
    **_each(_whole(1, 2**24), "vocab_size"),
    **_each(_whole(0, 2**16), "type_vocab_size"),
    **_each(_whole(1, MOST), "max_position_embeddings", "original_max_position_embeddings", "local_attention"),
    **_each(_whole(1, MOST), "n_positions", "relative_attention_max_distance"),
    **_each(_whole(-1, MOST), "max_relative_positions", "position_buckets"),
    **_each(_whole(0, MOST), "sliding_window", "pad_token_id", "num_labels"),
    **_each(_whole(0, MOST), "decoder_start_token_id"),
    **_each(_whole(0, MOST), "true_token_id", "false_token_id"),
    **_each(_real(1e-30, 1), "layer_norm_eps", "rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    **_each(_real(1, 1e15), "rope_theta", "global_rope_theta", "local_rope_theta"),
    **_each(_real(1e-6, 1e6), "factor", "low_freq_factor", "high_freq_factor", "query_pre_attn_scalar"),
    **_each(_real(1e-6, 1e6), "scale_emb", "scale_depth", "dim_model_base", "temperature"),
    **_each(_real(1e-6, 1e6), "attn_logit_softcapping", "final_logit_softcapping"),
    **_each(FLAG, "attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window"),
    **_each(FLAG, "layer_wise", "head_multi", "norm_bias", "classifier_bias", "bias"),
    **_each(FLAG, "relative_attention", "position_biased_input", "share_att_key"),
    **_each(TEXT, "hidden_act", "hidden_activation", "rope_type", "type", "model_type", "activation"),
    **_each(TEXT, "pooler_hidden_act", "classifier_activation", "classifier_pooling", "activation_function"),
    **_each(TEXT, "feed_forward_proj"),
    **_each(_real(0, 1e6), "lora_alpha"),  # this and the next two in adapter_config.json
    **_each(FLAG, "use_rslora"),
    **_each(NUMBERS, "alpha_pattern", "rank_pattern"),
    **_each(TEXTS, "layer_types", "architectures"),
    **_each(OBJECT, "rope_scaling", "rope_parameters", "modality_config", "processing_kwargs"),
    **_each(LABELS, "id2label"),
    **_each(
        Kind("a string or a list of strings", lambda value: TEXT.holds(value) or TEXTS.holds(value), ()),
        "pos_att_type",
    ),
}


def fault_of(name: str, value: Any) -> str | None:
    """Why a field cannot have this value, or None. Null is absence, which is of every kind."""
    kind = KINDS.get(name)
    if value is None or kind is None or kind.holds(value):
        return None
    return f"{name} is {short(value)}; it must be {kind.words}"


NO_EFFECT_ON_SCORES = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures
    attention_dropout attention_probs_dropout_prob auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id
    directionality diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_factor initializer_range
    keys_to_ignore_at_inference label2id layer_norm_type length_penalty max_length min_length model_max_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_past output_scores pad_token_id pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type prefix problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    sbert_ce_default_activation_function sentence_transformers sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    use_return_dict
    """.split()  # noqa: SIM905  (a list of that many strings would fill a page)
)


class HFConfig:
    """The fields of one config.json, or of a file like it, each to be taken once by the family that reads it."""

    def __init__(self, fields: Mapping[str, Any], file: str = "config.json") -> None:
        self._fields, self._file = fields, file
        self._known = {*NO_EFFECT_ON_SCORES, FILES, TENSOR}
        self._faults: dict[str, None] = {}  # a field may be taken twice: each fault once, in order

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of a field; null counts as absent. A missing field without a default is a fault."""
        value = self.given(name, None)
        if value is not None:
            return value
        if default is not REQUIRED:
            return default
        self.fault(f"{name} is missing")
        return KINDS[name].stand_in

    def given(self, name: str, default: Any) -> Any:
        """The value of a field whose null has a meaning of its own, and is not the same as its absence."""
        self._known.add(name)
        return self.check(name, self._fields.get(name, default))

    def check(self, name: str, value: Any, within: str = "") -> Any:
        """The value of a field, or what stands in for one of another kind, which is a fault."""
        fault = fault_of(name, value)
        if fault is None:
            return value
        self.fault(within + fault)
        return KINDS[name].stand_in

    def fault(self, message: str) -> None:
        """Add a message to the error that `finish` raises."""
        self._faults[message] = None

    def require(self, holds: bool, message: str) -> None:
        """Add a message unless `holds`, a condition on several fields. It counts only where all fields before it are
        right: else it may be about a value that stands in for a wrong one."""
        if not holds and not self._faults:
            self.fault(message)

    def only(self, name: str, *values: object) -> None:
        """Accept a field only if it is absent or has one of `values`, which are supported."""
        value = self.take(name, None)
        if value is not None and not any(value == known and type(value) is type(known) for known in values):
            self.fault(f"{name} = {short(value)} is not supported; only {', '.join(map(repr, values))}")

    def activation(self, name: str, default: Any = REQUIRED) -> str:
        """The value of a field that names an activation, which must be a known one."""
        value = self.take(name, default)
        if value not in ACTIVATIONS:
            self.fault(f"{name} = {short(value)} is not supported; only {', '.join(ACTIVATIONS)}")
        return value

    def finish(self) -> None:
        """Raise ValueError for the faults found and for fields that were not taken."""
        for name, value in self._fields.items():
            if name not in self._known and not _switched_off(value):
                self.fault(f"{name} = {short(value)} is not understood and may change the scores")
        if self._faults:
            raise ValueError(f"{self._file}: " + "; ".join(self._faults))


def _switched_off(value: Any) -> bool:
    """Whether a value means what a missing field means. 0 does not: it equals False, but is a number."""
    return value is None or value is False or value == [] or value == {}
