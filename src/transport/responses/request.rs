//! The body of `POST /v1/responses`: items are read as the messages that the chat template knows.

use serde_json::{Map, Value, json};

use super::super::fields::{Fields, MAX_MESSAGES, format, unsupported, wrong};
use super::super::openai::{refuse, thinking};
use super::super::sessions::Session;
use super::super::tools::{self, Shape};
use crate::scheduler::backend::{Input, InputError, MAX_TOP, Sampling};

/// Most pairs of `metadata`.
const MAX_METADATA: usize = 16;

/// Fields that change the answer in ways this daemon does not offer, and the values that are harmless.
const UNSUPPORTED: [(&str, &[&str]); 7] = [
    ("background", &["false"]),
    ("prompt", &[]),
    ("context_management", &["[]"]),
    ("truncation", &["\"disabled\""]),
    ("max_tool_calls", &[]),
    ("moderation", &[]),
    ("modalities", &["[\"text\"]"]),
];

/// Names of what OpenAI keeps between requests.
const KEPT: [&str; 2] = ["previous_response_id", "conversation"];

/// A parsed request.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRequest {
    /// The conversation.
    pub input: Input,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether the answer is wanted in pieces.
    pub stream: bool,
    /// The conversation that it continues.
    pub session: Option<Session>,
    /// What the answer repeats of the request.
    pub echo: Map<String, Value>,
}

impl ResponsesRequest {
    /// Reads a request body.
    ///
    /// # Errors
    ///
    /// Naming the field that is missing, malformed or not supported.
    pub fn parse(body: &[u8]) -> Result<ResponsesRequest, InputError> {
        let mut fields = Fields::parse(body)?;
        refuse(&mut fields, &UNSUPPORTED)?;
        if let Some(name) = KEPT.iter().find(|name| fields.get(name).is_some()) {
            let message =
                format!("{name}: not supported, responses are not stored; name the conversation in `session`");
            return Err(InputError::new(*name, message));
        }
        let session = Session::take(&mut fields)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        // Nothing is ever stored, whatever is wished.
        fields.flag("store")?;
        let mut echo = Map::new();
        for name in ["temperature", "top_p", "max_output_tokens", "tool_choice"] {
            echo.insert(name.into(), fields.get(name).cloned().unwrap_or(Value::Null));
        }
        if echo["tool_choice"].is_null() {
            echo["tool_choice"] = "auto".into();
        }
        echo.insert("metadata".into(), metadata(&mut fields)?);
        let effort = effort(&mut fields)?;
        let enable_thinking = thinking(&mut fields, "reasoning.effort", effort.clone())?;
        echo.insert("reasoning".into(), json!({"effort": effort, "summary": null}));
        let instructions = fields.text("instructions")?;
        echo.insert("instructions".into(), json!(instructions));
        let messages = messages(fields.take("input"), instructions)?;
        if let Some(most) = fields.integer("max_output_tokens", 1..=u64::from(u32::MAX))? {
            fields.set("max_completion_tokens", most.into());
        }
        let logprobs = logprobs(&mut fields)?;
        let (form, text) = text(&mut fields)?;
        echo.insert("text".into(), text);
        let mut sampling = Sampling { logprobs, ..fields.sampling()? };
        if form.is_some() {
            if sampling.format.is_some() {
                let other = sampling.format_field;
                return Err(InputError::new("text.format", format!("text.format: not together with {other}")));
            }
            (sampling.format, sampling.format_field) = (form, "text.format");
        }
        let declared = tools::take(&mut fields, &mut sampling, Shape::Response)?;
        let listed = declared.as_array().into_iter().flatten().map(|tool| {
            let function = &tool["function"];
            json!({"type": "function", "name": function["name"], "description": function["description"],
                   "parameters": function.get("parameters"), "strict": false})
        });
        echo.insert("tools".into(), listed.collect());
        Ok(ResponsesRequest {
            input: Input::Chat { messages, tools: declared, enable_thinking },
            sampling,
            stream,
            session,
            echo,
        })
    }
}

fn metadata(fields: &mut Fields) -> Result<Value, InputError> {
    match fields.take("metadata") {
        None => Ok(json!({})),
        Some(Value::Object(map)) if map.len() <= MAX_METADATA && map.values().all(Value::is_string) => Ok(json!(map)),
        Some(other) => Err(wrong("metadata", format_args!("an object of up to {MAX_METADATA} strings"), &other)),
    }
}

/// `reasoning.effort`. Thoughts come as they are: there is no summary of them.
fn effort(fields: &mut Fields) -> Result<Option<Value>, InputError> {
    let mut reasoning = match fields.take("reasoning") {
        None => return Ok(None),
        Some(Value::Object(map)) => Fields::from(map),
        Some(other) => return Err(wrong("reasoning", "an object", &other)),
    };
    for name in ["summary", "generate_summary"] {
        if reasoning.take(name).is_some_and(|summary| summary != "auto") {
            return Err(unsupported(&format!("reasoning.{name}")));
        }
    }
    Ok(reasoning.take("effort"))
}

/// How many alternatives are wanted with every token, if it is wanted how likely they were.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, InputError> {
    let include = match fields.take("include") {
        None => Vec::new(),
        Some(Value::Array(include)) => include,
        Some(other) => return Err(wrong("include", "an array of strings", &other)),
    };
    let mut wanted = false;
    for (at, name) in include.iter().enumerate() {
        match name.as_str() {
            Some("message.output_text.logprobs") => wanted = true,
            // For who sends thoughts back: they are not hidden here.
            Some("reasoning.encrypted_content") => {}
            _ => return Err(unsupported(&format!("include[{at}]"))),
        }
    }
    match fields.integer("top_logprobs", 0..=MAX_TOP as u64)? {
        Some(1..) if !wanted => {
            let why = "top_logprobs: only with \"message.output_text.logprobs\" in include";
            Err(InputError::new("top_logprobs", why))
        }
        top => Ok(wanted.then_some(top.unwrap_or(0) as usize)),
    }
}

/// `text`: the form of the answer, and how the answer repeats it.
fn text(fields: &mut Fields) -> Result<(Option<crate::scheduler::backend::Format>, Value), InputError> {
    let plain = json!({"format": {"type": "text"}});
    let mut text = match fields.take("text") {
        None => return Ok((None, plain)),
        Some(Value::Object(map)) => Fields::from(map),
        Some(other) => return Err(wrong("text", "an object", &other)),
    };
    if text.take("verbosity").is_some_and(|verbosity| verbosity != "medium") {
        return Err(unsupported("text.verbosity"));
    }
    let Some(wanted) = text.take("format") else { return Ok((None, plain)) };
    let echo = json!({"format": wanted});
    Ok((format("text.format", wanted, Shape::Response)?, echo))
}

/// The messages of `input`, after the instructions.
fn messages(input: Option<Value>, instructions: Option<String>) -> Result<Value, InputError> {
    let mut talk = Talk { messages: Vec::new(), thought: None };
    match input {
        Some(Value::String(text)) => talk.say("user", text),
        Some(Value::Array(items)) if (1..=MAX_MESSAGES).contains(&items.len()) => {
            for (at, item) in items.into_iter().enumerate() {
                talk.item(&format!("input[{at}]"), item)?;
            }
        }
        Some(other) => {
            return Err(wrong("input", format_args!("a string, or an array of 1 to {MAX_MESSAGES} items"), &other));
        }
        None => return Err(InputError::new("input", "input: missing")),
    }
    let mut messages = talk.messages;
    if messages.is_empty() {
        return Err(InputError::new("input", "input: there is no message in it"));
    }
    if let Some(instructions) = instructions {
        // Templates know one message of this kind, at the head.
        match messages.first_mut().filter(|first| first["role"] == "system") {
            Some(first) => {
                let own = first["content"].as_str().unwrap_or_default();
                first["content"] = format!("{instructions}\n\n{own}").into();
            }
            None => messages.insert(0, json!({"role": "system", "content": instructions})),
        }
    }
    Ok(Value::Array(messages))
}

/// A conversation in the making.
struct Talk {
    messages: Vec<Value>,
    /// Of the assistant, before what it did next.
    thought: Option<String>,
}

impl Talk {
    fn say(&mut self, role: &str, content: String) {
        self.messages.push(json!({"role": role, "content": content}));
    }

    fn item(&mut self, path: &str, item: Value) -> Result<(), InputError> {
        let Value::Object(map) = item else { return Err(wrong(path, "an object", &item)) };
        let mut fields = Fields::from(map);
        let at = |name: &str| format!("{path}.{name}");
        let kind = match fields.take("type") {
            None => "message".to_owned(),
            Some(Value::String(kind)) => kind,
            Some(other) => return Err(wrong(&at("type"), "a string", &other)),
        };
        let thought = self.thought.take();
        match kind.as_str() {
            "message" => {
                let role = match text_of(&mut fields, path, "role")? {
                    role if matches!(role.as_str(), "user" | "assistant" | "system") => role,
                    role if role == "developer" => "system".into(),
                    role => return Err(wrong(&at("role"), "user, assistant, system or developer", &role.into())),
                };
                let content = content(&mut fields, path, "content")?;
                self.say(&role, content);
            }
            "function_call" => {
                let id = text_of(&mut fields, path, "call_id")?;
                let name = tools::function_name(&at("name"), &fields.take("name").unwrap_or_default())?;
                let arguments = tools::arguments(&at("arguments"), &fields.take("arguments").unwrap_or_default())?;
                let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
                self.call(call, thought);
            }
            "function_call_output" => {
                let id = text_of(&mut fields, path, "call_id")?;
                let content = content(&mut fields, path, "output")?;
                self.messages.push(json!({"role": "tool", "content": content, "tool_call_id": id}));
            }
            "reasoning" => {
                let all: String =
                    ["content", "summary"].into_iter().find_map(|name| joined(fields.get(name)?)).unwrap_or_default();
                self.thought = Some(all).filter(|all| !all.is_empty());
            }
            // It stands for what would have been kept.
            "item_reference" => return Err(unsupported(&at("type"))),
            _ => {
                let known = "message, function_call, function_call_output or reasoning";
                return Err(wrong(&at("type"), known, &kind.into()));
            }
        }
        Ok(())
    }

    /// A call of the assistant's: a part of its message before it, if that is the last one.
    fn call(&mut self, call: Value, thought: Option<String>) {
        let last = self.messages.last_mut().filter(|last| last["role"] == "assistant");
        let Some(message) = last else {
            self.say("assistant", String::new());
            return self.call(call, thought);
        };
        match message["tool_calls"].as_array_mut() {
            Some(calls) => calls.push(call),
            None => message["tool_calls"] = json!([call]),
        }
        if let Some(thought) = thought {
            message["reasoning_content"] = thought.into();
        }
    }
}

fn text_of(fields: &mut Fields, path: &str, name: &str) -> Result<String, InputError> {
    match fields.take(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong(&format!("{path}.{name}"), "a string", &other)),
        None => Err(InputError::new(format!("{path}.{name}"), format!("{path}.{name}: missing"))),
    }
}

/// Text, or parts of text.
fn content(fields: &mut Fields, path: &str, name: &str) -> Result<String, InputError> {
    let parts = match fields.take(name) {
        Some(Value::Array(parts)) => parts,
        Some(Value::String(text)) => return Ok(text),
        Some(other) => return Err(wrong(&format!("{path}.{name}"), "a string or an array of text parts", &other)),
        None => return Err(InputError::new(format!("{path}.{name}"), format!("{path}.{name}: missing"))),
    };
    let part = |(at, part): (usize, &Value)| {
        let kind = part["type"].as_str();
        match (kind, part["text"].as_str()) {
            (Some("input_text" | "output_text" | "text"), Some(text)) => Ok(text.to_owned()),
            (Some("input_text" | "output_text" | "text"), None) => {
                Err(wrong(&format!("{path}.{name}[{at}].text"), "a string", &part["text"]))
            }
            _ => {
                let known = "\"input_text\" or \"output_text\", the kinds this model is served with";
                Err(wrong(&format!("{path}.{name}[{at}].type"), known, &part["type"]))
            }
        }
    };
    parts.iter().enumerate().map(part).collect()
}

/// The texts of the parts of a thought; `None` when there are none.
fn joined(parts: &Value) -> Option<String> {
    let texts = parts.as_array()?.iter().filter_map(|part| part["text"].as_str());
    Some(texts.collect::<Vec<_>>().join("\n")).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::backend::Format;

    fn read(body: Value) -> Result<ResponsesRequest, InputError> {
        ResponsesRequest::parse(body.to_string().as_bytes())
    }

    fn said(body: Value) -> Value {
        match read(body).unwrap().input {
            Input::Chat { messages, .. } => messages,
            Input::Raw(text) => panic!("{text}"),
        }
    }

    #[test]
    fn strings_items_and_instructions_are_messages() {
        let user = json!({"role": "user", "content": "hi"});
        let system = |text: &str| json!({"role": "system", "content": text});
        assert_eq!(said(json!({"input": "hi"})), json!([user]));
        assert_eq!(said(json!({"input": "hi", "instructions": "s"})), json!([system("s"), user]));
        let led = json!([{"role": "developer", "content": "d"}, {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "h"}, {"type": "input_text", "text": "i"}]}]);
        assert_eq!(said(json!({"input": led, "instructions": "s"})), json!([system("s\n\nd"), user]));
    }

    #[test]
    fn an_output_goes_back_in_as_it_came() {
        let input = json!([
            {"role": "user", "content": "dim it"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "I will.", "annotations": []}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{\"a\":1}"},
            {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "g", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "done"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "too"}]},
            {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "again"}]},
            {"type": "function_call", "id": "fc_3", "call_id": "c3", "name": "f", "arguments": "{}"}
        ]);
        let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let expected = json!([
            {"role": "user", "content": "dim it"},
            {"role": "assistant", "content": "I will.",
             "tool_calls": [call("c1", "f", json!({"a": 1})), call("c2", "g", json!({}))]},
            {"role": "tool", "content": "done", "tool_call_id": "c1"},
            {"role": "tool", "content": "too", "tool_call_id": "c2"},
            {"role": "assistant", "content": "", "tool_calls": [call("c3", "f", json!({}))], "reasoning_content": "again"}
        ]);
        assert_eq!(said(json!({"input": input})), expected);
    }

    #[test]
    fn fields_are_those_of_chat_by_other_names() {
        let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true});
        let request = read(json!({
            "input": "hi", "max_output_tokens": 9, "temperature": 0.5, "seed": 3, "tools": [tool], "store": true,
            "tool_choice": {"type": "function", "name": "f"}, "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 2,
            "metadata": {"a": "b"}, "truncation": "disabled", "stream": true, "user": "u", "text": {"verbosity": "medium"}
        }));
        let request = request.unwrap();
        let sampling = &request.sampling;
        assert_eq!((sampling.max_tokens, sampling.temperature, sampling.seed), (Some(9), Some(0.5), Some(3)));
        assert_eq!((sampling.logprobs, sampling.calls, request.stream), (Some(2), true, true));
        assert!(matches!(&sampling.format, Some(Format::Call(tools)) if tools[0]["function"]["name"] == "f"));
        assert!(matches!(request.input, Input::Chat { enable_thinking: true, .. }));
        assert_eq!(request.echo["metadata"], json!({"a": "b"}));
        assert_eq!(request.echo["tools"][0]["name"], "f");
        let schema = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}});
        let formed = read(json!({"input": "hi", "text": {"format": schema}})).unwrap();
        assert_eq!(formed.sampling.format, Some(Format::Schema(json!({"type": "object"}))));
        assert_eq!(formed.echo["text"]["format"], schema);
    }

    #[test]
    fn what_is_malformed_or_not_offered_is_named() {
        let item = |item: Value| json!({"input": [item]});
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": [{"type": "reasoning", "summary": []}]}), "input"),
            (json!({"input": "a", "previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"input": "a", "conversation": "c"}), "conversation"),
            (json!({"input": "a", "background": true}), "background"),
            (json!({"input": "a", "session": "a b"}), "session"),
            (json!({"input": "a", "truncation": "auto"}), "truncation"),
            (json!({"input": "a", "store": 1}), "store"),
            (json!({"input": "a", "include": ["file_search_call.results"]}), "include[0]"),
            (json!({"input": "a", "top_logprobs": 2}), "top_logprobs"),
            (json!({"input": "a", "reasoning": {"effort": "much"}}), "reasoning.effort"),
            (json!({"input": "a", "reasoning": {"summary": "detailed"}}), "reasoning.summary"),
            (json!({"input": "a", "metadata": {"a": 1}}), "metadata"),
            (json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens"),
            (json!({"input": "a", "text": {"verbosity": "low"}}), "text.verbosity"),
            (json!({"input": "a", "text": {"format": {"type": "xml"}}}), "text.format.type"),
            (json!({"input": "a", "text": {"format": {"type": "json_schema"}}}), "text.format.schema"),
            (json!({"input": "a", "tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"input": "a", "tools": [{"type": "function"}]}), "tools[0].name"),
            (item(json!({"role": "tool", "content": "a"})), "input[0].role"),
            (item(json!({"role": "user"})), "input[0].content"),
            (item(json!({"role": "user", "content": [{"type": "input_image"}]})), "input[0].content[0].type"),
            (item(json!({"type": "item_reference", "id": "msg_1"})), "input[0].type"),
            (item(json!({"type": "computer_call"})), "input[0].type"),
            (item(json!({"type": "function_call", "name": "f"})), "input[0].call_id"),
            (
                item(json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"})),
                "input[0].arguments",
            ),
            (item(json!({"type": "function_call_output", "call_id": "c"})), "input[0].output"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }
}
