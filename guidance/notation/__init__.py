"""Stacks as text and as mappings: the registry of rules, the two readers, and presets."""
