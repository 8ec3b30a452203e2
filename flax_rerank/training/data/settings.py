"""What a user can set about the data of a training."""

from dataclasses import dataclass

from flax_rerank.field_types import check_field_types
from flax_rerank.settings import MOST, setting
from flax_rerank.text.prompts import Instruction


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How examples are read, drawn and cut. Names that FlagEmbedding and transformers have mean the same there.

    Instructions and the prompt that are None are those of the model, so that it is trained as it will score;
    FlagEmbedding trains without instructions then.

    Raises:
        TypeError: a value of another type.
        ValueError: a value out of range; settings that exclude each other.
    """

    train_group_size: int = setting(8, "passages to a query: one positive and negatives", metavar="N")
    query_max_len: int = setting(
        32, "with passage_max_len, the tokens of the whole input; a query is cut to this and a quarter of the other",
        metavar="N",
    )  # fmt: skip
    passage_max_len: int = setting(
        128, "with query_max_len, the tokens of the whole input; a passage is cut to fit", metavar="N"
    )
    query_instruction_for_rerank: str | None = setting(
        None, "put before each query; by default the model's", flag="--query-instruction", metavar="TEXT"
    )
    query_instruction_format: str | None = setting(
        None, "puts instruction and query together, as in '{}: {}'; by default the model's", metavar="FORMAT"
    )
    passage_instruction_for_rerank: str | None = setting(
        None, "put before each passage; by default the model's", flag="--passage-instruction", metavar="TEXT"
    )
    passage_instruction_format: str | None = setting(
        None, "puts instruction and passage together, as in '{}: {}'; by default the model's", metavar="FORMAT"
    )
    prompt: str | None = setting(None, "the question put after the passage; by default the model's", metavar="TEXT")
    knowledge_distillation: bool = setting(False, "learn from the teacher's scores in the data too")
    shuffle_ratio: float = setting(
        0.0, "share of the positives of over 100 characters whose three thirds are put in another order",
        metavar="RATIO",
    )  # fmt: skip
    graded: bool = setting(
        False, "draw groups from all passages of a query, several positives with their labels among them"
    )
    in_batch_negatives: int = setting(
        0, "how many passages of a group at least are those of other queries in its micro batch", metavar="N"
    )
    per_device_train_batch_size: int = setting(
        8, "queries in a micro batch, for each device on the mesh's data axis", metavar="N"
    )
    gradient_accumulation_steps: int = setting(1, "micro batches in a step", metavar="N")
    num_train_epochs: float = setting(1.0, "how often each query is seen", metavar="N")
    group_by_length: bool = setting(True, "put queries with passages of similar length into one step")
    seed: int = setting(42, "of all that is drawn", metavar="N")
    run_top_k: int = setting(100, "passages used for each query, where negatives come from a TREC run", metavar="N")

    def __post_init__(self) -> None:
        check_field_types(self)
        for name, least in {
            **dict.fromkeys(("train_group_size", "query_max_len", "passage_max_len", "run_top_k"), 1),
            **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), 1),
            **dict.fromkeys(("in_batch_negatives", "seed"), 0),
        }.items():
            if not least <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least} and at most {MOST}")
        if not 0 <= self.shuffle_ratio <= 1:
            raise ValueError(f"shuffle_ratio is {self.shuffle_ratio}; it must be between 0 and 1")
        if self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0")
        if self.in_batch_negatives >= self.train_group_size:
            raise ValueError(
                f"in_batch_negatives {self.in_batch_negatives} leaves no room for a positive in groups of "
                f"train_group_size {self.train_group_size}"
            )
        if self.graded and self.in_batch_negatives:
            raise ValueError("in_batch_negatives have no labels: graded cannot be set too")
        for role in ("query", "passage"):
            instruction_format = getattr(self, f"{role}_instruction_format")
            if instruction_format is not None:
                Instruction(None, instruction_format)
