// The official JavaScript client against the daemon on the socket that is the argument; tests/clients/run runs it.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { VERSION } from "openai/version";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { Agent, fetch as undiciFetch } from "undici";
import { z } from "zod";

const dispatcher = new Agent({ connect: { socketPath: process.argv[2] } });
const fetch = (url, init) => undiciFetch(url, { ...init, dispatcher });
const client = new OpenAI({ baseURL: "http://localhost/v1", apiKey: "none", fetch, maxRetries: 0 });

const messages = [{ role: "user", content: "dim the hall lights to 30" }];
const model = (await client.models.list()).data[0].id;
const chat = (more = {}) => client.chat.completions.create({ model, messages, temperature: 0, ...more });
const respond = (more = {}) => client.responses.create({ model, input: messages, temperature: 0, ...more });
const all = async (stream) => {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
};
const status = async () => (await fetch("http://localhost/v1/status")).json();

const place = z.object({ sure: z.boolean(), room: z.enum(["roof", "shed"]) });
const parameters = {
  type: "object",
  properties: { room: { enum: ["hall", "attic"] }, on: { type: "boolean" } },
  required: ["room", "on"],
  additionalProperties: false,
};
const described = { name: "set_light", description: "Switches a light.", parameters };
const tool = { type: "function", function: described };
const flatTool = { type: "function", strict: true, ...described };

async function refused(kind, param, asked) {
  const error = await asked.then(() => assert.fail("was not refused"), (error) => error);
  assert.equal(error.constructor, kind, error);
  assert.equal(error.param, param, error);
  assert.ok(error.code && error.requestID, error);
  return error;
}

const checks = {
  async models() {
    assert.equal((await client.models.retrieve(model)).id, model);
    await refused(OpenAI.NotFoundError, null, client.models.retrieve("other"));
  },

  async plain() {
    const answer = await chat();
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.match(answer.choices[0].message.content, /brightness/);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },

  async streamed() {
    const whole = await chat();
    const chunks = await all(await chat({ stream: true, stream_options: { include_usage: true } }));
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
    assert.equal(chunks.at(-2).choices[0].finish_reason, "stop");
    // The client's own helper puts the pieces together.
    const stream = client.chat.completions.stream({ model, messages, temperature: 0 });
    assert.equal((await stream.finalChatCompletion()).choices[0].message.content, text);
  },

  async logprobs() {
    const answer = await chat({ logprobs: true, top_logprobs: 3 });
    const tokens = answer.choices[0].logprobs.content;
    assert.equal(tokens.map((token) => token.token).join(""), answer.choices[0].message.content);
    assert.ok(tokens.every((token) => token.top_logprobs.length === 3));
    const chunks = await all(await chat({ logprobs: true, top_logprobs: 3, stream: true }));
    assert.deepEqual(chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []), tokens);
  },

  async tools() {
    const choice = (await chat({ tools: [tool], tool_choice: "required" })).choices[0];
    assert.equal(choice.finish_reason, "tool_calls");
    const [call] = choice.message.tool_calls;
    assert.equal(call.function.name, "set_light");
    assert.equal(typeof JSON.parse(call.function.arguments).on, "boolean");
    const named = { type: "function", function: { name: "set_light" } };
    const stream = client.chat.completions.stream({ model, messages, temperature: 0, tools: [tool], tool_choice: named });
    const streamed = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];
    assert.equal(streamed.function.name, "set_light");
    const result = { role: "tool", tool_call_id: call.id, content: "done" };
    const after = await chat({ messages: [...messages, choice.message, result], tools: [tool] });
    assert.equal(after.choices[0].finish_reason, "stop");
  },

  async parsed() {
    const response_format = zodResponseFormat(place, "place");
    const answer = await client.chat.completions.parse({ model, messages, temperature: 0, response_format });
    place.parse(answer.choices[0].message.parsed);
  },

  async stop() {
    const choice = (await chat({ stop: "hall" })).choices[0];
    assert.equal(choice.finish_reason, "stop");
    assert.ok(choice.message.content.endsWith('"room":"'), choice.message.content);
  },

  async seed() {
    const say = async (seed) => (await chat({ seed, temperature: 2, max_tokens: 12 })).choices[0].message.content;
    assert.equal(await say(7), await say(7));
  },

  async completions() {
    const more = { model, prompt: "The kitchen is", temperature: 0, max_tokens: 6 };
    const whole = await client.completions.create({ ...more, logprobs: 2 });
    assert.equal(whole.choices[0].logprobs.tokens.join(""), whole.choices[0].text);
    const pieces = await all(await client.completions.create({ ...more, stream: true }));
    assert.equal(pieces.map((piece) => piece.choices[0].text).join(""), whole.choices[0].text);
  },

  async responses() {
    const answer = await respond({ instructions: "Be brief." });
    assert.equal(answer.status, "completed");
    assert.match(answer.output_text, /brightness/);
    assert.equal((await respond({ max_output_tokens: 2 })).incomplete_details.reason, "max_output_tokens");
    const called = await respond({ tools: [flatTool], tool_choice: "required" });
    // The model may think first.
    const call = called.output.find((item) => item.type === "function_call");
    assert.equal(call.name, "set_light");
    const result = { type: "function_call_output", call_id: call.call_id, output: "done" };
    const after = await respond({ input: [...messages, ...called.output, result], tools: [flatTool] });
    assert.equal(after.status, "completed");
  },

  async response_events() {
    const whole = await respond();
    const events = await all(await respond({ stream: true }));
    assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, at) => at));
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    assert.equal(deltas.map((event) => event.delta).join(""), whole.output_text);
    assert.equal(events.at(-1).type, "response.completed");
    const stream = client.responses.stream({ model, input: messages, temperature: 0 });
    assert.equal((await stream.finalResponse()).output_text, whole.output_text);
  },

  async response_parsed() {
    const text = { format: zodTextFormat(place, "place") };
    place.parse((await client.responses.parse({ model, input: messages, temperature: 0, text })).output_parsed);
  },

  async errors() {
    await refused(OpenAI.BadRequestError, "temperature", chat({ temperature: 3 }));
    await refused(OpenAI.BadRequestError, "messages[0].role", chat({ messages: [{ role: "cook", content: "a" }] }));
    await refused(OpenAI.BadRequestError, "truncation", respond({ truncation: "auto" }));
    await refused(OpenAI.NotFoundError, null, client.responses.retrieve("resp_1"));
  },

  async idempotency() {
    const headers = { "Idempotency-Key": `key-${Date.now()}` };
    const ask = (temperature) => client.chat.completions.create({ model, messages, temperature }, { headers });
    const first = await ask(2).withResponse();
    const again = await ask(2).withResponse();
    assert.equal(again.response.headers.get("idempotency-replayed"), "true");
    assert.deepEqual(again.data, first.data);
    await refused(OpenAI.UnprocessableEntityError, null, ask(1));
  },

  async cancellation() {
    const before = (await status()).requests.cancelled ?? 0;
    const long = { type: "regex", regex: "[a-z ]{20000}" };
    for (const stream of [
      await chat({ stream: true, response_format: long }),
      await respond({ stream: true, text: { format: long } }),
    ]) {
      for await (const _ of stream) break;
      stream.controller.abort();
    }
    const until = Date.now() + 60_000;
    while (((await status()).requests.cancelled ?? 0) < before + 2) {
      assert.ok(Date.now() < until, JSON.stringify(await status()));
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`javascript ${VERSION}: ${name}: ok`);
  } catch (error) {
    failed += 1;
    console.error(error);
    console.log(`javascript ${VERSION}: ${name}: FAILED`);
  }
}
await dispatcher.close();
process.exit(failed > 0 ? 1 : 0);
