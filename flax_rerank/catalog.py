"""The rerankers that load here, shown by `flax-rerank models` and docs/models.md: what each is, how it was checked."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

RANDOM = "small random checkpoint"
UNREAD = "see its card"


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        family: `model_type` of its config.json.
        names: published models, as `AUTO_RERANKER_MAPPING` has them, or others of the same kind.
        reranker: the class that scores with it.
        body: the architecture.
        prompt: its prompt format, and how texts are cut.
        length: positions of the published models; None where they differ.
        licence: of the published weights, where their model card or their publisher was read.
        checked: what its scores were compared with.
    """

    family: str
    names: tuple[str, ...]
    reranker: str
    body: str
    prompt: str
    length: int | None
    licence: str
    checked: str


PAIR, PAIR_FLAG = "pair, longest_first", "pair, only_second"
TRANSFORMERS = f"{RANDOM}: transformers 5.24, and float64"
TRANSFORMERS_ALONE = f"{RANDOM}: transformers 5.24"
FLAG = f"{RANDOM}: FlagEmbedding 1.4.2"
CAUSAL, CROSS = "pre-norm, causal, rotary", "CrossEncoder of sentence-transformers 6.2"
MODELS: tuple[Entry, ...] = (
    Entry("xlm-roberta", ("bge-reranker-base", "bge-reranker-large"), "FlaxReranker", "post-norm, table of positions",
          PAIR_FLAG, 512, "MIT", f"{FLAG}, and float64"),
    Entry("xlm-roberta", ("bge-reranker-v2-m3",), "FlaxReranker", "post-norm, table of positions", PAIR_FLAG, 8192,
          "Apache-2.0", f"{FLAG}, and float64"),
    Entry("xlm-roberta", ("maidalun1020/bce-reranker-base_v1",), "FlaxReranker", "post-norm, table of positions",
          PAIR_FLAG, 512, UNREAD, f"{FLAG}, and float64"),
    Entry("bert", ("cross-encoder/ms-marco-MiniLM-L6-v2",), "FlaxReranker", "post-norm, table of positions",
          f"{PAIR}; without a mark of sentence-transformers only_second", 512, "Apache-2.0",
          f"{FLAG}, float64, and CrossEncoder; a trained model on 3,709 pairs"),
    Entry("roberta", ("cross-encoder/stsb-roberta-base",), "FlaxReranker", "post-norm, table of positions", PAIR, 512,
          UNREAD, f"{TRANSFORMERS}, CrossEncoder"),
    Entry("electra", ("cross-encoder/ms-marco-electra-base",), "FlaxReranker", "post-norm, table of positions", PAIR,
          512, UNREAD, TRANSFORMERS),
    Entry("distilbert", (), "FlaxReranker", "post-norm, table of positions", PAIR, 512, UNREAD, TRANSFORMERS),
    Entry("deberta-v2", tuple(f"mixedbread-ai/mxbai-rerank-{size}-v1" for size in ("xsmall", "base", "large")),
          "FlaxReranker", "post-norm, attention to distances", PAIR, 512, "Apache-2.0", TRANSFORMERS),
    Entry("modernbert", ("Alibaba-NLP/gte-reranker-modernbert-base",
                         "ibm-granite/granite-embedding-reranker-english-r2"),
          "FlaxReranker", "pre-norm, not causal, windows, rotary", PAIR, 8192, f"Apache-2.0 (gte); granite: {UNREAD}",
          f"{TRANSFORMERS}, CrossEncoder; 8,192 tokens"),
    Entry("modernbert", tuple(f"cross-encoder/ettin-reranker-{size}-v1"
                              for size in ("17m", "32m", "68m", "150m", "400m", "1b")),
          "FlaxReranker", "the same, with the modules of sentence-transformers for a head", PAIR, 7999, "Apache-2.0",
          f"{RANDOM}: CrossEncoder of sentence-transformers 6.2, both ways, and float64"),
    Entry("new, gte", ("Alibaba-NLP/gte-multilingual-reranker-base",), "FlaxReranker",
          "post-norm, rotary with NTK scaling, gated", PAIR, 8192, "Apache-2.0", f"{TRANSFORMERS}; 8,192 tokens"),
    Entry("none (Jina's XLM-RoBERTa)", ("jinaai/jina-reranker-v2-base-multilingual",), "FlaxReranker",
          "post-norm, table of positions", PAIR, 1024, "CC-BY-NC-4.0", TRANSFORMERS),
    Entry("bert (JinaBERT)", ("jinaai/jina-reranker-v1-turbo-en", "jinaai/jina-reranker-v1-tiny-en"), "FlaxReranker",
          "post-norm, linear biases, gated", PAIR, 8192, UNREAD,
          f"{RANDOM}: transformers' BERT with the same changes, and float64"),
    Entry("gemma, gemma2, llama, mistral, qwen2, qwen3", ("bge-reranker-v2-gemma",), "FlaxLLMReranker",
          "pre-norm, causal, rotary", "flag-llm", None, UNREAD, f"{RANDOM} for each family: FlagEmbedding 1.4.2"),
    Entry("minicpm", ("bge-reranker-v2-minicpm-layerwise",), "LayerWiseFlaxLLMReranker",
          "pre-norm, causal, a head after each of many layers", "flag-layerwise", None, UNREAD, FLAG),
    Entry("cost_wise_gemma", ("bge-reranker-v2.5-gemma2-lightweight",), "LightWeightFlaxLLMReranker",
          "pre-norm, causal, heads after many layers, compression", "flag-lightweight", None, UNREAD, FLAG),
    Entry("qwen3", tuple(f"Qwen/Qwen3-Reranker-{size}" for size in ("0.6B", "4B", "8B")), "FlaxLLMReranker", CAUSAL,
          "qwen3-reranker, right", 40960, "Apache-2.0",
          f"{RANDOM}: the model card's rule, {CROSS}; the real vocabulary"),
    Entry("qwen3", tuple(f"tomaarsen/Qwen3-Reranker-{size}-seq-cls" for size in ("0.6B", "4B", "8B")),
          "FlaxLLMReranker", f"{CAUSAL}, a classification head", "qwen3-reranker, right", 40960, UNREAD,
          f"{RANDOM}: {CROSS}"),
    Entry("qwen2", tuple(f"mixedbread-ai/mxbai-rerank-{size}-v2" for size in ("base", "large")), "FlaxLLMReranker",
          CAUSAL, "mxbai-v2, only_second", 32768, "Apache-2.0", f"{RANDOM}: mxbai-rerank 0.1.6"),
    Entry("qwen3", tuple(f"zeroentropy/{name}{end}" for name in ("zerank-1", "zerank-1-small", "zerank-2")
                         for end in ("", "-reranker")), "FlaxLLMReranker", CAUSAL, "zerank, right", 40960,
          "CC-BY-NC-4.0; zerank-1-small: Apache-2.0",
          f"{RANDOM}: {CROSS}"),
    Entry("qwen3, mistral", tuple(f"ContextualAI/ctxl-rerank-v2-instruct-multilingual-{size}"
                                  for size in ("1b", "2b", "6b")), "FlaxLLMReranker", CAUSAL, "ctxl-v2, right", None,
          "CC-BY-NC-SA-4.0", f"{RANDOM} for each family: the model card's rule, {CROSS}"),
    Entry("llama", ("castorini/rankllama-v1-7b-lora-passage",), "FlaxLLMReranker",
          f"{CAUSAL}, a classification head in an adapter", "rankllama, longest_first", None, UNREAD,
          TRANSFORMERS_ALONE),
    Entry("llama_bidirec", ("nvidia/llama-nemotron-rerank-1b-v2",), "FlaxLLMReranker",
          "pre-norm, not causal, rotary, mean of all tokens", "nemotron, right", None,
          "NVIDIA Open Model License",
          f"{RANDOM}: NVIDIA's class of nemo-automodel 0.7.0"),
    Entry("t5", tuple(f"castorini/monot5-{size}-msmarco" for size in ("base", "large", "3b")), "FlaxLLMReranker",
          "encoder and decoder, of which one step is run", "monot5, right", 512, UNREAD, TRANSFORMERS_ALONE),
    Entry("qwen3 (JinaForRanking)", ("jinaai/jina-reranker-v3",), "FlaxListwiseReranker", f"{CAUSAL}, a projector",
          "jina-v3, up to 125 passages in a prompt", 131072, "CC-BY-NC-4.0", f"{RANDOM}: the publisher's modeling.py"),
)  # fmt: skip


def as_table(models: Sequence[Entry] = MODELS) -> str:
    """The entries as a table in Markdown."""
    columns = [field.name for field in fields(Entry)]
    rows = [columns, ["---"] * len(columns)]
    rows += [[_cell(getattr(entry, column)) for column in columns] for entry in models]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: str | int | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else value or ""
