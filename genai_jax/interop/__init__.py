"""Models of other people, in and out: Hugging Face's folders, without PyTorch."""
