"""From when on drift counts, and how long things wait: each number once. Prometheus' rules are checked against these."""

# The window of one version's traffic: the last so many rows, however slowly they come
WINDOW_ROWS = 256  # images, and texts, that a window holds
WINDOW_MIN_ROWS = 64  # below this nothing is said: chance would speak
WINDOW_SECONDS = 14 * 24 * 3600.0  # what is older has left the window: of another time, whatever it shows

# Alerts
RATIO = 1.0  # of a signal to its limit, above which it is drift
SEVERE_RATIO = 3.0  # above which the alert is critical
SIGNIFICANCE = 0.005  # p-value above which no distance between embeddings counts
MIN_JUDGED = 20  # answers with feedback below which nothing is said about accuracy
ACCURACY_DROP = 0.05  # below the baseline that accuracy may lose before it counts as drift
MOST_NONE_OF_THESE = 0.1  # share of images of another kind that is no drift: twice what is expected of the model's own kind
ERROR_RATIO = 0.05  # share of failing requests, likewise

# Incidents
COOL_DOWN = 3600.0  # seconds after an incident before the next
LOST_AFTER = 48 * 3600.0  # an incident that nobody closed in this time is taken for lost
PROBATION = 24 * 3600.0  # seconds in which a new champion may turn out worse
MAX_FAILURES = 3  # in a row that open the circuit breaker
BREAKER_SECONDS = 24 * 3600.0  # that it stays open before it lets one attempt through
