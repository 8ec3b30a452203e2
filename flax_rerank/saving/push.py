"""A checkpoint folder to the Hugging Face hub."""

import fnmatch
from pathlib import Path

import flax_rerank
from flax_rerank import checkpoint
from flax_rerank.auto import find_spec
from flax_rerank.checkpoint.manifest import CARD, files_in
from flax_rerank.dtypes import FLOAT32
from flax_rerank.hub import FLAX_FILES, WEIGHT_FILES, HubError
from flax_rerank.params import CheckpointError
from flax_rerank.saving.card import PLACEHOLDER, head
from flax_rerank.saving.hugging_face import exported_files
from flax_rerank.settings import RerankerModelClass
from flax_rerank.spec import Spec


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    model_class: str | RerankerModelClass | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload a reranker",
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a Flax checkpoint or an exported PyTorch folder, in one commit.

    The folder is checked first. Weights of an earlier checkpoint in the repository are removed by the commit. A folder
    without README.md gets a model card there; the folder itself is only read.

    Args:
        folder: what `save`, `save_pretrained` or `flax-rerank convert` wrote.
        repo_id: the repository, as "name/model". It is made if it does not exist.
        model_class: the kind of reranker, where the folder does not say it.
        private: make it a private one.
        revision: a branch that exists; by default main.
        message: of the commit.
        token: by default that of HF_TOKEN or of `hf auth login`.
        endpoint: the address of the hub.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: `folder` is not a folder.
        ValueError: it holds a file that is not part of the checkpoint, or would not load.
        CheckpointError: a file differs from its manifest.
        HubError: the hub refuses or cannot be reached.
    """
    files, spec = _checked(folder, model_class)
    text = _card(folder, spec, repo_id)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    additions = [CommitOperationAdd(name, file) for name, file in files.items()]
    additions.append(CommitOperationAdd(CARD, text.encode()))
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        earlier = [name for name in there if name not in files and _is_of_weights(name)]
        commit = api.create_commit(
            repo_id,
            [*additions, *map(CommitOperationDelete, earlier)],
            commit_message=message,
            revision=revision,
        )
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise HubError(f"{folder} could not be uploaded to {repo_id}: {reason}") from error
    return commit.commit_url


def _is_of_weights(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in (*WEIGHT_FILES, *FLAX_FILES))


def _checked(folder: Path, model_class: str | RerankerModelClass | None) -> tuple[dict[str, Path], Spec]:
    """The files to upload, by their names in the repository, and the spec."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    spec = find_spec(str(folder.resolve()), model_class)
    there = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if not file.is_dir()}
    there.pop(CARD, None)
    if spec.is_flax:
        faults = checkpoint.verify_manifest(folder)
        if faults:
            raise CheckpointError(folder, faults)
        known = {*files_in(folder), checkpoint.MANIFEST}
    else:
        known = {file.relative_to(folder).as_posix() for file in exported_files(folder)}
    foreign = sorted(there.keys() - known)
    if foreign:
        raise ValueError(f"{folder} is not uploaded: it holds {foreign[0]}, which is not part of a checkpoint")
    spec.weights(spec.module(FLOAT32))  # are they those of the config?
    return there, spec


def _card(folder: Path, spec: Spec, repo_id: str) -> str:
    """The model card: that of the folder, if it has one."""
    card = folder / CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        return text.replace(f'from_finetuned("{PLACEHOLDER}")', f'from_finetuned("{repo_id}")')
    base = None
    if spec.is_flax:
        base = (checkpoint.read_manifest(folder)["source"] or {}).get("name")
    written = "written by" if spec.is_flax else "exported for PyTorch by"
    about = f"A reranker of the kind {spec.model_class.value}, {written} flax-rerank {flax_rerank.__version__}."
    return "\n".join(head(repo_id.rpartition("/")[2], base if base and "/" in base else None, about, repo_id))
