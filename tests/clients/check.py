"""The official Python client against the daemon on the socket that is the argument; tests/clients/run runs it."""

import json
import sys
import time
import traceback
from enum import Enum

import httpx2
import openai
from pydantic import BaseModel

SOCKET = sys.argv[1]
ASKED = [{"role": "user", "content": "dim the hall lights to 30"}]
http = httpx2.Client(transport=httpx2.HTTPTransport(uds=SOCKET), timeout=120)
client = openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)
MODEL = client.models.list().data[0].id

TOOL = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switches a light.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"enum": ["hall", "attic"]}, "on": {"type": "boolean"}},
            "required": ["room", "on"],
            "additionalProperties": False,
        },
    },
}
FLAT_TOOL = {"type": "function", "strict": True, **TOOL["function"]}


class Room(str, Enum):
    roof = "roof"
    shed = "shed"


class Place(BaseModel):
    sure: bool
    room: Room


def chat(**more):
    return client.chat.completions.create(**{"model": MODEL, "messages": ASKED, "temperature": 0, **more})


def status():
    return http.get("http://localhost/v1/status").json()


def models():
    assert client.models.list().data[0].object == "model"
    assert client.models.retrieve(MODEL).id == MODEL
    refused(openai.NotFoundError, None, lambda: client.models.retrieve("other"))


def plain():
    answer = chat()
    choice = answer.choices[0]
    assert choice.finish_reason == "stop" and choice.message.role == "assistant"
    assert "brightness" in choice.message.content, choice
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 0
    assert usage.prompt_tokens_details.cached_tokens >= 0
    cut = chat(max_completion_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)


def streamed():
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert len({c.id for c in chunks}) == 1
    # The client's own helper puts the pieces together.
    with client.chat.completions.stream(model=MODEL, messages=ASKED, temperature=0) as stream:
        assert any(event.type == "content.delta" for event in stream)
        assert stream.get_final_completion().choices[0].message.content == text


def logprobs():
    answer = chat(logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(t.token for t in tokens) == answer.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob >= token.logprob - 1e-6
        assert bytes(token.bytes).decode() == token.token
    pieces = [c.choices[0] for c in chat(logprobs=True, top_logprobs=3, stream=True)]
    assert [t for p in pieces if p.logprobs for t in p.logprobs.content] == tokens


def tools():
    answer = chat(tools=[TOOL], tool_choice="required")
    choice = answer.choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.type == "function" and call.function.name == "set_light" and call.id
    assert json.loads(call.function.arguments)["room"] in ["hall", "attic"]
    named = {"type": "function", "function": {"name": "set_light"}}
    pieces = [c.choices[0] for c in chat(tools=[TOOL], tool_choice=named, stream=True)]
    calls = [call for p in pieces for call in p.delta.tool_calls or []]
    assert calls[0].index == 0 and calls[0].function.name == "set_light"
    assert json.loads("".join(call.function.arguments for call in calls))["on"] in [True, False]
    assert pieces[-1].finish_reason == "tool_calls"
    # The result goes back in with the message as the client has it.
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    after = chat(messages=[*ASKED, choice.message, result], tools=[TOOL])
    assert after.choices[0].finish_reason == "stop"


def parsed():
    answer = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Place, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Place)
    call = openai.pydantic_function_tool(Place, name="place")
    answer = client.chat.completions.parse(model=MODEL, messages=ASKED, tools=[call], tool_choice="required")
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Place)
    free = chat(response_format={"type": "json_object"})
    assert isinstance(json.loads(free.choices[0].message.content), dict)


def stop():
    answer = chat(stop=["hall"]).choices[0]
    assert answer.finish_reason == "stop" and answer.message.content.endswith('"room":"'), answer


def seed():
    def say(seed):
        return chat(seed=seed, temperature=2, max_tokens=12).choices[0].message.content

    assert say(7) == say(7)
    assert len({say(seed) for seed in range(4)}) > 1


def completions():
    def ask(**more):
        return client.completions.create(model=MODEL, prompt="The kitchen is", temperature=0, max_tokens=6, **more)

    whole = ask(logprobs=2)
    told = whole.choices[0].logprobs
    assert whole.object == "text_completion" and "".join(told.tokens) == whole.choices[0].text
    assert told.text_offset[0] == 0 and all(len(top) >= 2 for top in told.top_logprobs)
    pieces = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert pieces[-1].usage.total_tokens == whole.usage.total_tokens


def respond(**more):
    return client.responses.create(**{"model": MODEL, "input": ASKED, "temperature": 0, **more})


def responses():
    answer = respond(instructions="Be brief.")
    assert answer.status == "completed" and "brightness" in answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert respond(max_output_tokens=2).incomplete_details.reason == "max_output_tokens"
    told = respond(include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = told.output[0].content[0].logprobs
    assert "".join(t.token for t in tokens) == told.output_text and len(tokens[0].top_logprobs) == 2
    called = respond(tools=[FLAT_TOOL], tool_choice="required")
    # The model may think first.
    call = next(item for item in called.output if item.type == "function_call")
    assert (call.type, call.name) == ("function_call", "set_light") and json.loads(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    assert respond(input=[*ASKED, *called.output, result], tools=[FLAT_TOOL]).status == "completed"


def response_events():
    whole = respond()
    events = list(respond(stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"], kinds
    assert kinds[-1] == "response.completed"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    with client.responses.stream(model=MODEL, input=ASKED, temperature=0) as stream:
        list(stream)
        assert stream.get_final_response().output_text == whole.output_text


def response_parsed():
    answer = client.responses.parse(model=MODEL, input=ASKED, text_format=Place, temperature=0)
    assert isinstance(answer.output_parsed, Place)


def refused(kind, param, call):
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind and error.param == param and error.code, (type(error), error.param, error.code)
        assert error.request_id, error.response.headers
        return error
    raise AssertionError("was not refused")


def errors():
    bad = openai.BadRequestError
    refused(bad, "temperature", lambda: chat(temperature=3))
    refused(bad, "n", lambda: chat(n=2))
    refused(bad, "messages[0].role", lambda: chat(messages=[{"role": "cook", "content": "a"}]))
    refused(bad, "response_format", lambda: chat(response_format=schema_format({"type": "fruit"})))
    refused(bad, "text.format", lambda: respond(text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "fruit"}}}))
    refused(bad, "truncation", lambda: respond(truncation="auto"))
    refused(bad, "prompt", lambda: client.completions.create(model=MODEL, prompt=["a", "b"]))
    long = refused(bad, None, lambda: chat(messages=[{"role": "user", "content": "7 " * 4000}]))
    assert long.code == "context_length_exceeded"
    refused(openai.NotFoundError, None, lambda: client.responses.retrieve("resp_1"))
    refused(openai.NotFoundError, None, lambda: client.embeddings.create(model=MODEL, input="a"))


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def idempotency():
    head = {"Idempotency-Key": f"key-{time.time()}"}
    ask = client.chat.completions.with_raw_response.create
    first = ask(model=MODEL, messages=ASKED, temperature=2, extra_headers=head)
    again = ask(model=MODEL, messages=ASKED, temperature=2, extra_headers=head)
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    assert first.parse() == again.parse()
    refused(openai.UnprocessableEntityError, None, lambda: chat(temperature=1, extra_headers=head))


def cancellation():
    before = status()["requests"].get("cancelled", 0)
    long = {"type": "regex", "regex": "[a-z ]{20000}"}
    for stream in [chat(stream=True, extra_body={"response_format": long}),
                   respond(stream=True, extra_body={"text": {"format": long}})]:
        assert next(iter(stream)) is not None
        stream.close()
    until = time.monotonic() + 60
    while status()["requests"].get("cancelled", 0) < before + 2:
        assert time.monotonic() < until, status()
        time.sleep(0.05)


CHECKS = [models, plain, streamed, logprobs, tools, parsed, stop, seed, completions, responses, response_events,
          response_parsed, errors, idempotency, cancellation]
failed = 0
for check in CHECKS:
    try:
        check()
        print(f"python {openai.__version__}: {check.__name__}: ok")
    except Exception:
        failed += 1
        traceback.print_exc()
        print(f"python {openai.__version__}: {check.__name__}: FAILED")
sys.exit(failed > 0)
