"""Reading a Hugging Face config.json strictly: a field that nobody understands is an error.

A model that ignores a field which changes the result gives wrong scores. So each family takes the fields
that it knows, states the values of those that it does not implement, and everything else must be on the
list of fields that cannot change a score.
"""

from collections.abc import Mapping
from typing import Any

REQUIRED = object()

NO_EFFECT_ON_SCORES = frozenset(
    [
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "architectures",
        "auto_map",
        "model_type",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "torchscript",
        "return_dict",
        "use_cache",
        "cache_implementation",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "use_return_dict",
        "gradient_checkpointing",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "classifier_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "initializer_range",
        "initializer_factor",
        "layer_norm_type",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "unk_token_id",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "tokenizer_class",
        "sbert_ce_default_activation_function",
        "sentence_transformers",
        "model_max_length",
        "keys_to_ignore_at_inference",
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "begin_suppress_tokens",
        "suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "exponential_decay_length_penalty",
        "bad_words_ids",
        "do_sample",
        "early_stopping",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "diversity_penalty",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "prefix",
        "use_bfloat16",
        "tf_legacy_loss",
        "chunk_size_feed_forward",
        "unsloth_version",
        "unsloth_fixed",
    ]
)


class HFConfig:
    """The fields of one config.json, each to be taken once by the family that reads it."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._known = set(NO_EFFECT_ON_SCORES)
        self._faults: list[str] = []

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of a field; null counts as absent. A missing field without a default is a fault."""
        self._known.add(name)
        value = self._fields.get(name)
        if value is None:
            if default is REQUIRED:
                self.fault(f"{name} is missing")
                return 0
            return default
        return value

    def fault(self, message: str) -> None:
        """Note something that `finish` is to raise."""
        self._faults.append(message)

    def only(self, name: str, *values: object) -> None:
        """Accept a field only if it is absent or has one of `values`: the others are not implemented."""
        value = self.take(name, None)
        if value is not None and value not in values:
            self.fault(f"{name} = {value!r} is not supported; only {', '.join(map(repr, values))}")

    def finish(self) -> None:
        """Raise ValueError for the faults found and for fields that nobody has taken."""
        self._faults += [
            f"{name} = {value!r} is not understood and may change the scores"
            for name, value in self._fields.items()
            if name not in self._known and value not in (None, False, [], {})
        ]
        if self._faults:
            raise ValueError("config.json: " + "; ".join(self._faults))

    @property
    def labels(self) -> int | None:
        """How many labels the classification head has; None where the config does not say."""
        if self._fields.get("id2label"):
            return len(self._fields["id2label"])
        return self._fields.get("num_labels")
