"""Asking a model: images in, text, label, action units and label probabilities out."""
