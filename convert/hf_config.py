"""Reading a Hugging Face config.json strictly: a field that is not understood is an error.

A model that ignores a field which changes the result gives wrong scores. So each family takes the fields that it knows
and says which values it supports; every other field must be on the list of those that cannot change a score.
"""

from collections.abc import Mapping
from typing import Any

REQUIRED = object()

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
    """The fields of one config.json, each to be taken once by the family that reads it."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._known = set(NO_EFFECT_ON_SCORES)
        self._faults: list[str] = []

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of a field; null counts as absent. A missing field without a default is a fault."""
        self._known.add(name)
        value = self._fields.get(name)
        if value is not None:
            return value
        if default is not REQUIRED:
            return default
        self.fault(f"{name} is missing")
        return 0

    def given(self, name: str, default: Any) -> Any:
        """The value of a field whose null has a meaning of its own, and is not the same as its absence."""
        self._known.add(name)
        return self._fields.get(name, default)

    def fault(self, message: str) -> None:
        """Add a message to the error that `finish` raises."""
        self._faults.append(message)

    def only(self, name: str, *values: object) -> None:
        """Accept a field only if it is absent or has one of `values`, which are supported."""
        value = self.take(name, None)
        if value is not None and not any(value == known and type(value) is type(known) for known in values):
            self.fault(f"{name} = {value!r} is not supported; only {', '.join(map(repr, values))}")

    def finish(self) -> None:
        """Raise ValueError for the faults found and for fields that were not taken."""
        self._faults += [
            f"{name} = {value!r} is not understood and may change the scores"
            for name, value in self._fields.items()
            if name not in self._known and not _switched_off(value)
        ]
        if self._faults:
            raise ValueError("config.json: " + "; ".join(self._faults))


def _switched_off(value: Any) -> bool:
    """Whether a value means what a missing field means. 0 does not: it equals False, but is a number."""
    return value is None or value is False or value == [] or value == {}
