"""Data: sources are read, packed into shards, split, checked, versioned, and fed to training."""
