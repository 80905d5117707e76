"""The plug into pydantic-ai: `CancellableModel` for one model, the capability `Cancellable` for an agent.

Mechanism. The model opens every stream as a `CancellableStreamedResponse`, and leaves it with the reason it was left
for. The capability wraps each model of a run that way, refuses or repairs a history that holds a cut answer before
anything is sent, and gives a response that was just left (`break`) the same mark as one that was cancelled. Its state
is made anew for every run (`for_run`), so one agent serves many runs at once.

A run and the capability share a `RunState` (`_run_state.py`).

Known limits. `asyncio.timeout()` around a run cancels its task like a plain `task.cancel()`, so its reason is
`'task_cancelled'`; pydantic-ai's own `timeout=` is told apart by the run's deadline. Under durable execution the model
is called in another process, where cancelstream provides the usage only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, get_args
from weakref import ref

import anyio
from opentelemetry import trace
from pydantic_ai import RunContext, UserPromptNode
from pydantic_ai.capabilities import AbstractCapability, WrapRunHandler, WrapToolExecuteHandler
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models import (
    KnownModelName,
    Model,
    ModelRequestContext,
    ModelRequestParameters,
    StreamedResponse,
)
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.run import AgentRunResult
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_graph import End

from ._counting import Api, family_of
from ._durable import refuse_wrapper
from ._errors import named
from ._history import HistoryPolicy, apply_policy, mark_interrupted
from ._response import LEAVE_TIMEOUT, cancelled_job, leave, open_lazily
from ._run_state import RunState, current_run_state, inside
from ._usage import Meter, ResponseUsage, prepare

__all__ = ("Cancellable", "CancellableModel")


class CancellableModel(WrapperModel):
    """A model whose every stream is a `CancellableStreamedResponse`; for direct calls, without an agent.

    It cannot guard a message history: `Cancellable` does that for an agent, `check_history` for a direct call.

    Args:
        wrapped: The model, or the name of one.
    """

    def __init__(self, wrapped: Model | KnownModelName | str) -> None:
        super().__init__(wrapped)
        self._state: ref[RunState] | None = None
        self._cancelled_jobs: set[str] = set()
        prepare(_asked_of(self.wrapped).name)

    @property
    def state(self) -> RunState | None:
        """The state of the run that it serves, which it does not keep: pydantic-ai's objects keep the model."""
        return None if self._state is None else self._state()

    @state.setter
    def state(self, state: RunState | None) -> None:
        self._state = None if state is None else ref(state)

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
        state = self.state
        if state is None:
            state = RunState()
            state.owner = asyncio.current_task()
        asked = _asked_of(model)
        stream = open_lazily(
            lambda: model.request_stream(messages, model_settings, model_request_parameters, run_context),
            model=model,
            meter=Meter.for_pydantic_ai(
                model_name=asked.name,
                provider_name=asked.provider,
                provider_url=asked.url,
                messages=messages,
                model_settings=model_settings,
                model_request_parameters=model_request_parameters,
                api=asked.api,
            ),
            parameters=model_request_parameters,
            in_run=self.state is not None or run_context is not None,
        )
        state.stream_made(stream, messages)
        try:
            yield stream
        except BaseException as error:
            await leave(stream, state.leave_reason(error), error)
            raise
        else:
            await leave(stream, state.leave_reason(None))
        finally:
            _describe(stream.usage)
            if (cancelled := cancelled_job(stream)) is not None:
                # pydantic-ai does this for a stream that it cancels itself, and not for one that ends in its hands.
                with anyio.move_on_after(LEAVE_TIMEOUT, shield=True), suppress(Exception):
                    await self.cancel_suspended_response(cancelled)

    async def cancel_suspended_response(self, response: ModelResponse) -> None:
        """Cancel the job behind a response on the server, once; a run that was just left leaves its job.

        Args:
            response: What arrived of the job's answer.
        """
        job = response.provider_response_id
        if (self.state is not None and self.state.is_just_left) or job in self._cancelled_jobs:
            return
        if job is not None:
            self._cancelled_jobs.add(job)
        await self.wrapped.cancel_suspended_response(response)


@dataclass(frozen=True)
class _Asked:
    """The model and provider of a request, as far as they are known before the answer."""

    name: str | None
    provider: str | None
    url: str | None
    api: Api | None


def _asked_of(model: Model) -> _Asked:
    """Whom a model asks, under whatever wraps it; of a `FallbackModel`, what its models have in common."""
    models = _leaves(model)
    first = models[0]
    names, providers = ({getattr(each, name) for each in models} for name in ("model_name", "system"))
    alike = len(names) == 1 or len({family_of(name) for name in names}) == 1
    apis: set[Api | None] = {_api_of(each) for each in models}
    return _Asked(
        first.model_name if alike else None,
        first.system if len(providers) == 1 else None,
        first.base_url if len(providers) == 1 else None,
        apis.pop() if len(apis) == 1 else None,
    )


def _leaves(model: Model) -> list[Model]:
    if isinstance(model, WrapperModel):
        return _leaves(model.wrapped)
    if isinstance(model, FallbackModel):
        return [leaf for each in model.models for leaf in _leaves(each)]
    return [model]


def _api_of(model: Model) -> Api | None:
    """Which of OpenAI's interfaces a model speaks: they count differently."""
    if isinstance(model, OpenAIResponsesModel):
        return "openai-responses"
    return "openai-chat" if isinstance(model, OpenAIChatModel) else None


def _describe(usage: ResponseUsage) -> None:
    """Say on pydantic-ai's span, whose token counts come from cancelstream, how each was found."""
    span = trace.get_current_span()
    if span.is_recording() and usage._counts:
        span.set_attribute("cancelstream.usage.provenance", usage.provenance)


def _first_step(node: object) -> UserPromptNode[Any, Any] | None:
    """The step that takes the history and the prompt, if it is that."""
    return node if isinstance(node, UserPromptNode) else None  # pyright: ignore[reportUnknownVariableType]


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
            raise ValueError(f"history={named(self.history)} is no policy: use one of {', '.join(map(repr, policies))}")
        self._state: RunState | None = None
        self._agents_model: object = None

    async def for_run(self, ctx: RunContext[Any]) -> Cancellable:
        """A fresh instance for this run, with the state that was provided for it, if one was.

        Raises:
            UserError: If a `DBOSAgent` or its like runs the agent, whose model's streams cannot be reached.
        """
        refuse_wrapper(ctx.model)
        own = replace(self)
        own._state = current_run_state(ctx.run_id)
        own._agents_model = ctx.model
        return own

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Hold the history to the policy before anything else of the run happens, and close it if the run is cut."""
        # Whether its last tool calls get their results is known when the first step begins.
        ctx.messages[:] = apply_policy(
            ctx.messages, self.history, has_prompt=ctx.prompt is not None, awaits_results=True
        )
        state = self._state
        if state is None:
            return await handler()
        state.run_started(ctx)
        try:
            return await handler()
        except BaseException as error:
            # A run that was merely left between two steps may still be gone on with by hand.
            if isinstance(error, Exception) or state.leave_reason(error) != "left":
                state.close_messages(cut=not isinstance(error, Exception))
            raise
        finally:
            state.run_ended()
            self._state = None

    async def before_node_run(self, ctx: RunContext[Any], *, node: Any) -> Any:
        """Note the step, and which task drives the run: the hooks before this one run in tasks of their own."""
        if (first := _first_step(node)) is not None:
            ctx.messages[:] = apply_policy(
                ctx.messages,
                self.history,
                has_prompt=first.user_prompt is not None,
                awaits_results=first.deferred_tool_results is not None,
            )
        if self._state is not None:
            self._state.step_started(ctx, node)
        return node

    async def after_node_run(self, ctx: RunContext[Any], *, node: Any, result: Any) -> Any:
        """Note the step that ends the run: what happens later does not change its messages."""
        if self._state is not None:
            self._state.has_result = isinstance(result, End)
        return result

    def get_wrapper_model(self, model: Model) -> Model | None:
        """Wrap each model that serves the run, once.

        A model that cannot stream is left as it is: pydantic-ai has its own words for that.
        """
        if self._state is not None:
            self._state.note_task()
        # pydantic-ai takes the agent's model out of its `InstrumentedModel`, opens the spans itself, and puts it back
        # where a capability has another instance for each run: every request would have two spans.
        if isinstance(model, InstrumentedModel) and model.wrapped is self._agents_model:
            model = model.wrapped
        if isinstance(model, CancellableModel) and model.state is not None:
            return None
        if type(model).request_stream is Model.request_stream:
            return None
        wrapper = CancellableModel(model)
        wrapper.state = self._state
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
        with inside(self._state):
            return await handler(args)

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        """Mark a response that was left early, which pydantic-ai records as merely incomplete."""
        stream = None if self._state is None else self._state.stream
        if response.state == "incomplete" and stream is not None and stream.cancelled:
            response = replace(response, usage=stream.usage)
            return mark_interrupted(response, reason=stream.cancel_reason or "left", usage_record=stream.usage.record())
        return response
