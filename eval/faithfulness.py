"""Does a model's answer rest on the face's action units, and on nothing else?

python eval/faithfulness.py --model runs/sft_cot
"""

from __future__ import annotations

from vlmface.evaluate.faithfulness import main
from vlmface.utils.config import run_main

if __name__ == "__main__":
    run_main(main)
