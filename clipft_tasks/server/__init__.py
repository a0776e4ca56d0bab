"""The clipft server, asked over HTTP."""
