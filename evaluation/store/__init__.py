"""A run folder: records, images, features and traces, at any fsspec address."""
