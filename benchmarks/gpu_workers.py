"""Do two workers that share one GPU find what one finds? A check for a machine that has a GPU.

    python benchmarks/gpu_workers.py [--model shapes-flux] [--nfe 320]

One worker, two threads with a copy of the networks each, and two actors of Ray with half of the card each, on the same
prompt and seeds: the best candidate's key, the ledger, and the largest difference of any score. Then a search whose
steps are taken in this process. Exits with 1 where something differs, and says so where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

import diffscale

PROMPT = "a red circle above a blue square"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes-flux")
    parser.add_argument("--nfe", type=int, default=320)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing was checked.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    wrong = False
    for search in ("random", "draft", "svdd"):
        alone = found(options, search, device="cuda:0")
        for name, more in (("two threads", {"device": "cuda:0,cuda:0"}), ("Ray", {"workers": "ray n=2 gpus=0.5"})):
            other = found(options, search, **more)
            apart = float((alone.pool - other.pool).abs().max())
            same = alone.best.key == other.best.key and alone.ledger.nfe == other.ledger.nfe and apart < 1e-3
            print(f"{search}, {name}: {'the same' if same else 'NOT the same'}, scores differ by {apart:.1e} at most")
            wrong |= not same
    sys.exit(wrong)


def found(options: argparse.Namespace, search: str, **more: Any) -> diffscale.Result:
    """What a search finds, in float32; its seconds are printed."""
    began = time.perf_counter()
    result = diffscale.search(options.model, PROMPT, search=search, nfe=options.nfe, dtype="float32", **more)
    print(f"{search}, {more}: {time.perf_counter() - began:.1f} s with loading")
    return result


if __name__ == "__main__":
    main()
