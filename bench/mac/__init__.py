"""What a Mac shows in a quarter of an hour: python -m bench.mac, or `make bench-mac`."""
