"""Serving speed beside other servers: `python -m bench.serving`, see `__main__`."""
