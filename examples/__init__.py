"""Examples that run: the demo, and the demo of a drift."""
