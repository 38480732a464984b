"""Turn the outputs of a request's samples into the bytes of its answer; in any thread or process."""

from collections.abc import Callable, Sequence

from service.errors import InvalidAnswer
from tasks.contract import Answer, Arrays, InvalidOutput, Request, Samples, Task, split_outputs


def postprocess(
    task: Task, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Answer], bytes]
) -> bytes:
    """Return the answer as `render` represents it. Raises InvalidAnswer."""
    try:
        return render(task.postprocess(outputs, samples, request))
    except InvalidOutput as error:
        raise InvalidAnswer(str(error)) from None


Render = Callable[[Answer], bytes]


def postprocess_many(
    task: Task, outputs: Arrays, samples: Sequence[Samples], requests: Sequence[Request], renders: Sequence[Render]
) -> list[bytes | Exception]:
    """Do what `postprocess` does for several requests at once; `outputs` are those of all their samples in order."""
    try:
        answers = task.postprocess_many(outputs, samples, requests)
    except Exception:  # Whatever it is, it may belong to one of them alone.
        parts = split_outputs(outputs, [len(item) for item in samples])
        return [_postprocess(task, *arguments) for arguments in zip(parts, samples, requests, renders, strict=True)]
    return [_render(render, answer) for render, answer in zip(renders, answers, strict=True)]


def _postprocess(task: Task, outputs: Arrays, samples: Samples, request: Request, render: Render) -> bytes | Exception:
    try:
        return postprocess(task, outputs, samples, request, render)
    except Exception as error:  # Of this request alone; one that is no ServiceError is a bug.
        return error


def _render(render: Render, answer: Answer) -> bytes | Exception:
    try:
        return render(answer)
    except Exception as error:  # As above.
        return error
