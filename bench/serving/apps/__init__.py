"""What the other servers run: the same tower, as somebody would write it with each of them."""
