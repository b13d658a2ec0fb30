"""The body of a chat completion, checked: OpenAI's fields, and our own for sampling and pruning.

A field that is not known, or that asks for what there is not, is an error: a misspelt option must not be ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from ..decode.json_grammar import ANY_OBJECT
from ..errors import ConfigError
from ..prompt.chat_template import media_items

_MAX_MEDIA = 32
_MAX_STOPS = 16
_SAMPLING = ("fps", "max_frames", "start_s", "end_s", "source_fps")
_PRUNING = tuple(field.name for field in fields(PruningConfig) if field.name != "enabled")
_GENERATION = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
CLIP_FIELDS = (*_SAMPLING, *_PRUNING, "pruning")
_OWN = (*CLIP_FIELDS, "add_system_prompt")
_TAKEN = ("model", "messages", "stream", "stream_options", "stop", "response_format", "max_tokens")
# What changes nothing here; and what is allowed where it asks for nothing.
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
}
_MESSAGE = ("role", "content", "name", "refusal", "annotations", "reasoning_content")
_KINDS: dict[str, MediaKind] = {"image_url": "image", "video_url": "video"}
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class MediaPart:
    """A picture or a video of a conversation. url: a data URL, a file's id, a path, or an address."""

    kind: MediaKind
    url: str


@dataclass(frozen=True)
class ChatRequest:
    """What is asked for.

    messages: in the format of `VideoLlama3.generate`, with a MediaPart for each of the media. stop: texts that end the
    answer. schema: a JSON schema that it has to fit. include_usage: in a stream, too.
    """

    messages: list[dict[str, Any]]
    sampling: SamplingPlan
    pruning: PruningConfig
    generation: GenerationConfig
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    schema: dict[str, Any] | None
    add_system_prompt: bool

    @property
    def media(self) -> list[MediaPart]:
        parts = (
            part for message in self.messages if isinstance(message["content"], list) for part in message["content"]
        )
        return [part[part["type"]] for part in parts if part["type"] != "text"]


def chat_request(body: Any, most_frames: int) -> ChatRequest:
    """Reads a request's JSON. most_frames: that a clip may have. Raises ConfigError."""
    if not isinstance(body, Mapping):
        raise ConfigError("the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    _check_names(given)
    request = ChatRequest(
        messages=_messages(given.get("messages")),
        sampling=sampling_plan(given, most_frames),
        pruning=pruning_config(given),
        generation=GenerationConfig(max_new_tokens=given.get("max_tokens"), **_taken(given, _GENERATION)),
        stop=_stop(given.get("stop", [])),
        stream=_flag(given, "stream"),
        include_usage=_include_usage(given.get("stream_options", {})),
        schema=_schema(given.get("response_format", {"type": "text"})),
        add_system_prompt=_flag(given, "add_system_prompt"),
    )
    if len(request.media) > _MAX_MEDIA:
        raise ConfigError(f"a conversation may have {_MAX_MEDIA} pictures and videos, not {len(request.media)}")
    return request


def sampling_plan(given: Mapping[str, Any], most_frames: int) -> SamplingPlan:
    """From the fields of a request that it has. Raises ConfigError."""
    plan = SamplingPlan(**_taken(given, _SAMPLING))
    if plan.max_frames is not None and plan.max_frames > most_frames:
        raise ConfigError(f"max_frames may be {most_frames} on this server, not {plan.max_frames}")
    return plan


def pruning_config(given: Mapping[str, Any]) -> PruningConfig:
    """From the fields of a request that it has; `pruning` false keeps every token. Raises ConfigError."""
    enabled = {"enabled": False} if not _flag(given, "pruning", True) else {}
    return PruningConfig(**_taken(given, _PRUNING), **enabled)


def _taken(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def check_known(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raises ConfigError for a field that is not known, and is not empty as what clients send back of an answer."""
    for name, value in given.items():
        if name not in known and value is not None and value != []:
            raise ConfigError(f"unknown field {name[:60]!r} in {where}; there are {', '.join(known)}")


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise ConfigError(f"{name} is not supported by this server: leave it out")
        if name not in (*_TAKEN, *_GENERATION, *_OWN, *_IGNORED, *_NEUTRAL):
            raise ConfigError(f"unknown field {name[:60]!r}; besides OpenAI's there are {', '.join(_OWN)}")
    if not isinstance(given.get("model", ""), str):
        raise ConfigError("model must be a string")


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise ConfigError("messages must be a list with at least one message")
    read = [_message(message) for message in messages]
    if read[-1]["role"] != "user":
        raise ConfigError("the last message must be the user's")
    media_items(read)  # refuses text that is not UTF-8
    return read


def _message(message: Any) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise ConfigError(f"each message must be an object with a role of {', '.join(_ROLES)}")
    check_known(message, _MESSAGE, "a message")
    content = message.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    elif content is None and role == "assistant":
        content = ""
    elif not isinstance(content, str):
        raise ConfigError("content must be a string or a list of parts")
    return {"role": _ROLES[role], "content": content}


def _part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        check_known(part, ("type", "text"), "a part of type text")
        return {"type": "text", "text": part["text"]}
    if isinstance(kind, str) and kind in _KINDS:
        check_known(part, ("type", kind), f"a part of type {kind}")
        link = part.get(kind)
        url = link.get("url") if isinstance(link, Mapping) else link
        if isinstance(url, str) and url:
            check_known(link if isinstance(link, Mapping) else {}, ("url", "detail"), kind)
            return {"type": _KINDS[kind], _KINDS[kind]: MediaPart(_KINDS[kind], url)}
        raise ConfigError(f'a part of type {kind} needs {kind}: {{"url": …}}')
    raise ConfigError('a part must be {"type": "text", "text": …}, or of type image_url or video_url')


def _stop(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError("stop must be a text or a list of texts, none of them empty")
    if len(texts) > _MAX_STOPS:
        raise ConfigError(f"there may be {_MAX_STOPS} stop texts, not {len(texts)}")
    return tuple(texts)


def _flag(given: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false")
    return value


def _include_usage(options: Any) -> bool:
    if not isinstance(options, Mapping):
        raise ConfigError("stream_options must be an object")
    check_known(options, ("include_usage", "include_obfuscation"), "stream_options")
    return _flag(options, "include_usage")


def _schema(wanted: Any) -> dict[str, Any] | None:
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind is not None:
        check_known(wanted, ("type", "json_schema"), "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    named = wanted.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if named is None or not isinstance(schema, dict):
        raise ConfigError("response_format must be of type text, json_object, or json_schema with a schema")
    check_known(named, ("name", "description", "schema", "strict"), "json_schema")
    return schema
