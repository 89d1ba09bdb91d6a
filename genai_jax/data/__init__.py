"""Text as rows and batches: sources, tokenizers, packing and loading."""
