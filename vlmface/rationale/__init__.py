"""Rationales: texts that explain an emotion from the action units of a face."""
