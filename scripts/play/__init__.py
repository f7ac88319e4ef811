"""A page to play on: stacks side by side, as text and by controls."""

from .cli import command as command
