"""How a request ends: the error that its handler raised, or a client that leaves (`disconnected`); the resources,
the count and the log line. The gateway and the page's readers share it."""

from __future__ import annotations

from functools import partial

from proxy.access import OPEN, PriorityPolicy
from proxy.errors import GatewayError, place_of, words_of
from proxy.server.context import RequestContext
from proxy.server.listener.listener import ClientConnection
from proxy.telemetry import Fault, Log, Metrics, Recording, contained, internal


class Outcomes:
    """One for a gateway. `fault` contains what fails after the answer has gone out."""

    def __init__(
        self, metrics: Metrics, log: Log, priority_policy: PriorityPolicy, fault: Fault, *, show_prompt: bool
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._priority_policy = priority_policy
        self._fault = fault
        self._show_prompt = show_prompt

    def error_of(self, context: RequestContext, error: Exception) -> GatewayError:
        """The error that the client gets. Raises ConnectionError where the client cannot get one."""
        if isinstance(error, GatewayError):
            # A Flight's error is raised to each of its readers: its traceback would keep the Flight, and its log,
            # alive in a reference cycle.
            return error.with_traceback(None)
        if isinstance(error, TimeoutError):
            context.failed("client_stalled")
            transport = context.request.transport
            if transport is not None:
                transport.abort()  # a close would wait until the client has taken what is written
            raise ConnectionResetError("the client took nothing for too long") from None
        if isinstance(error, ConnectionError):
            raise error
        at = place_of(error)
        self._log.often("error", "internal error", at, request_id=context.id, fault=words_of(error), where=at)
        return internal()

    def disconnected(self, context: RequestContext) -> None:
        """The client left, or the listener disconnected it."""
        protocol = context.request.protocol
        context.disconnected(stalled=isinstance(protocol, ClientConnection) and protocol.stalled)

    def finish(self, context: RequestContext, sent: int = 0) -> None:
        """Give everything back, then count and log the request. `sent`: bytes of its whole response; 0 where it
        did not end. Never raises."""
        try:
            context.close()
        except Exception as e:  # noqa: BLE001 - the answer has gone out: it is still counted and logged
            self._fault("the end of a request", e)
            contained(self._fault, "the end of a request", context.close)  # resources already released stay so
        try:
            logged = context.error is not None or context.endpoint not in OPEN
            context.record_outcome(
                self._metrics,
                self._log if logged else None,
                sent,
                show_prompt=self._show_prompt,
                owner=partial(self._priority_policy.current_fairness_key, context.caller, context.request),
            )
        except Exception as e:  # noqa: BLE001 - a fault of the metrics or the log must not reach the client
            self._fault("the record of a request", e)


class RecordedOutcomes(Outcomes):
    """Records each decoded request too. Without a recording nothing of it is in a request's way."""

    def __init__(
        self,
        metrics: Metrics,
        log: Log,
        priority_policy: PriorityPolicy,
        fault: Fault,
        recording: Recording,
        *,
        show_prompt: bool,
    ) -> None:
        super().__init__(metrics, log, priority_policy, fault, show_prompt=show_prompt)
        self._recording = recording

    def finish(self, context: RequestContext, sent: int = 0) -> None:
        super().finish(context, sent)
        request = context.api_request
        if request is None:
            return
        try:
            self._recording.put(context.recorded(), request.body, request.prompt)
        except Exception as e:  # noqa: BLE001 - a fault of the recording must not reach the client
            self._fault("the recording of a request", e)
