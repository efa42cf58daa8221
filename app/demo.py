"""Ask a trained model about faces, in the browser.

python app/demo.py --model runs/sft_cot
"""

from __future__ import annotations

from vlmface.demo.command import main
from vlmface.utils.config import run_main

if __name__ == "__main__":
    run_main(main)
