"""The whole system on one machine, under `./.clipft/`, without containers."""
