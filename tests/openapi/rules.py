"""What schemathesis checks of the listeners in the place of three checks of its own: what stands here is what no schema says.

`schemathesis.toml` at the top of the checkout has it read this. Each rule is one between several parts of a request, or between a
request and what the daemon has; all else that a document allows must be taken, and all that it does not must be refused.
"""

import schemathesis
from schemathesis.core.jsonschema import make_validator
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance, use_after_free

# By the beginning of what the answer says, and one of the words behind it.
BETWEEN_PARTS = {
    # A day that its month has not; a range that ends before it begins, or in the middle of a window, or before all calendars.
    "from: ": ("input is out of range", "is after to", "is not on a window start", "is no window's start", "so long ago"),
    "to: ": (
        "input is out of range",
        "must be after from",
        "is not on a window start",
        "is no window's start",
        "so long ago",
        "the archive begins later",
    ),
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
# A body that is not what Content-Encoding says: nothing that is sent here is compressed.
NOT_CODED = ("the body is damaged or no ", "the body's ", "behind the end of the body's ")
# What a CloudEvent in the head lacks.
OF_HEAD = {"invalid_cloudevent", "missing_type", "invalid_type", "invalid_id"}


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
    if headers.get("content-encoding", "").lower() not in ("", "identity"):
        return why.startswith(NOT_CODED)
    # The head holds one CloudEvent, and not all of it, or of another version. Beside an envelope it means nothing.
    if "ce-specversion" in headers and "cloudevents" not in (case.media_type or ""):
        codes = {error.get("code") for error in answer.get("errors", [])}
        return not is_whole(headers) and bool(codes) and codes <= OF_HEAD
    return False


def is_whole(headers):
    """Whether the head has all of a CloudEvent, as it has to be."""
    longest = {"ce-type": 128, "ce-source": 8000, "ce-id": 256}
    lengths = [len(headers.get(name, "")) for name in longest]
    # What is percent-encoded stands for less, and may stand for nothing that there is.
    plain = all(value.isascii() and "%" not in value for name, value in headers.items() if name.startswith("ce-"))
    fit = all(0 < length <= most for length, most in zip(lengths, longest.values()))
    return headers["ce-specversion"] == "1.0" and plain and fit


def wrong_elements(case):
    """The places of those elements of the body that the document does not allow; nothing where something else is wrong."""
    components = case.meta.components.items()
    if any(it.mode.is_negative for location, it in components if location != ParameterLocation.BODY):
        return None
    described = case.operation.get_body_for_media_type(case.media_type)
    schema = described.optimized_schema if described else None
    if not isinstance(case.body, list) or not isinstance(schema, dict):
        return None
    arrays = [one for one in [schema, *schema.get("oneOf", [])] if "items" in one]
    if len(arrays) != 1:
        return None
    # With what its references lead to.
    element = {**{name: value for name, value in schema.items() if name.startswith("x-")}, **arrays[0]["items"]}
    validator = make_validator(element, case.operation.schema.adapter.jsonschema_validator_cls)
    return [index for index, each in enumerate(case.body) if not validator.is_valid(each)]


@schemathesis.check
def what_is_allowed_is_taken(ctx, response, case):
    if response.status_code == 400 and is_between_parts(response, case):
        return None
    if response.status_code == 207 and case.meta is not None and case.meta.generation.mode.is_positive:
        wrong = [error for error in answered(response).get("errors", []) if not error.get("retry")]
        assert not wrong, f"the document allows what was refused: {wrong[:3]}"
    return positive_data_acceptance(ctx, response, case)


@schemathesis.check
def what_is_not_allowed_is_refused(ctx, response, case):
    # More events than one request may have.
    if response.status_code == 413:
        return None
    # Some events are right, and the wrong ones are refused by their places.
    if response.status_code == 207 and case.meta is not None and case.meta.generation.mode.is_negative:
        refused = [error.get("index") for error in answered(response).get("errors", [])]
        if refused and refused == wrong_elements(case):
            return None
    return negative_data_rejection(ctx, response, case)


@schemathesis.check
def what_was_removed_is_gone(ctx, response, case):
    # That there is no rebuild is how far it is.
    if case.path.endswith("/rebuild") and (case.method.upper() == "HEAD" or answered(response).get("state") == "none"):
        return None
    return use_after_free(ctx, response, case)
