"""How clipft is put on machines."""
