"""Find the best of many prompts and models: choose on validation faces, test the finalists.

python eval/sweep.py --models runs/sft_cot --prompts face_cot,expllm,r1_omni --output_dir runs/sweep
"""

from __future__ import annotations

from vlmface.evaluate.sweep import main
from vlmface.utils.config import run_main

if __name__ == "__main__":
    run_main(main)
