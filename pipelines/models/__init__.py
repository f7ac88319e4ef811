"""Models that a user names: loading them, recipes of images, and the files that images are kept in."""
