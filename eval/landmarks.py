"""Score the action units that landmarks alone show, to hold a model against.

python eval/landmarks.py --benchmark synth --output_dir runs/eval_landmarks
"""

from __future__ import annotations

from vlmface.evaluate.landmarks import main
from vlmface.utils.config import run_main

if __name__ == "__main__":
    run_main(main)
