//! An answer as the items of a response: all at once, or as events while it is made.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::{logprobs, openai};
use crate::scheduler::backend::{Call, Finish, Logprob, Vocabulary};
use crate::scheduler::{Answer, Failure, Update};

/// A response in the making.
pub struct Output {
    /// The number in all its ids.
    number: String,
    created: u64,
    model: String,
    echo: Map<String, Value>,
    /// For who asked how likely the tokens were.
    words: Option<Arc<dyn Vocabulary>>,
    items: Vec<Value>,
    open: Option<Part>,
    events: Vec<Value>,
    /// Of the next event.
    sequence: u64,
    calls: usize,
}

/// An item that grows.
struct Part {
    thought: bool,
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl Part {
    fn content(&self) -> Value {
        match self.thought {
            true => json!({"type": "reasoning_text", "text": self.text}),
            false => json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}),
        }
    }

    fn item(&self, status: &str) -> Value {
        let content = if status == "in_progress" { json!([]) } else { json!([self.content()]) };
        match self.thought {
            true => {
                json!({"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            false => {
                json!({"id": self.id, "type": "message", "role": "assistant", "content": content, "status": status})
            }
        }
    }
}

impl Output {
    /// The response `resp_{number}`, which repeats `echo` of its request.
    pub fn new(
        number: String,
        created: u64,
        model: String,
        echo: Map<String, Value>,
        words: Option<Arc<dyn Vocabulary>>,
    ) -> Output {
        let (items, events) = (Vec::new(), Vec::new());
        Output { number, created, model, echo, words, items, open: None, events, sequence: 0, calls: 0 }
    }

    /// The whole response.
    pub fn whole(mut self, answer: &Answer) -> Value {
        self.add(&answer.thought, &answer.text, &answer.logprobs, &answer.calls);
        self.finish(answer)
    }

    /// The events since the last call; the first ones say that there is a response.
    pub fn events(&mut self, update: &Update) -> Vec<Value> {
        if self.sequence == 0 {
            for kind in ["response.created", "response.in_progress"] {
                let response = self.response("in_progress");
                self.event(kind, json!({"response": response}));
            }
        }
        self.add(&update.thought, &update.text, &update.logprobs, &update.calls);
        match &update.ended {
            None => {}
            Some(Ok(answer)) => {
                let response = self.finish(answer);
                let kind = format!("response.{}", response["status"].as_str().unwrap_or_default());
                self.event(&kind, json!({"response": response}));
            }
            Some(Err(failure)) => self.fail(failure),
        }
        std::mem::take(&mut self.events)
    }

    fn event(&mut self, kind: &str, fields: Value) {
        let mut event = json!({"type": kind, "sequence_number": self.sequence});
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        self.sequence += 1;
        self.events.push(event);
    }

    fn add(&mut self, thought: &str, text: &str, tokens: &[Logprob], calls: &[Call]) {
        if !thought.is_empty() {
            self.grow(true, thought, &[]);
        }
        if !text.is_empty() {
            self.grow(false, text, tokens);
        }
        calls.iter().for_each(|call| self.call(call));
    }

    /// More of the open item, which is another one when the kind changes.
    fn grow(&mut self, thought: bool, text: &str, tokens: &[Logprob]) {
        if self.open.as_ref().is_some_and(|open| open.thought != thought) {
            self.close("completed");
        }
        let index = self.items.len();
        let mut part = self.open.take().unwrap_or_else(|| self.begin(thought));
        part.text.push_str(text);
        let tokens = self.words.as_ref().map(|words| logprobs::content(words.as_ref(), tokens));
        let tokens = tokens.and_then(|tokens| tokens.as_array().cloned()).unwrap_or_default();
        let mut event = json!({"item_id": part.id, "output_index": index, "content_index": 0, "delta": text});
        if !thought {
            event["logprobs"] = json!(tokens);
        }
        part.logprobs.extend(tokens);
        self.open = Some(part);
        self.event(if thought { "response.reasoning_text.delta" } else { "response.output_text.delta" }, event);
    }

    fn begin(&mut self, thought: bool) -> Part {
        let index = self.items.len();
        let id = format!("{}_{}_{index}", if thought { "rs" } else { "msg" }, self.number);
        let part = Part { thought, id, text: String::new(), logprobs: Vec::new() };
        self.event("response.output_item.added", json!({"output_index": index, "item": part.item("in_progress")}));
        let place = json!({"item_id": part.id, "output_index": index, "content_index": 0, "part": part.content()});
        self.event("response.content_part.added", place);
        part
    }

    fn close(&mut self, status: &str) {
        let Some(part) = self.open.take() else { return };
        let (index, item) = (self.items.len(), part.item(status));
        let place = json!({"item_id": part.id, "output_index": index, "content_index": 0});
        let with = |name: &str, value: Value| {
            let mut fields = place.clone();
            fields[name] = value;
            fields
        };
        let mut done = with("text", part.text.as_str().into());
        if !part.thought {
            done["logprobs"] = json!(part.logprobs);
        }
        let kind = if part.thought { "response.reasoning_text.done" } else { "response.output_text.done" };
        self.event(kind, done);
        self.event("response.content_part.done", with("part", part.content()));
        self.event("response.output_item.done", json!({"output_index": index, "item": item}));
        self.items.push(item);
    }

    /// A call, which comes whole.
    fn call(&mut self, call: &Call) {
        self.close("completed");
        let (number, nth, index) = (&self.number, self.calls, self.items.len());
        let (id, call_id) = (format!("fc_{number}_{nth}"), format!("call_{number}_{nth}"));
        self.calls += 1;
        let arguments = Value::Object(call.arguments.clone()).to_string();
        let item = |status: &str, arguments: &str| {
            json!({"id": id, "type": "function_call", "call_id": call_id, "name": call.name, "arguments": arguments,
                   "status": status})
        };
        self.event("response.output_item.added", json!({"output_index": index, "item": item("in_progress", "")}));
        let place = |name: &str| json!({"item_id": id, "output_index": index, name: arguments});
        self.event("response.function_call_arguments.delta", place("delta"));
        self.event("response.function_call_arguments.done", place("arguments"));
        let item = item("completed", &arguments);
        self.event("response.output_item.done", json!({"output_index": index, "item": item}));
        self.items.push(item);
    }

    /// Ends what is open, and is the response.
    fn finish(&mut self, answer: &Answer) -> Value {
        let status = if answer.finish == Finish::Length { "incomplete" } else { "completed" };
        // There is always something to read.
        if self.open.is_none() && self.calls == 0 {
            self.open = Some(self.begin(false));
        }
        self.close(status);
        let mut response = self.response(status);
        if status == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["usage"] = usage(answer);
        response["seed"] = json!(answer.seed);
        response["timings"] = openai::timings(answer);
        response
    }

    fn fail(&mut self, failure: &Failure) {
        let (_, body) = openai::failure(failure);
        let error = &body["error"];
        let fields = json!({"code": error["code"], "message": error["message"], "param": error["param"]});
        self.event("error", fields);
        self.close("incomplete");
        let mut response = self.response("failed");
        // The codes of this place are a closed list; the event before has the one that tells more.
        response["error"] = json!({"code": "server_error", "message": error["message"]});
        self.event("response.failed", json!({"response": response}));
    }

    fn response(&self, status: &str) -> Value {
        let mut response = json!({
            "id": format!("resp_{}", self.number),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "output": self.items,
            "error": null,
            "incomplete_details": null,
            "usage": null,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "background": false,
            "store": false,
            "truncation": "disabled",
        });
        if let Value::Object(response) = &mut response {
            response.extend(self.echo.clone());
        }
        response
    }
}

/// Token counts by the names that responses have for them.
fn usage(answer: &Answer) -> Value {
    let chat = openai::usage(answer);
    let mut input = chat["prompt_tokens_details"].clone();
    input["cache_write_tokens"] = json!(0);
    json!({
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": input,
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": chat["completion_tokens_details"],
        "total_tokens": chat["total_tokens"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Code, Timings};

    fn output() -> Output {
        Output::new("7".into(), 1, "m".into(), Map::new(), None)
    }

    fn answer(text: &str, finish: Finish) -> Answer {
        Answer {
            text: text.into(),
            logprobs: Vec::new(),
            thought: "hm".into(),
            calls: Vec::new(),
            finish,
            prompt_tokens: 5,
            cached_tokens: 2,
            broken_at: None,
            completion_tokens: 4,
            thought_tokens: 3,
            seed: 1,
            timings: Timings::default(),
        }
    }

    fn kinds(events: &[Value]) -> Vec<&str> {
        events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect()
    }

    #[test]
    fn events_add_up_to_the_whole() {
        let call = Call { name: "f".into(), arguments: Map::from_iter([("a".into(), json!(1))]) };
        let whole = Answer { calls: vec![call.clone()], ..answer("ab", Finish::Stop) };
        let updates = [
            Update { queued: Some(1), ..Update::default() },
            Update { thought: "h".into(), ..Update::default() },
            Update { thought: "m".into(), text: "a".into(), ..Update::default() },
            Update { text: "b".into(), calls: vec![call], ..Update::default() },
            Update { ended: Some(Ok(whole.clone())), ..Update::default() },
        ];
        let mut streamed = output();
        let events: Vec<Value> = updates.iter().flat_map(|update| streamed.events(update)).collect();
        assert_eq!(
            kinds(&events),
            [
                "created",
                "in_progress",
                "output_item.added",
                "content_part.added",
                "reasoning_text.delta",
                "reasoning_text.delta",
                "reasoning_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "completed",
            ]
        );
        assert!(events.iter().zip(0..).all(|(event, number)| event["sequence_number"] == number));
        let response = output().whole(&whole);
        assert_eq!(events.last().unwrap()["response"], response);
        assert_eq!((&response["status"], &response["usage"]["total_tokens"]), (&json!("completed"), &json!(9)));
        // Each item at its index, as it was when it was done.
        let done: Vec<_> = events.iter().filter(|event| event["type"] == "response.output_item.done").collect();
        assert_eq!(done.len(), 3);
        for (index, event) in done.iter().enumerate() {
            assert_eq!((&event["output_index"], &event["item"]), (&json!(index), &response["output"][index]));
        }
        let texts = (&response["output"][0]["content"][0]["text"], &response["output"][1]["content"][0]["text"]);
        assert_eq!(texts, (&json!("hm"), &json!("ab")));
        assert_eq!(response["output"][2]["arguments"], r#"{"a":1}"#);
    }

    #[test]
    fn an_answer_can_be_cut_empty_or_missing() {
        let cut = output().whole(&answer("a", Finish::Length));
        assert_eq!((&cut["status"], &cut["output"][1]["status"]), (&json!("incomplete"), &json!("incomplete")));
        assert_eq!(cut["incomplete_details"]["reason"], "max_output_tokens");
        let empty = output().whole(&Answer { thought: String::new(), ..answer("", Finish::Stop) });
        assert_eq!(empty["output"][0]["content"][0]["text"], "");
        let mut failed = output();
        let failure = Failure::new(Code::Expired, "late");
        let events = failed.events(&Update { text: "a".into(), ended: Some(Err(failure)), ..Update::default() });
        let last: Vec<_> = kinds(&events).split_off(5);
        assert_eq!(last, ["error", "output_text.done", "content_part.done", "output_item.done", "failed"]);
        assert_eq!((&events[5]["code"], &events[9]["response"]["status"]), (&json!("expired"), &json!("failed")));
    }
}
