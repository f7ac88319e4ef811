"""What the metrics of a run say: numbers of cells, curves, and comparisons at matched strength."""
