"""Tasks in plain English with exact graders, drawn from a seed: unlimited, and the same always."""
