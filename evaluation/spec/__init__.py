"""What a sweep is: its YAML, its prompts, its cells, and the claim that it may carry."""
