"""What makes the project's own model, figures and generated pages; not in the wheel."""
