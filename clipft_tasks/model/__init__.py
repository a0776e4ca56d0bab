"""Models: where they come from, how images and texts enter them, and the package that is registered."""
