"""``python -m guidestack.scripts.bench`` is ``guidestack bench``."""

from .cli import command

if __name__ == "__main__":
    command()
