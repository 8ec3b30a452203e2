"""Score a file of pairs: the same as `flax-rerank score`."""

import sys

from flax_rerank.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
