"""FlaxListwiseReranker: many passages of one query in one prompt (jina-reranker-v3)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flax_rerank.batching import Step, Table, max_step_tokens
from flax_rerank.models.projector import PASSAGES, WIDTH
from flax_rerank.rerankers.arguments import takes_overrides, takes_settings
from flax_rerank.rerankers.base import AbsReranker, Pairs, plan
from flax_rerank.rerankers.call import Call
from flax_rerank.rerankers.prepared import Prepared, RerankOutput
from flax_rerank.settings import ListwiseCall, ListwiseSettings
from flax_rerank.text.lists import Limits, Prompts, make_prompts
from flax_rerank.text.pairs import encoding_faults, require_no_faults, tokenize
from flax_rerank.text.prompts import Instruction


@dataclass(frozen=True)
class PreparedLists(Prepared):
    """Pairs in lists, and these in prompts. `pairs` are the prompts, and so are what `scored` and `computed` count.

    Attributes:
        prompts: which prompt has a pair's passage, and where.
        text_faults: why a pair cannot be scored, by its index.
    """

    prompts: Prompts
    text_faults: dict[int, str]

    @property
    def faults(self) -> dict[int, str]:
        return self.text_faults

    @property
    def tokens(self) -> np.ndarray:
        """int32 [pairs], tokens of the prompt that has the pair; 0 where it is at fault."""
        return np.append(self.pairs.lengths, np.int32(0))[self.prompts.of_pair]

    @property
    def truncated(self) -> np.ndarray:
        return self.prompts.truncated

    def __len__(self) -> int:
        return len(self.prompts.of_pair)


class FlaxListwiseReranker(AbsReranker):
    """Scores passages by what the model makes of them beside the others of their list, and of the query after all.

    A list is the run of neighbouring pairs with one query, so a pair's score depends on its neighbours. A long list is
    cut into blocks, one prompt each; their query vectors are averaged, weighted by how well the best passage of each
    fits. A score is the cosine of the passage's vector and that average, from -1 to 1.
    """

    model_class = "listwise"

    @takes_settings(ListwiseSettings)
    def __init__(self, model_name_or_path: str, **settings: Any) -> None:
        self._open(model_name_or_path, settings)

    @takes_overrides(ListwiseCall)
    def compute_score(self, sentence_pairs: Pairs, **overrides: Any) -> list[float]:
        return self._compute_score(sentence_pairs, overrides)

    @takes_overrides(ListwiseCall)
    def score(self, sentence_pairs: Pairs, **overrides: Any) -> RerankOutput:
        return self._score(sentence_pairs, overrides)

    def _prepare(
        self, pairs: list[tuple[str, str]], call: Call, table: Table | None, skip_faulty: bool, show: bool
    ) -> Prepared:
        self._require_own_process()
        settings, spec = call.settings, self.spec
        assert isinstance(settings, ListwiseSettings)
        faults = encoding_faults(pairs)
        if not skip_faulty:
            require_no_faults(faults)
        sound = [number for number in range(len(pairs)) if number not in faults]
        query, passage = settings.query_instruction, settings.passage_instruction
        texts = [("", "") if i in faults else (query.apply(q), passage.apply(p)) for i, (q, p) in enumerate(pairs)]
        limits = Limits(
            query=settings.query_tokens("right"),
            passage=settings.passage_max_length,
            prompt=settings.max_length,
            passages=settings.passages_per_prompt,
        )
        prompts = make_prompts(texts, sound, spec.prompt_format, spec.tokenizer, limits)
        positions = spec.config.max_length
        # The prompts are whole: nothing is put around them, and nothing of them is cut.
        most = 1 << 30 if positions is None else positions
        template = replace(call.template, texts=("{query}{passage}",), capacity=most, query_max_length=most, tail=())
        none = Instruction(None, "{}{}")
        tokenized = tokenize(
            [(text, "") for text in prompts.texts],
            spec.tokenizer,
            template,
            query_instruction=none,
            passage_instruction=none,
            show_progress_bar=show,
        )
        if tokenized.truncated.any():
            prompt = int(np.argmax(tokenized.truncated))
            pair = int(np.argmax(prompts.of_pair == prompt))
            raise ValueError(
                f"pair {pair}: the prompt with it and its neighbours has more tokens than the model has positions, "
                f"{positions}: lower max_length, which bounds the texts of a prompt"
            )
        longest = int(tokenized.lengths.max(initial=1))
        call = replace(call, template=replace(template, capacity=longest, query_max_length=longest))
        width = max_step_tokens(self._platform, spec.config.hidden_size)
        planned = plan(call, tokenized, table, (), self._scorer.row_multiple, width, skip_faulty)
        return PreparedLists(**vars(planned), prompts=prompts, text_faults=faults)

    def _run(self, prepared: Prepared, show_progress_bar: bool) -> tuple[np.ndarray, list[Step]]:
        assert isinstance(prepared, PreparedLists)
        rows, steps = self._run_rows(prepared, show_progress_bar)
        vectors = rows.astype(np.float64).reshape(-1 if len(rows) else 0, PASSAGES + 1, WIDTH)
        prompts = prepared.prompts
        scores = np.full((len(prepared), 1), np.nan)
        for members in prompts.lists:
            of_pair, place = prompts.of_pair[members], prompts.place[members]
            passages = vectors[of_pair, place]
            queries = vectors[np.unique(of_pair), -1]
            fit = (1 + _cosine(passages, vectors[of_pair, -1])) / 2
            weights = [fit[of_pair == prompt].max() for prompt in np.unique(of_pair)]
            scores[members, 0] = _cosine(passages, np.average(queries, axis=0, weights=weights)[None])
        return self._finish(scores, prepared), steps


def _cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The cosines of the rows of two matrices."""
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return (left * right).sum(axis=-1) / lengths
