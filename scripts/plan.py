"""Plan a scoring job without the TPU: the same as `flax-rerank plan`."""

import sys

from flax_rerank.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
