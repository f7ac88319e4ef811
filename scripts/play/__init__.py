"""``guidestack play``: a page in the browser to compare stacks side by side, as text and by controls."""

from .cli import command as command
