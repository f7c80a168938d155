"""What schemathesis checks of the listeners in the place of three checks of its own: what stands here is what no schema says.

`schemathesis.toml` at the top of the checkout has it read this. Each rule is one between several parts of a request, or between a
request and what the daemon has; all else that a document allows must be taken, and all that it does not must be refused.
"""

import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance, use_after_free

# By the beginning of what the answer says, and one of the words behind it.
BETWEEN_PARTS = {
    # A range that ends before it begins, or in the middle of a window, or before all calendars.
    "from: ": ("is after to", "is not on a window start", "is no window's start", "is no time so long ago"),
    "to: ": ("must be after from", "is not on a window start", "is no window's start", "is no time so long ago"),
    # What the aggregate of the path does not have.
    "group_by: ": ("is no field of", "is given twice"),
    "where: ": ("is no field of",),
    "order: ": ("is none; there are", "is a list"),
    "step: ": ("is no multiple of the window", "is above"),
    # It is an answer's of before, and of the same question.
    "cursor: ": ("",),
    # Its document has no pattern for it: what that made up would be waited for.
    "after: ": ("is no position",),
    # Two keys that were made up.
    "this request has different keys": ("",),
    # All letters at once, by mistake.
    "say which letters": ("",),
    # One value for several letters.
    "a corrected value is for one letter": ("",),
}
OF_ONE_CLOUD_EVENT = ("ce-type", "ce-source", "ce-id")


def answered(response):
    """The answer's members, where it is a JSON object."""
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def is_between_parts(response, case):
    # An answer to HEAD has no words: those to GET are looked at.
    if case.method.upper() == "HEAD":
        return True
    answer = answered(response)
    why = answer.get("detail") or answer.get("message", "")
    if any(why.startswith(begins) and any(part in why for part in parts) for begins, parts in BETWEEN_PARTS.items()):
        return True
    headers = {name.lower(): value for name, value in (case.headers or {}).items()}
    # Nothing that it sends is compressed.
    if headers.get("content-encoding", "").lower() not in ("", "identity"):
        return True
    # The head holds one CloudEvent, and not all of it, or of another version.
    version = headers.get("ce-specversion")
    return version is not None and (version != "1.0" or not all(headers.get(name) for name in OF_ONE_CLOUD_EVENT))


@schemathesis.check
def what_is_allowed_is_taken(ctx, response, case):
    if response.status_code == 400 and is_between_parts(response, case):
        return None
    return positive_data_acceptance(ctx, response, case)


@schemathesis.check
def what_is_not_allowed_is_refused(ctx, response, case):
    # More events than one request may have.
    if response.status_code == 413:
        return None
    # Some events are right, and the wrong ones are refused by their places.
    if response.status_code == 207:
        answer = answered(response)
        if answer["rejected"] > 0 and len(answer["errors"]) == answer["rejected"]:
            return None
    return negative_data_rejection(ctx, response, case)


@schemathesis.check
def what_was_removed_is_gone(ctx, response, case):
    # That there is no rebuild is how far it is.
    if case.path.endswith("/rebuild") and (case.method.upper() == "HEAD" or answered(response).get("state") == "none"):
        return None
    return use_after_free(ctx, response, case)
