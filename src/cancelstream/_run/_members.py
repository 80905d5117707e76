"""The members of pydantic-ai's streamed result, apart from messages and usage; none of them stops anything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pydantic_ai import AgentRunResult, RunContext
from pydantic_ai.messages import ModelResponse
from pydantic_ai.result import StreamedRunResult

from .._errors import IncompleteOutputError
from .._run_state import PastContext

if TYPE_CHECKING:
    from pydantic_ai.workspaces import Workspace

__all__ = ("RunMembers", "refuse_return_content")

OutputT = TypeVar("OutputT")


class RunMembers(ABC, Generic[OutputT]):
    """The members of a run that are pydantic-ai's own, and what they are for a run that has none."""

    @property
    @abstractmethod
    def cancelled(self) -> bool: ...

    @property
    @abstractmethod
    def cancel_reason(self) -> str | None: ...

    @property
    @abstractmethod
    def response(self) -> ModelResponse: ...

    @abstractmethod
    def _entered(self) -> StreamedRunResult[Any, OutputT] | None:
        """pydantic-ai's result, `None` for a run that was cut before it had one; raises if it was not entered."""

    @abstractmethod
    def _known(self) -> StreamedRunResult[Any, OutputT] | RunContext[Any] | PastContext | None:
        """The object that pydantic-ai has made of the run so far, `None` until there is one."""

    @property
    def run_id(self) -> str | None:
        """pydantic-ai's id of this run; `None` until it begins, and for good if it was stopped before that."""
        known = self._known()
        return None if known is None else known.run_id

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that the run belongs to; `None` until it begins."""
        known = self._known()
        return None if known is None else known.conversation_id

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The metadata of the run, if the agent or the call has set any; `None` until it begins."""
        known = self._known()
        return None if known is None else known.metadata

    @property
    def workspace(self) -> Workspace:
        """The workspace of the run.

        Raises:
            RuntimeError: If the run has not begun.
        """
        known = self._known()
        if known is None:
            raise RuntimeError("this run has no workspace yet: it gets one when it begins, in `async with`")
        return known.workspace

    @property
    def timestamp(self) -> datetime:
        """When the response began."""
        result = self._entered()
        return self.response.timestamp if result is None else result.timestamp

    @property
    def is_complete(self) -> bool:
        """Whether the answer was received to its end, by one of the `stream_` methods or by `get_output()`."""
        result = self._entered()
        return result is not None and result.is_complete and not self.cancelled

    @property
    def result(self) -> AgentRunResult[OutputT]:
        """The run as pydantic-ai's `AgentRunResult`, once the answer was received to its end.

        Raises:
            IncompleteOutputError: If the run was cut.
            UserError: If it is still streaming.
        """
        return self._whole().result

    async def validate_response_output(self, message: ModelResponse, *, allow_partial: bool = False) -> OutputT:
        """Validate a response as the output of this run.

        Args:
            message: The response, such as a snapshot of `stream_response()`.
            allow_partial: Whether it may be a part of an output.

        Raises:
            IncompleteOutputError: If the run was cut before it had an answer.
        """
        result = self._entered()
        if result is None:
            raise IncompleteOutputError(self.cancel_reason or "cancelled")
        return await result.validate_response_output(message, allow_partial=allow_partial)

    def _whole(self) -> StreamedRunResult[Any, OutputT]:
        """pydantic-ai's result of a run that was not cut."""
        result = self._entered()
        if result is None or self.cancelled:
            raise IncompleteOutputError(self.cancel_reason or "cancelled")
        return result


_UNSUPPORTED: Final = (
    "output_tool_return_content cannot be set in the messages of a streamed run, here as in pydantic-ai: "
    "give it to the AgentRunResult of agent.run(), or answer the output tool's call in the history yourself"
)


def refuse_return_content(output_tool_return_content: str | None) -> None:
    """Raise the `NotImplementedError` that pydantic-ai's streamed results raise, if there is anything to set."""
    if output_tool_return_content is not None:
        raise NotImplementedError(_UNSUPPORTED)
