"""The plug into pydantic-ai: `CancellableModel` for one model, the capability `Cancellable` for an agent.

Mechanism. The model opens every stream as a `CancellableStreamedResponse`, and leaves it with the reason it was left
for. The capability wraps each model of a run that way, refuses or repairs a history that holds a cut answer before
anything is sent, and gives a response that was just left (`break`) the same mark as one that was cancelled. Its state
is made anew for every run (`for_run`), so one agent serves many runs at once.

A run of ours (`_run.py`) hands its own account to the capability through a context variable, which the first
`for_run` in its context takes, so that an agent called by a tool inside the run never takes it.

Known limits. `asyncio.timeout()` around a run cancels its task like anyone else, so its reason is `'task_cancelled'`;
pydantic-ai's own `timeout=` is told apart by the run's deadline. Under durable execution the model is called in
another process, where only the usage is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self, get_args

from opentelemetry import trace
from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, WrapRunHandler, WrapToolExecuteHandler
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models import (
    KnownModelName,
    Model,
    ModelRequestContext,
    ModelRequestParameters,
    StreamedResponse,
)
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.run import AgentRunResult
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from ._history import HistoryPolicy, apply_policy, mark_interrupted
from ._response import CancellableStreamedResponse
from ._usage import Api, Meter, ResponseUsage, prepare

__all__ = ("Account", "Cancellable", "CancellableModel", "hand_over", "is_inside")


class Account:
    """What a run keeps of its streams: the one that is open, and what each has cost."""

    def __init__(self) -> None:
        self.stream: CancellableStreamedResponse | None = None
        self.usages: list[ResponseUsage] = []
        self.context: RunContext[Any] | None = None
        self.taken = False
        self.when_opened: Callable[[], None] | None = None
        """Called when a stream was made, before its first pull."""
        self.when_began: Callable[[], None] | None = None
        """Called when the run has a context, before anything else of it happens."""
        self.owner: asyncio.Task[Any] | None = None
        """The task that drives the run: its cancellation is the run's."""

    def take(self) -> Self:
        """Claim the account for one run."""
        self.taken = True
        return self

    def began(self, context: RunContext[Any]) -> None:
        """The run has a context: it can be stopped through it from here on."""
        self.context = context
        if self.when_began is not None:
            self.when_began()

    def opened(self, stream: CancellableStreamedResponse) -> None:
        """A stream was made; it is the open one until the next."""
        self.stream = stream
        self.usages.append(stream.usage)
        if self.when_opened is not None:
            self.when_opened()

    def requests(self) -> int:
        """How many of the streams had a request that was sent."""
        return sum(bool(usage.estimated_requests or usage.has_values()) for usage in self.usages)

    def why_left(self, error: BaseException | None) -> str:
        """The reason to record for a stream that is left before its end, with this error or without one."""
        context = self.context
        if isinstance(error, TimeoutError) or _is_past(None if context is None else context.deadline):
            return "timeout"
        if _was_cancelled_by_its_own_handle(context):
            return "cancelled"
        # A consumer that prefetches is cancelled in a task of its own when it is merely left, so the run's decides.
        if self.owner is not None and self.owner.cancelling() > 0:
            return "task_cancelled"
        return "left"


def _is_past(deadline: datetime | None) -> bool:
    return deadline is not None and datetime.now(UTC) >= deadline


def _was_cancelled_by_its_own_handle(context: RunContext[Any] | None) -> bool:
    """Whether a token, `AgentRun.cancel()` or `RunContext.cancel()` asked for it; read softly, as it is private."""
    return bool(getattr(getattr(context, "_cancellation", None), "cancel_requested", False))


_handed_over: ContextVar[Account | None] = ContextVar("cancelstream.account", default=None)


@contextmanager
def hand_over(account: Account) -> Generator[None]:
    """Let the first run that begins in this context keep its streams in `account`."""
    token = _handed_over.set(account)
    try:
        yield
    finally:
        _handed_over.reset(token)


_inside: ContextVar[tuple[Account, ...]] = ContextVar("cancelstream.inside", default=())


def is_inside(account: Account) -> bool:
    """Whether the caller runs in a tool of this account's run."""
    return account in _inside.get()


class CancellableModel(WrapperModel):
    """A model whose every stream is a `CancellableStreamedResponse`; for direct calls, without an agent.

    It cannot guard a message history: `Cancellable` does that for an agent, `check_history` for a direct call.

    Args:
        wrapped: The model, or the name of one.
    """

    def __init__(self, wrapped: Model | KnownModelName | str) -> None:
        super().__init__(wrapped)
        self.account: Account | None = None
        prepare(self.wrapped.model_name)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Yield the stream before anything is sent; the request goes out when the first event is asked for."""
        model = self.wrapped
        account = self.account
        if account is None:
            account = Account()
            account.owner = asyncio.current_task()
        stream = CancellableStreamedResponse.opening(
            lambda: model.request_stream(messages, model_settings, model_request_parameters, run_context),
            model=model,
            meter=Meter.for_pydantic_ai(
                model_name=model.model_name,
                provider_name=model.system,
                provider_url=model.base_url,
                messages=messages,
                model_settings=model_settings,
                model_request_parameters=model_request_parameters,
                api=_api_of(model),
            ),
            parameters=model_request_parameters,
        )
        account.opened(stream)
        try:
            yield stream
        except BaseException as error:
            await stream.leave(account.why_left(error), error)
            raise
        else:
            await stream.leave(account.why_left(None))
        finally:
            _describe(stream.usage)


def _api_of(model: Model) -> Api | None:
    """Which of OpenAI's interfaces a model speaks, under whatever else wraps it: they count differently."""
    while isinstance(model, WrapperModel):
        model = model.wrapped
    if isinstance(model, OpenAIResponsesModel):
        return "openai-responses"
    return "openai-chat" if isinstance(model, OpenAIChatModel) else None


def _describe(usage: ResponseUsage) -> None:
    """Say on pydantic-ai's span, whose token counts are ours, where they come from."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("cancelstream.usage.provenance", usage.provenance)


@dataclass
class Cancellable(AbstractCapability[Any]):
    """Makes an agent's streams cancellable, its usage honest and its history safe: `capabilities=[Cancellable()]`.

    Everything of pydantic-ai's stays as it is: `run`, `run_stream`, `iter` and `run_stream_events`, and what they
    raise. One instance serves any number of runs at once.

    Args:
        history: What to do with a `message_history` that holds a cut answer, before anything is sent: `'refuse'` it
            with `IncompleteHistoryError`, `'salvage'` it as `salvage()` does, or `'allow'` it.

    Raises:
        ValueError: If `history` is none of the three.
    """

    history: HistoryPolicy = field(default="refuse", kw_only=True)

    def __post_init__(self) -> None:
        if self.history not in (policies := get_args(HistoryPolicy)):
            raise ValueError(f"history={self.history!r} is no policy: use one of {', '.join(map(repr, policies))}")
        self._account: Account | None = None
        self._agents_model: object = None

    async def for_run(self, ctx: RunContext[Any]) -> Cancellable:
        """A fresh instance for this run, with the account that was handed over for it, if one was."""
        own = replace(self)
        account = _handed_over.get()
        own._account = (Account() if account is None or account.taken else account).take()
        own._agents_model = ctx.model
        return own

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Hold the history to the policy before anything else of the run happens."""
        ctx.messages[:] = apply_policy(ctx.messages, self.history, has_prompt=ctx.prompt is not None)
        if self._account is not None:
            self._account.began(ctx)
        return await handler()

    async def before_node_run(self, ctx: RunContext[Any], *, node: Any) -> Any:
        """Note which task drives the run; the hooks before this one run in tasks of their own."""
        if self._account is not None:
            self._account.owner = asyncio.current_task()
        return node

    def get_wrapper_model(self, model: Model) -> Model | None:
        """Wrap each model that serves the run, once.

        A model that cannot stream is left as it is: pydantic-ai has its own words for that.
        """
        # pydantic-ai takes the agent's model out of its `InstrumentedModel`, opens the spans itself, and puts it back
        # where a capability has another instance for each run: every request would have two spans.
        if isinstance(model, InstrumentedModel) and model.wrapped is self._agents_model:
            model = model.wrapped
        if isinstance(model, CancellableModel) and model.account is not None:
            return None
        if type(model).request_stream is Model.request_stream:
            return None
        wrapper = CancellableModel(model)
        wrapper.account = self._account
        return wrapper

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Let a tool that cancels its own run, and awaits that, know that it would wait for itself."""
        account = self._account
        token = _inside.set(_inside.get() if account is None else (*_inside.get(), account))
        try:
            return await handler(args)
        finally:
            _inside.reset(token)

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        """Mark a response that was left early, which pydantic-ai records as merely incomplete."""
        stream = None if self._account is None else self._account.stream
        if response.state == "incomplete" and stream is not None and stream.cancelled:
            return mark_interrupted(response, reason=stream.cancel_reason or "left", usage_record=stream.usage.record())
        return response
