"""Fine-tune a reranker: `python scripts/train.py --help`, the same as `flax-rerank train --help`."""

import sys

from flax_rerank.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
