"""Presets: YAML files of stacks, each naming the paper, table and number it comes from."""
