"""Examples of a TREC run: positives are judged relevant, negatives come from the run."""

from flax_rerank.evaluation import open_set
from flax_rerank.jobs import files
from flax_rerank.training.data.examples import Example

FILES = ("queries.jsonl", "corpus.jsonl", "run.txt")
SPLIT = "train"


class TrecSource:
    """An example for each judged query of a BEIR folder with a run.

    Its passages are those that are judged relevant, with their grades, and the first ones of the run; these count as
    0 unless they are judged.

    Args:
        folder: with queries.jsonl, corpus.jsonl, run.txt and qrels; of several files there, qrels/train.tsv.
        top_k: passages of the run for each query.

    Raises:
        ValueError: a line at fault, or a query or passage without text.
        FileNotFoundError: a file that the folder should have.
    """

    def __init__(self, folder: str, top_k: int) -> None:
        self._folder = folder
        self._qrels = [name for name in files.sizes(f"{folder}/qrels") if name.endswith(".tsv")]
        if "run.txt" not in files.sizes(folder):
            raise FileNotFoundError(f"no run.txt in {folder}: negatives come from it")
        split = SPLIT if len(self._qrels) > 1 else None
        self._set = open_set(folder, split=split, top_k=top_k, always_rerank_positives=True)
        self._ids = list(self._set.queries)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Example:
        qid = self._ids[index]
        judged = self._set.qrels[qid]
        grades = {docid: float(max(judged.get(docid, 0), 0)) for docid in self._set.candidates[qid]}
        # A corpus can have a text twice: one that is a positive under another id is no negative.
        positives = {self._set.passages[docid] for docid, grade in grades.items() if grade > 0}
        kept = [docid for docid in grades if grades[docid] or self._set.passages[docid] not in positives]
        passages, labels = [self._set.passages[docid] for docid in kept], [grades[docid] for docid in kept]
        return Example(f"{self._folder}, query {qid}", self._set.queries[qid], passages, labels)

    def digests(self) -> dict[str, str]:
        """For each file what tells its contents apart."""
        names = (*FILES, *(f"qrels/{name}" for name in self._qrels))
        return {path: files.digest(path) for path in (f"{self._folder}/{name}" for name in names)}
