"""What the server and the worker gateway share as HTTP servers: limits on connections, and the form of a refusal."""
