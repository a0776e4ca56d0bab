"""The routes of the worker gateway, by who asks."""
