"""The report of a run: one page that needs no server, with its plots as files beside it."""
