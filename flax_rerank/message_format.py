"""The prompt format of a decoder that sentence-transformers saved: its files say how a pair becomes a text."""

from collections.abc import Mapping
from typing import Any

from flax_rerank.convert import sentence_transformers
from flax_rerank.convert.hf_config import HFConfig
from flax_rerank.convert.sentence_transformers import BODY, FILES, SETTINGS, TEMPLATES, Module
from flax_rerank.text.chat_template import texts_of_template
from flax_rerank.text.prompts import PromptFormat
from flax_rerank.text.tokenizer import Tokenizer

WITHOUT_EFFECT = ("max_seq_length", "module_output_name", "unpad_inputs", "do_lower_case", "model_args")


def format_of_messages(hf: Mapping[str, Any], tokenizer: Tokenizer, positions: int | None) -> PromptFormat | None:
    """The prompt format that the modules, the chat template and the prompts of a checkpoint make.

    Args:
        hf: config.json, with the files of sentence-transformers.
        tokenizer: with its chat templates.
        positions: the longest input of the model; None for no bound.

    Returns:
        None for a checkpoint without modules, or of which only config.json is known.

    Raises:
        ValueError: modules of other kinds, or settings of theirs that are not understood, by name; a chat template
            that is missing or not supported.
    """
    modules = sentence_transformers.modules_of(hf)
    if not modules or not tokenizer.files:
        return None
    kinds = [module.kind for module in modules]
    if kinds not in (["Transformer"], ["Transformer", "LogitScore"]):
        raise ValueError(f"a decoder's modules are Transformer and LogitScore, not {', '.join(kinds)}")
    body = modules[0]
    answers = _answers(modules[1]) if len(modules) > 1 else {}
    limits = [body.fields.get("max_seq_length"), tokenizer.max_length, positions]
    longest = min(filter(None, limits), default=None)
    arguments = _template_arguments(body, "LogitScore" in kinds)
    if arguments is None:  # tokenizer(query, document)
        return PromptFormat(special_tokens="own", truncation="longest_first", max_length=longest, **answers)
    named = arguments.pop("chat_template", None)
    template = tokenizer.chat_templates.get(named or "default")
    template = hf[FILES].get(f"{TEMPLATES}/{named}.jinja", template)
    if template is None:
        raise ValueError(f"{BODY}: pairs go through the chat template {named or 'of the tokenizer'}, which is missing")
    text, instructed = texts_of_template(template, {**tokenizer.special_tokens, **arguments})
    settings = hf[FILES].get(SETTINGS) or {}
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"), "")
    if not isinstance(prompt, str):
        raise ValueError(f"{SETTINGS}: the prompt {settings['default_prompt_name']} is not a text")
    return PromptFormat(
        texts=(text,),
        instructed=() if instructed is None else (instructed,),
        instruction=prompt if instructed is not None else "",
        truncation="right",
        keep_tail=True,
        max_length=longest,
        **answers,
    )


def _answers(module: Module) -> dict[str, Any]:
    """The tokens that a LogitScore module reads."""
    hf = HFConfig(module.fields, module.file)
    hf.only("module_input_name", "causal_logits")
    tokens = {"positive": hf.take("true_token_id"), "negative": hf.take("false_token_id", None)}
    hf.finish()
    return tokens


def _template_arguments(body: Module, is_language_model: bool) -> dict[str, Any] | None:
    """What the chat template of a Transformer module is rendered with; None where pairs go without one."""
    hf = HFConfig(body.fields, body.file)
    for name in WITHOUT_EFFECT:
        hf.take(name, None)
    hf.only("transformer_task", "text-generation" if is_language_model else "sequence-classification")
    message = hf.take("modality_config", {}).get("message")
    arguments = hf.take("processing_kwargs", {})
    others = [f"processing_kwargs.{name}" for name in arguments if name != "chat_template"]
    if isinstance(message, dict) and message.get("format", "flat") != "flat":
        others.append(f"modality_config.message.format {message['format']!r}")
    if others:
        hf.fault(f"not supported: {', '.join(others)}")
    hf.finish()
    return None if message is None else dict(arguments.get("chat_template") or {})
