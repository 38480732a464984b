"""Turn the outputs of a request's samples into the bytes of its answer; in any thread or process."""

from collections.abc import Callable

from service.errors import InvalidAnswer
from tasks.contract import Answer, Arrays, InvalidOutput, Request, Samples, Task


def postprocess(
    task: Task, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Answer], bytes]
) -> bytes:
    """Return the answer as `render` represents it. Raises InvalidAnswer."""
    try:
        return render(task.postprocess(outputs, samples, request))
    except InvalidOutput as error:
        raise InvalidAnswer(str(error)) from None
