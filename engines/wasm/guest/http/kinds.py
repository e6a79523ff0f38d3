"""The numbers of resource types, and the handles every interface shares."""

from __future__ import annotations

from typing import Final

ERROR: Final = 1
POLLABLE: Final = 2
INPUT_STREAM: Final = 3
OUTPUT_STREAM: Final = 4
FIELDS: Final = 5
INCOMING_REQUEST: Final = 6
INCOMING_BODY: Final = 7
FUTURE_TRAILERS: Final = 8
RESPONSE_OUTPARAM: Final = 9
OUTGOING_RESPONSE: Final = 10
OUTGOING_BODY: Final = 11
OUTGOING_REQUEST: Final = 12
REQUEST_OPTIONS: Final = 13
FUTURE_INCOMING_RESPONSE: Final = 14
INCOMING_RESPONSE: Final = 15
DESCRIPTOR: Final = 16
DIRECTORY_ENTRY_STREAM: Final = 17

RESOURCES: Final = {
    "error": ERROR,
    "pollable": POLLABLE,
    "input-stream": INPUT_STREAM,
    "output-stream": OUTPUT_STREAM,
    "fields": FIELDS,
    "headers": FIELDS,
    "trailers": FIELDS,
    "incoming-request": INCOMING_REQUEST,
    "incoming-body": INCOMING_BODY,
    "future-trailers": FUTURE_TRAILERS,
    "response-outparam": RESPONSE_OUTPARAM,
    "outgoing-response": OUTGOING_RESPONSE,
    "outgoing-body": OUTGOING_BODY,
    "outgoing-request": OUTGOING_REQUEST,
    "request-options": REQUEST_OPTIONS,
    "future-incoming-response": FUTURE_INCOMING_RESPONSE,
    "incoming-response": INCOMING_RESPONSE,
    "descriptor": DESCRIPTOR,
    "directory-entry-stream": DIRECTORY_ENTRY_STREAM,
}
