"""The cheapest schedule: a search over what is evaluated when, for few evaluations and likeness to a reference.

Needs the extra ``tune``. Nothing is imported here: optuna is, when a search begins.
"""
