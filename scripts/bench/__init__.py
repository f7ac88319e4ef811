"""Benchmarks of what guidance costs beside the network: whole pipelines, and the arithmetic of one step."""

from .cli import command as command
