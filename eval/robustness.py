"""How fast does a model get worse as pictures get blurred, dark, small, turned or covered?

python eval/robustness.py --model runs/sft_cot
"""

from __future__ import annotations

from vlmface.evaluate.robustness import main
from vlmface.utils.config import run_main

if __name__ == "__main__":
    run_main(main)
