"""vlmface: fine-tune and question vision-language models that read faces."""

__version__ = "0.1.0"
