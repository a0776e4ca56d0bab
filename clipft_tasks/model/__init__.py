"""Models: where they come from, how pictures and texts enter them, and the package that is registered."""
