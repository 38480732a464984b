"""Turn a request's body into samples: parse, validate, decode, pre-process.

This runs on the event loop, in a thread or in a worker process (`service/decoding/`), whichever the pipeline chooses.
It knows nothing about queues or devices.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from service.engine.admission import RequestOptions, parse_options
from service.engine.error_mapping import map_input_error, map_validation_error
from service.engine.request import Body, Parse
from service.errors import InvalidRequest, ServiceError, TooLarge
from tasks.contract import InvalidInput, Limits, Request, Samples, Task


@dataclass(frozen=True)
class Preparation:
    """The result: the request without its upload, its samples, and the options found among its fields.

    The upload has become samples. Without it the request is small, so that waiting requests hold little memory.
    `held_bytes` is what a result takes that comes from another process.
    """

    request: Request
    samples: Samples
    options: RequestOptions = RequestOptions()
    held_bytes: int = 0


@dataclass(frozen=True)
class SeveralPreparations:
    """The results for a request with several inputs, in their order: for each a preparation or its error."""

    items: tuple[Preparation | ServiceError, ...]
    options: RequestOptions = RequestOptions()
    held_bytes: int = 0


class BudgetExceeded(Exception):
    """Preparing a request took more processor time, or memory, than it was given at this attempt.

    `refusal` is the error for the client.
    """

    def __init__(self, refusal: ServiceError) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True)
class PreparationRules:
    """What preparation needs besides the request and the task.

    Attributes:
        limits: sizes that a request may have.
        option_fields: names of the fields that are request options and not part of the task's input.
    """

    limits: Limits
    option_fields: tuple[str, ...]


def prepare(task: Task, rules: PreparationRules, body: Body, parse: Parse) -> Preparation | SeveralPreparations:
    """Parse, decode and pre-process a request. Raises ServiceError."""
    fields, options = parse_options(parse(body), names=rules.option_fields)
    if _has_several_inputs(task, fields):
        return _prepare_several(task, rules, fields, options)
    return _prepare_input(task, rules, fields, options)


Outcome = Preparation | SeveralPreparations | Exception
"""What became of one of several requests; an exception that is no ServiceError is a bug."""


def prepare_many(task: Task, rules: PreparationRules, requests: Sequence[tuple[Body, Parse]]) -> list[Outcome]:
    """Do what `prepare` does for several requests at once, each given by its body and what parses it."""
    outcomes: list[Outcome | None] = []
    read: list[_ReadRequest] = []
    for body, parse in requests:
        try:
            fields, options = parse_options(parse(body), names=rules.option_fields)
            if _has_several_inputs(task, fields):
                outcomes.append(_prepare_several(task, rules, fields, options))
            else:
                read.append(_read_input(task, rules, fields, options))
                outcomes.append(None)
        except Exception as error:  # It belongs to this request alone.
            outcomes.append(error)
    prepared = iter(_preprocess_many(task, rules, read))
    return [next(prepared) if outcome is None else outcome for outcome in outcomes]


@dataclass(frozen=True, slots=True)
class _ReadRequest:
    """A request that has been validated, and the raw content that it was decoded to."""

    request: Request
    raw: Any
    options: RequestOptions


def _preprocess_many(task: Task, rules: PreparationRules, read: Sequence[_ReadRequest]) -> Iterable[Outcome]:
    if not read:
        return ()
    try:
        samples = task.preprocess_many([item.raw for item in read])
    except Exception:  # Whatever it is, it may belong to one of them alone.
        return [_preprocess(task, rules, item) for item in read]
    # They keep their uploads, since they are small and about to be answered.
    return [Preparation(item.request, sample, item.options) for item, sample in zip(read, samples, strict=True)]


def _preprocess(task: Task, rules: PreparationRules, item: _ReadRequest) -> Outcome:
    try:
        return Preparation(item.request, task.preprocess(item.raw), item.options)
    except Exception as error:  # As in `prepare_many`.
        return _map_error(error, task, rules) or error


def _has_several_inputs(task: Task, fields: Mapping[str, Any]) -> bool:
    upload = task.upload
    return upload is not None and upload.several and isinstance(fields.get(upload.field), list)


def _prepare_several(
    task: Task, rules: PreparationRules, fields: Mapping[str, Any], options: RequestOptions
) -> SeveralPreparations:
    name = task.upload.field if task.upload is not None else ""
    inputs = fields[name]
    if not inputs:
        raise InvalidRequest(f"{name}: the list is empty.")
    if len(inputs) > rules.limits.inputs:
        raise TooLarge(f"{name}: {len(inputs):,} were sent; at most {rules.limits.inputs} are accepted at a time.")
    shared = replace(rules, limits=_share_limits(rules.limits, len(inputs)))
    items = tuple(_prepare_item(task, shared, {**fields, name: value}, i) for i, value in enumerate(inputs))
    return SeveralPreparations(items, options)


def _share_limits(limits: Limits, inputs: int) -> Limits:
    """Return the limits of each of several inputs: together they may cost the device no more than a single one."""
    return replace(limits, characters=limits.characters // inputs, answer_pixels=limits.answer_pixels // inputs)


def _prepare_item(
    task: Task, rules: PreparationRules, fields: Mapping[str, Any], index: int
) -> Preparation | ServiceError:
    """Prepare one of several inputs; return its error. Raises ServiceError if another field is invalid, for all."""
    try:
        return _prepare_input(task, rules, fields, RequestOptions())
    except ServiceError as error:
        name = task.upload.field if task.upload is not None else ""
        located = _locate_item(error, name, f"{name}.{index}")
        if error.details and located.details == error.details:
            raise
        return located


def _locate_item(error: ServiceError, name: str, place: str) -> ServiceError:
    """Return the error of an input with its place in the list (`image.1`) in place of the field's name (`image`)."""
    details = tuple(
        replace(problem, where=place + problem.where.removeprefix(name))
        if problem.where.split(".")[0] == name
        else problem
        for problem in error.details
    )
    message = f"{place}{error.message.removeprefix(name)}" if error.message.startswith(f"{name}:") else error.message
    if isinstance(error, TooLarge):
        message += " The inputs of a request share such limits: send fewer, or one at a time."
    return type(error)(message, details=details)


def _prepare_input(
    task: Task, rules: PreparationRules, fields: Mapping[str, Any], options: RequestOptions
) -> Preparation:
    read = _read_input(task, rules, fields, options)
    try:
        samples = task.preprocess(read.raw)
    except InvalidInput as error:
        raise map_input_error(error) from None
    return Preparation(_without_upload(task, read.request), samples, options)


def _read_input(
    task: Task, rules: PreparationRules, fields: Mapping[str, Any], options: RequestOptions
) -> _ReadRequest:
    try:
        request = task.parse(fields, rules.limits)
        return _ReadRequest(request, task.decode(request, rules.limits), options)
    except (ValidationError, InvalidInput) as error:
        raise _map_error(error, task, rules) or error from None


def _map_error(error: Exception, task: Task, rules: PreparationRules) -> ServiceError | None:
    """Return the error for the client; None if it is none that a task raises for a request that it cannot read."""
    if isinstance(error, ValidationError):
        return map_validation_error(error, task.request_type, rules.option_fields)
    return map_input_error(error) if isinstance(error, InvalidInput) else None


def _without_upload(task: Task, request: Request) -> Request:
    return request if task.upload is None else request.model_copy(update={task.upload.field: None})
