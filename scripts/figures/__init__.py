"""Scripts that draw the figures of the documentation; they need matplotlib, nothing else does."""
