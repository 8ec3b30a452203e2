"""What long work says on standard error."""

import logging


def show_messages() -> None:
    """Show the messages of flax_rerank, from INFO on."""
    logging.basicConfig(format="flax-rerank: %(message)s")
    logging.getLogger("flax_rerank").setLevel(logging.INFO)
