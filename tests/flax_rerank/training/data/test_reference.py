"""Groups and token ids are those of FlagEmbedding's dataset, for the same draws."""

import dataclasses
import json
import warnings
from random import Random

import pytest
from reference_cases import CASES

from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import open_spec
from flax_rerank.text.prompts import PROMPT_FORMATS
from flax_rerank.training.data import DataSettings
from flax_rerank.training.data.groups import draw
from flax_rerank.training.data.rows import FileRows
from flax_rerank.training.data.sources import RowSource
from flax_rerank.training.data.tokens import Encoder

FOLDER = CASES / "training" / "examples"
EXAMPLES = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
NAMES = {field.name for field in dataclasses.fields(DataSettings)}


def open_case(case, **changes):
    """The encoder and the examples of a case."""
    arguments = case["data_arguments"] | changes
    options = {"query_instruction_for_rerank": None, "passage_instruction_for_rerank": None}
    kind = RerankerModelClass.ENCODER_ONLY_BASE
    if case["checkpoint"].startswith("decoder"):
        kind, separator = RerankerModelClass.DECODER_ONLY_BASE, arguments["sep_token"]
        options["prompt_format"] = dataclasses.replace(
            PROMPT_FORMATS["flag-llm"], middle=(separator,), suffix=(separator, "{prompt}")
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'Yes' is 2 tokens", UserWarning)
        spec = open_spec(CASES / case["checkpoint"], kind, **options)
    settings = DataSettings(**{name: value for name, value in arguments.items() if name in NAMES})
    return Encoder(spec, settings), settings, RowSource(FileRows(str(FOLDER / case["file"])))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_groups_and_token_ids(number):
    case = EXAMPLES[number]
    encoder, settings, source = open_case(case)
    for expected in case["examples"]:
        group = draw(source[expected["row"]], Random(expected["python_random_seed"]), settings)
        record = json.loads((FOLDER / case["file"]).read_text(encoding="utf-8").splitlines()[expected["row"]])
        positive = expected["positive_text"] or record["pos"][expected["pos"]]
        assert group.passages == [positive, *(record["neg"][index] for index in expected["negs"])]
        assert group.labels == [1.0] + [0.0] * len(expected["negs"])
        if settings.knowledge_distillation:
            assert group.teacher == expected["teacher_scores"]
        (encoded,) = encoder.encode([group])
        assert [encoded.ids(passage).tolist() for passage in range(len(group.passages))] == expected["input_ids"]


def test_a_prompt_that_leaves_no_room_is_refused():
    """FlagEmbedding lets such inputs be longer than the limit."""
    case = next(case for case in EXAMPLES if case["checkpoint"] == "decoder-gemma")
    encoder, _, source = open_case(case, query_max_len=10, passage_max_len=20)
    with pytest.raises(ValueError, match=r"query_max_len 10 and passage_max_len 20 leave .* raise passage_max_len"):
        encoder.template(source[0].prompt)


def test_inputs_longer_than_the_model_are_refused():
    encoder, _, _ = open_case(EXAMPLES[0], query_max_len=400, passage_max_len=400)
    with pytest.raises(ValueError, match=r"800 tokens; the model has .* positions"):
        encoder.template()
