"""Devices that train and evaluate: what they can do, their memory, and what they lack."""
