"""Score a model on a benchmark.

python eval/run.py --benchmark synth --model runs/sft_cot
"""

from __future__ import annotations

from vlmface.evaluate.run import main
from vlmface.utils.config import run_main

if __name__ == "__main__":
    run_main(main)
