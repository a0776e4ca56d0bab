"""The health check of our containers: does URL answer, and is what stands at a dotted path of its JSON `healthy`?

Standard library only, so that a check costs a few hundredths of a second.
"""

import json
import sys
import urllib.request


def check(url: str, path: str = "") -> str:
    """What is wrong; "" for nothing."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body = answer.read()
    except OSError as error:
        return f"{url}: {error}"
    if not path:
        return ""
    said = json.loads(body)
    for name in path.split("."):
        said = (said or {}).get(name)
    return "" if said == "healthy" else f"{url}: {path} is {said}"


if __name__ == "__main__":
    sys.exit(check(*sys.argv[1:]) or 0)
