"""Batch evaluation: sweeps, their records, metrics and reports. Needs the extra ``evaluation``.

Nothing is imported here: pyarrow and the extractors cost start-up that `import guidestack` must not pay.
"""
