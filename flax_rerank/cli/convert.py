"""Convert a PyTorch checkpoint to a Flax checkpoint, or back."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax_rerank.cli.loading import add_model_class, add_settings, given_settings, naming_options
from flax_rerank.conversion import convert, export_checkpoint
from flax_rerank.conversion.check import Check
from flax_rerank.conversion.verify import verify
from flax_rerank.dtypes import STORED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flax-rerank convert`."""
    parser.add_argument("source", metavar="SOURCE", help="a folder, or a name on the Hugging Face hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--to", choices=["flax", "pytorch"], default="flax", help="pytorch: SOURCE is a Flax folder")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--keep-head",
        action="store_true",
        help="keep an untied head whole, though a row of it is used: without it there is no way back to PyTorch",
    )
    parser.add_argument("--verify", action="store_true", help="compare OUT with SOURCE; exit with 1 if they differ")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    add_model_class(parser)
    parser.add_argument(
        "--dtype",
        choices=STORED,
        default=argparse.SUPPRESS,
        help="of the parameters that are written; int8: matrices in 8 bits, the others as they are stored",
    )
    add_settings(parser, lambda field: field.name in ("peft_path", "cache_dir"))
    group = parser.add_argument_group("settings of the model", "OUT keeps them for everyone who loads it.")
    add_settings(group, lambda field: field.metadata["kept"])


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written. The exit code is 1 if `--verify` finds that OUT differs from SOURCE.

    Raises:
        ValueError: an option of the other direction, or one that the reranker's class does not have.
        And as `flax_rerank.conversion.convert` and `export_checkpoint`.
    """
    options = {"overwrite": args.overwrite, "show_progress_bar": not args.no_progress and sys.stderr.isatty()}
    given = given_settings(args)
    if args.to == "pytorch":
        return _to_pytorch(args, given, options)
    with naming_options(args.source):
        done = convert(
            args.source, args.out, model_class=args.model_class, keep_head=args.keep_head, **options, **given
        )
    print(
        f"{args.out}: {done.reranker}, {done.parameters:,} parameters in {done.dtype.name}, {done.bytes:,} bytes, "
        f"{done.seconds:.1f} s"
    )
    if not args.verify:
        return 0
    assert done.spec.folder is not None  # it was converted
    checks = verify(done.spec.folder, args.out, done.spec.adapter)
    print(table(checks))
    return 1 if any(check.faults for check in checks) else 0


def _to_pytorch(args: argparse.Namespace, given: Mapping[str, Any], options: Mapping[str, bool]) -> int:
    wrong = [name for name in given if name != "dtype"]
    wrong += [name for name in ("model_class", "keep_head", "verify") if vars(args)[name]]
    if wrong:
        raise ValueError(f"--{wrong[0].replace('_', '-')} is not an option for --to pytorch")
    started = time.perf_counter()
    dtype = export_checkpoint(Path(args.source).expanduser(), args.out, dtype=given.get("dtype"), **options)
    size = sum(file.stat().st_size for file in args.out.glob("*.safetensors"))
    print(f"{args.out}: tensors in {dtype.name}, {size:,} bytes, {time.perf_counter() - started:.1f} s")
    return 0


def table(checks: Sequence[Check]) -> str:
    """What was compared, line by line, and under it every fault."""
    lines = [f"{'':8}{'count':>8}{'bytes':>18}  largest difference  verdict"]
    for check in checks:
        size = "" if check.bytes is None else f"{check.bytes:,}"
        difference = "" if check.largest_difference is None else f"{check.largest_difference:.3g}"
        verdict = check.verdict if check.skipped is None else f"{check.verdict}: {check.skipped}"
        lines.append(f"{check.what:8}{check.count:>8,}{size:>18}{difference:>20}  {verdict}")
    return "\n".join([*lines, *(f"  - {fault}" for check in checks for fault in check.faults)])
