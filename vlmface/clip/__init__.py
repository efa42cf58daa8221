"""CLIP models of open_clip for faces: zero-shot, fine-tuned, over several views and over time."""
