"""The routes of the server, by what they are about. Each asks for the server's parts by `ServerDep`.

A new inference endpoint is a body with its example (`schemas`), what it answers (`clipft_tasks.contracts.serving`), a method of
`InferenceService` and a route in `inference`.

Each route names its rule among its dependencies (`security`: PUBLIC, INFER, FEEDBACK, OPERATE, or a `Rule` of its own, for a body that it reads
itself, say). One that names none is for everybody to read and for the token alone otherwise. The rule is kept before the route is entered, see
`admission`.

A route that waits for something else than the inference thread is a plain function, which FastAPI runs in its thread pool; inference
and health are coroutines, so that neither waits for such a thread.
"""

from . import bulk, captures, drift, embeddings, feedback, health, inference, models, pages, search, trials

ROUTERS = tuple(
    module.router for module in (inference, embeddings, bulk, search, models, trials, feedback, drift, captures, health, pages)
)
