"""The beginning of a model card, in Hugging Face's format."""

PLACEHOLDER = "PATH"


def head(title: str, base: str | None, about: str, name: str = PLACEHOLDER) -> list[str]:
    """The lines of a README.md with its metadata, what the model is, and how it is used.

    Args:
        title: of the page.
        base: the model that it was made of, by its name on the hub.
        about: a sentence or two.
        name: by which it is loaded.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        base_model=base,
        library_name="flax-rerank",
        pipeline_tag="text-ranking",
        tags=["reranker", "cross-encoder", "jax", "flax"],
    )
    return [
        "---",
        metadata.to_yaml(),
        "---",
        f"# {title}",
        "",
        about,
        "",
        "```python",
        "from flax_rerank import FlaxAutoReranker",
        "",
        f'reranker = FlaxAutoReranker.from_finetuned("{name}")',
        'reranker.compute_score([("what is a panda", "The giant panda is a bear.")])',
        "```",
        "",
    ]
