"""Does a model's answer rest on the face's action units, and on nothing else?

python eval/faithfulness.py --model runs/sft_cot
"""

from __future__ import annotations

from vlmface.config import command
from vlmface.evaluate.faithfulness import main

if __name__ == "__main__":
    command(main)
