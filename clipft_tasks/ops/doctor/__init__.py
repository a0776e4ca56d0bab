"""`clipft doctor`: is everything well, and the way out of what is not."""
