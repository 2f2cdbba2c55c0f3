"""APIs besides OpenAI's chat whose streams are events with a type: Anthropic's Messages and OpenAI's Responses.
Their requests go to the engine as they came; of their answers the gateway reads what it counts.

An `EventApi` says what an event means (`Seen`), and how errors and keep-alives are written in its streams.
"""

from proxy.wire.event_apis.event_api import EventApi, Seen, is_under
from proxy.wire.event_apis.messages import MESSAGES, is_messages
from proxy.wire.event_apis.responses import LONGEST_ID, RESPONSES, is_responses, response_named

EVENT_APIS: dict[str, EventApi] = {"/v1/messages": MESSAGES, "/v1/responses": RESPONSES}
"""By the path that a request for an answer is posted to."""

__all__ = [
    "EVENT_APIS",
    "LONGEST_ID",
    "MESSAGES",
    "RESPONSES",
    "EventApi",
    "Seen",
    "is_messages",
    "is_responses",
    "is_under",
    "response_named",
]
