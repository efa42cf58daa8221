"""The browser demo: `python app/demo.py --model runs/sft_cot`, see docs/demo.md."""
