"""Scripts that draw the figures of the documentation; `views` needs matplotlib, which nothing else does."""
