"""Access policy: authenticates a request and checks its model, its size and its content. There is none where no
setting asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.access.caller import Caller
from proxy.access.context import AccessContext
from proxy.access.identity import shows_credential, tenant
from proxy.access.intake import Found, denied_in, denied_in_passed
from proxy.access.request_limits import RequestLimits
from proxy.access.revocation import KeyedCalls
from proxy.access.rules import AccessRules
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.telemetry import Audit, Log, Metrics, Refusal
from proxy.wire import ApiRequest, RawBody, generates
from proxy.wire.http import unread

OPEN: Final = frozenset({"health", "ready", "metrics", "preflight"})
"""Endpoints that are answered without a key, and while the gateway drains."""
FORMS: Final = frozenset({"page", "docs"})
"""Pages that hold no data, and ask for a key where one is needed."""
OPERATING: Final = frozenset({"page", "state", "readers", "metrics", "cache"})
"""Endpoints for operators' keys only, where there are keys."""


class AccessPolicy:
    """Authenticates and checks requests by the rules now in force."""

    def __init__(
        self,
        settings: Settings,
        rules: AccessRules,
        sizes: RequestLimits,
        metrics: Metrics,
        log: Log,
        audit: Audit,
    ) -> None:
        self._rules = rules
        self._sizes = sizes
        self._metrics = metrics
        self._log = log
        self._open = OPEN - {"metrics"} if settings.metrics_key else OPEN
        self._audit = audit
        self.keyed = KeyedCalls(rules.identity, audit, OPERATING)
        self._global = settings.share_scope == "global"
        self._forwards = settings.forward_authorization
        self._answers = settings.deny_answers

    def authenticate(self, context: AccessContext) -> None:
        """Identify the caller. Raises GatewayError 401, or 404 for an endpoint that the caller may not know of."""
        if self._rules.identity.ring is not None and context.endpoint not in self._open:
            self._identify(context)

    def _identify(self, context: AccessContext) -> None:
        identity, request = self._rules.identity, context.request
        shown = shows_credential(request.headers)
        if context.endpoint in FORMS and not shown:
            return  # a form without data, in which a person gives the key: a browser sends none by itself
        try:
            caller = identity.identify(request)
            context.identified(caller)
        except GatewayError as e:
            reason: Refusal = "expired" if e.code is Code.KEY_EXPIRED else "unknown" if shown else "missing"
            self._audit.refused(reason, identity.address(request), endpoint=context.endpoint)
            raise
        if context.endpoint in OPERATING and not caller.operator:
            self._audit.refused(
                "not_operator", identity.address(request), key=caller.name, endpoint=context.endpoint
            )
            raise not_found(request.path)
        self.keyed.add(context)

    def check(self, context: AccessContext, api_request: ApiRequest) -> ApiRequest:
        """The request, lowered to the limits. Raises GatewayError 400, 404 or 413."""
        if context.caller is not None and not _may_use(context.caller, context.model):
            raise _no_model(context.model)
        if self._sizes:
            api_request = self._sizes.check(api_request)
        deny = self._rules.deny
        if deny is not None:
            line = denied_in(deny, api_request)
            if line is not None:
                raise self._denied(context, line)
        return api_request

    def may_repeat(self, api_request: ApiRequest) -> bool:
        """Whether this gateway would send a request of another one as it is. Raises GatewayError 400 or 413."""
        if self._sizes and self._sizes.check(api_request) is not api_request:
            return False
        deny = self._rules.deny
        return deny is None or denied_in(deny, api_request) is None

    def check_model(self, context: AccessContext) -> None:
        """Whether the caller may use the model. Raises GatewayError 404."""
        if context.caller is not None and not _may_use(context.caller, context.model):
            raise _no_model(context.model)

    def check_raw(self, context: AccessContext, passed: RawBody) -> RawBody:
        """The same for a body that is passed through."""
        self._admit_path(context)
        path, deny = context.request.path, self._rules.deny
        if self._sizes:
            passed = self._sizes.check_raw(path, passed)
        if deny is None or passed.kind == "none":
            return passed
        if passed.kind == "other":
            raise unread(path)
        line = denied_in_passed(deny, path, passed)
        if line is not None:
            raise self._denied(context, line)
        return passed

    def check_found(self, context: AccessContext, found: Found, *, raw: bool = False) -> None:
        """The same for a request that a child process parsed and checked. Raises GatewayError."""
        if raw:
            if found.refusal is not None and found.model is None:
                raise found.refusal.error()  # it could not be read
            self._admit_path(context)
        elif context.caller is not None and not _may_use(context.caller, context.model):
            raise _no_model(context.model)
        if found.refusal is not None:
            raise found.refusal.error()
        if found.denied:
            raise self._denied(context, found.denied)

    def _admit_path(self, context: AccessContext) -> None:
        """Check the path and the model of a request that is passed through. Raises GatewayError 404."""
        request = context.request
        reads = request.method in ("GET", "HEAD")
        if context.caller is not None and not reads and not _may_use(context.caller, context.model):
            raise _no_model(context.model)
        answers = not reads or request.path.startswith("/v1/responses/")  # one that the engine has kept
        if self._answers and answers and not returns_no_text(request.path):
            raise GatewayError(
                Code.NOT_FOUND,
                "Answers are checked against the deny list, impossible for this path: use /v1/chat/completions.",
            )

    def share_scope(self, context: AccessContext) -> bytes:
        """The sharing scope, hashed: requests of different scopes share nothing."""
        parts = []
        if not self._global:
            parts.append(
                b"caller" + context.caller.tenant if context.caller is not None else tenant(context.request)
            )
        if self._forwards:  # the engine may answer each credential otherwise
            parts.append(b"credential" + tenant(context.request))
        if self._answers and self._rules.deny is not None:
            parts.append(b"deny" + self._rules.deny.digest)  # what another list let through was another answer
        if not any(parts):
            return b""
        return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()

    def visible_models(self, context: AccessContext, models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The models that this caller may name."""
        caller = context.caller
        return [model for model in models if caller is None or _may_use(caller, str(model.get("id")))]

    def _denied(self, context: AccessContext, line: int) -> GatewayError:
        self._metrics.content_denied("prompt")
        self._log.event("info", "content denied", context.whose, where="prompt", rule=line, request_id=context.id)
        return GatewayError(Code.CONTENT_DENIED, "The prompt contains denied content.")


def not_found(path: str) -> GatewayError:
    return GatewayError(Code.NOT_FOUND, f"The path {path[:200]!r} does not exist. The API is under /v1.")


def _may_use(caller: Caller, model: str | None) -> bool:
    return caller.models is None or model in caller.models


def _no_model(model: str | None) -> GatewayError:
    if model is None:
        return GatewayError(
            Code.MISSING_FIELD,
            "The field 'model' is missing, and this key is limited to certain models.",
            param="model",
        )
    return GatewayError(
        Code.MODEL_NOT_FOUND,
        f"The model {model[:200]!r} does not exist or you do not have access to it.",
        param="model",
    )


def sizes_of(settings: Settings) -> RequestLimits:
    return RequestLimits(
        max_tokens=settings.max_tokens_cap,
        action=settings.max_tokens_action,
        messages=settings.max_messages,
        prompt_chars=settings.max_prompt_chars,
        n=settings.max_n,
        best_of=settings.max_best_of,
    )


def scope_of(access_policy: AccessPolicy | None) -> Callable[[AccessContext], bytes]:
    """The function that gives a request's sharing scope: nothing is shared or merged across scopes."""
    return access_policy.share_scope if access_policy is not None else _scope_of_credential


def _scope_of_credential(context: AccessContext) -> bytes:
    made = context.request.made
    if made is None:
        return tenant(context.request)
    scope: bytes | None = made.get("scope")
    if scope is None:
        scope = made["scope"] = tenant(context.request)
    return scope


def tenant_of(context: AccessContext) -> bytes:
    """The tenant of a request, whatever answers it may share."""
    return context.caller.tenant if context.caller is not None else tenant(context.request)


def access_policy_for(
    settings: Settings, rules: AccessRules, metrics: Metrics, log: Log, audit: Audit
) -> AccessPolicy | None:
    """The settings' policy; None where nothing is checked, so that requests pay nothing."""
    sizes = sizes_of(settings)
    wanted = (
        rules.identity.ring is not None
        or rules.deny is not None
        or settings.share_scope == "global"
        or settings.forward_authorization
    )
    return AccessPolicy(settings, rules, sizes, metrics, log, audit) if wanted or sizes else None


def returns_no_text(path: str) -> bool:
    """Whether a path's answer holds no text: numbers and tokens only."""
    return not generates(path) and path.rstrip("/") != "/detokenize"
