//! What the socket offers beside plain completions: taking requests back, tokens, how likely they were.

mod common;

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use common::binary::{Served, emberd, run};
use common::{Daemon, Response, Sent};
use emberd::engine::generate::Engine;
use emberd::engine::runner::Options;
use emberd::engine::template::ChatRequest;
use serde_json::{Value, json};

#[test]
#[ignore = "started by the other tests as their daemon"]
fn daemon_child() {
    common::daemon_child();
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn requests_are_taken_back_by_their_names() {
    let daemon = Daemon::start("");
    let named = |name: &str, prompt: &str, more: &str| {
        daemon.send_with("POST", CHAT, &format!("X-Request-Id: {name}\r\n"), &daemon.chat(prompt, more))
    };
    let running = named("house/1", "one @hold", "");
    daemon.wait_journal("start one @hold");
    let waiting = named("house/2", "two", r#","stream":true"#);
    daemon.wait_waiting(1);
    let third = named("house/3", "three", "");
    daemon.wait_waiting(2);

    // One that waits, by the command, then the one that runs.
    let mut command = emberd();
    assert_eq!(run(command.args(["cancel", "house/2", "--socket"]).arg(&daemon.socket)).status.code(), Some(0));
    let told = Response::read(waiting);
    assert!(told.body.contains(r#""code":"cancelled""#) && told.body.ends_with("data: [DONE]\n\n"), "{told:?}");
    daemon.wait_waiting(1);
    let done = daemon.post("/v1/cancel/house/1", "");
    assert_eq!((done.status, done.json()), (200, json!({"id": "house/1", "cancelled": 1})));
    let told = Response::read(running);
    assert_eq!((told.status, &told.json()["error"]["code"]), (499, &"cancelled".into()));
    assert!(told.head.contains("\r\nx-request-id: house/1"), "{told:?}");
    daemon.wait_journal("end one @hold Ok(Cancelled)");
    assert_eq!(Response::read(third).json()["choices"][0]["message"]["content"], "You said: three");
    assert!(!daemon.journal().contains("two"));

    // What has ended cannot be taken back, nor what never was.
    for name in ["house/1", "house/3", "x"] {
        let gone = daemon.post(&format!("/v1/cancel/{name}"), "");
        assert_eq!((gone.status, &gone.json()["error"]["code"]), (404, &"not_found".into()), "{name}");
    }
    let mut command = emberd();
    assert_eq!(run(command.args(["cancel", "x", "--socket"]).arg(&daemon.socket)).status.code(), Some(66));
    assert_eq!(run(emberd().args(["cancel", "a b"])).status.code(), Some(2));
    assert_eq!(daemon.request("GET", "/v1/cancel/x", "").status, 405);
}

#[test]
fn a_stream_is_taken_back_by_the_id_in_its_pieces() {
    let daemon = Daemon::start("");
    let mut stream = daemon.send("POST", CHAT, &daemon.chat("one @hold", r#","stream":true"#));
    let mut seen = String::new();
    let id = common::wait_for("an id", || {
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).unwrap();
        seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
        let rest = seen.split_once(r#""id":""#)?.1;
        rest.split_once('"').map(|(id, _)| id.to_owned())
    });
    assert!(id.starts_with("chatcmpl-"), "{id}");
    let name = id.trim_start_matches("chatcmpl-");
    assert!(seen.to_ascii_lowercase().contains(&format!("\r\nx-request-id: {name}\r\n")), "{seen}");
    assert_eq!(daemon.post(&format!("/v1/cancel/{id}"), "").status, 200);
    stream.read_to_string(&mut seen).unwrap();
    assert!(seen.contains("You ") && seen.contains(r#""code":"cancelled""#), "{seen}");
    daemon.wait_journal("end one @hold Ok(Cancelled)");
}

#[test]
fn who_asks_again_with_a_key_gets_the_same_answer() {
    let daemon = Daemon::start("");
    let send = |key: &str, path: &str, body: &str| {
        daemon.send_with("POST", path, &format!("Idempotency-Key: {key}\r\n"), body)
    };
    let ask = |key: &str, path: &str, body: &str| Response::read(send(key, path, body));
    let starts = |prompt: &str| daemon.journal().lines().filter(|line| *line == format!("start {prompt}")).count();
    let replayed = |response: &Response| response.head.contains("\r\nidempotency-replayed: true");
    let chat = |prompt: &str| daemon.chat(prompt, "");
    for (path, body, prompt) in [
        (CHAT, chat("one"), "one"),
        ("/v1/completions", r#"{"prompt":"two"}"#.to_owned(), "two"),
        ("/v1/responses", r#"{"input":"three"}"#.to_owned(), "three"),
        ("/v1/prompt?seed=7", r#"{"stream":true}"#.to_owned(), r#"{"stream":true}"#),
    ] {
        let (first, second) = (ask(path, path, &body), ask(path, path, &body));
        assert_eq!((first.status, replayed(&first), replayed(&second)), (200, false, true), "{first:?} {second:?}");
        assert_eq!((&first.body, first.status, starts(prompt)), (&second.body, second.status, 1));
        let kind = |response: &Response| response.head.split("content-type: ").nth(1).map(|rest| rest[..16].to_owned());
        assert_eq!(kind(&first), kind(&second));
        // The key is that of one request.
        for (other, body) in [(path, format!("{body} ")), ("/v1/prompt", body)] {
            let refused = ask(path, other, &body);
            assert_eq!(
                (refused.status, &refused.json()["error"]["code"]),
                (422, &"duplicate_mismatch".into()),
                "{path}"
            );
        }
        assert_eq!(starts(prompt), 1);
    }
    // Without a key, and with another one, it is another request.
    assert!(!replayed(&daemon.post(CHAT, &chat("one"))) && !replayed(&ask("other", CHAT, &chat("one"))));
    assert_eq!(starts("one"), 3);

    // What failed is tried again, and says why as it would without a key.
    for _ in 0..2 {
        assert_eq!(ask("fails", CHAT, &chat("a @fail")).status, 500);
        let text = ask("fails too", "/v1/prompt", "b @fail");
        assert_eq!(text.status, 400, "a space in the key");
        let text = ask("fails-too", "/v1/prompt", "b @fail");
        assert_eq!((text.status, &text.json()["error"]["code"]), (500, &"internal".into()));
    }
    assert_eq!((starts("a @fail"), starts("b @fail")), (2, 2));
    for key in ["", "\u{e9}", &"x".repeat(256)] {
        assert_eq!(ask(key, CHAT, &chat("one")).status, 400, "{key}");
    }
    let streamed = ask("stream", CHAT, &daemon.chat("c", r#","stream":true"#));
    assert_eq!((streamed.status, &streamed.json()["error"]["param"]), (400, &"stream".into()));
}

#[test]
fn who_joins_a_running_request_keeps_it_alive() {
    let daemon = Daemon::start("");
    let starts = || daemon.journal().lines().filter(|line| line.starts_with("start ")).count();
    let ask = |key: &str, prompt: &str| {
        let key = format!("Idempotency-Key: {key}\r\n");
        daemon.send_with("POST", CHAT, &key, &daemon.chat(&format!("{prompt} @hold"), ""))
    };
    let send = |prompt: &str| ask("k", prompt);
    // Time for the daemon to read it; nothing of a request that joins can be seen from outside before its answer.
    let joined = |stream| {
        std::thread::sleep(std::time::Duration::from_millis(200));
        stream
    };
    let first = send("a");
    daemon.wait_journal("start a @hold");
    let (second, third) = (joined(send("a")), joined(send("a")));
    drop(first);
    drop(third);
    assert_eq!(Response::read(send("b")).status, 422);
    daemon.release();
    let answer = Response::read(second);
    assert_eq!((answer.status, starts()), (200, 1), "{answer:?}");
    assert!(answer.head.contains("idempotency-replayed: true") && answer.body.contains("You said: a @hold"));

    // When everybody hangs up it is taken back, and the key is free.
    daemon.hold();
    let send = |prompt: &str| ask("l", prompt);
    let first = send("c");
    daemon.wait_journal("start c @hold");
    let second = joined(send("c"));
    drop(first);
    drop(second);
    daemon.wait_journal("end c @hold Ok(Cancelled)");
    daemon.release();
    assert_eq!(Response::read(send("b")).status, 200);
}

#[test]
fn tokens_over_the_socket() {
    let daemon = Daemon::start("");
    let tokens = daemon.post("/tokenize", r#"{"content":"aé","add_special":true}"#);
    assert_eq!((tokens.status, tokens.json()), (200, json!({"tokens": [0x10_ffff, 97, 0xe9], "count": 3})));
    let text = daemon.post("/detokenize", r#"{"tokens":[97,233]}"#);
    assert_eq!((text.status, text.json()), (200, json!({"content": "aé"})));
    for (path, body, param) in [
        ("/tokenize", "{}", Some("content")),
        ("/detokenize", r#"{"tokens":[-1]}"#, Some("tokens[0]")),
        ("/tokenize", "x", None),
    ] {
        let refused = daemon.post(path, body);
        assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, param), "{path} {body}");
    }
}

fn post(served: &Served, path: &str, body: &Value) -> Response {
    let stream = std::os::unix::net::UnixStream::connect(&served.socket).unwrap();
    Response::read(Sent::new(stream, "POST", path, "", &body.to_string()))
}

/// The chunks of a stream.
fn chunks(response: &Response) -> Vec<Value> {
    let data =
        response.events().into_iter().filter_map(|event| event.strip_prefix("data: ")).filter(|d| *d != "[DONE]");
    data.map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

/// The events of a response.
fn data(response: &Response) -> Vec<Value> {
    let lines = response.body.lines().filter_map(|line| line.strip_prefix("data: "));
    lines.map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_grammar_by_llama_cpps_name() {
    let dir = tempfile::tempdir().expect("directory");
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let served = Served::start(dir.path(), &home, "[governor]\nenabled = false\n", &[]);
    let grammar = "root ::= \"seven \" [a-c]{3}";
    let user = json!([{"role": "user", "content": "hi"}]);
    let is_one = |text: &Value| {
        let rest = text.as_str().and_then(|text| text.strip_prefix("seven ")).unwrap_or_else(|| panic!("{text}"));
        assert!(rest.len() == 3 && rest.bytes().all(|byte| (b'a'..=b'c').contains(&byte)), "{text}");
    };
    let chat = post(&served, CHAT, &json!({"messages": user, "grammar": grammar}));
    is_one(&chat.json()["choices"][0]["message"]["content"]);
    let text = post(&served, "/v1/completions", &json!({"prompt": "hi", "grammar": grammar}));
    is_one(&text.json()["choices"][0]["text"]);
    let object = json!({"type": "json_object"});
    for (path, body, param) in [
        (CHAT, json!({"messages": user, "grammar": grammar, "response_format": object}), "grammar"),
        ("/v1/completions", json!({"prompt": "hi", "grammar": grammar, "response_format": object}), "grammar"),
        (CHAT, json!({"messages": user, "grammar": 7}), "grammar"),
        (CHAT, json!({"messages": user, "grammar": "root ::= nothing"}), "grammar"),
        (CHAT, json!({"messages": user, "grammar": "root ::= nothing", "stream": true}), "grammar"),
        ("/v1/prompt?grammar=root%20::=%20nothing", json!("hi"), "grammar"),
        (CHAT, json!({"messages": user, "response_format": {"type": "regex", "regex": "("}}), "response_format"),
        ("/v1/responses", json!({"input": "hi", "text": {"format": {"type": "regex", "regex": "("}}}), "text.format"),
        ("/v1/responses", json!({"input": "hi", "grammar": grammar, "text": {"format": object}}), "text.format"),
    ] {
        let refused = post(&served, path, &body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &param.into()), "{body}: {refused:?}");
    }
    served.stop();
}

/// With a real tokenizer: what a request's text counts is what `/tokenize` says, and it comes back as it was.
#[test]
fn tokens_of_the_bundled_model() {
    let dir = tempfile::tempdir().unwrap();
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let served = Served::start(dir.path(), &home, "", &[]);
    let post = |path: &str, body: Value| post(&served, path, &body).json();
    for text in ["dim the hall lights to 30", " two  spaces\nand 🔥 <turn|>", ""] {
        let plain = post("/tokenize", json!({"content": text}));
        assert_eq!(post("/detokenize", json!({"tokens": plain["tokens"]})), json!({"content": text}));
        if !text.is_empty() {
            let whole = post("/tokenize", json!({"content": text, "add_special": true}));
            let answer = post("/v1/completions", json!({"prompt": text, "max_tokens": 1}));
            assert_eq!(answer["usage"]["prompt_tokens"], whole["count"], "{answer}");
        }
    }
    let control = post("/tokenize", json!({"content": "<turn|>", "parse_special": true, "with_pieces": true}));
    assert_eq!((&control["count"], &control["tokens"][0]["piece"]), (&1.into(), &"<turn|>".into()), "{control}");
    served.stop();
}

/// Bytes and log-probability of a token, and of the likeliest ones at its place.
type Told = (Vec<u8>, f64, Vec<(Vec<u8>, f64)>);

/// What the model thinks of every token, computed here from its logits.
struct Judge {
    engine: Engine,
    /// Tokens run so far, for messages.
    text: String,
    logits: Vec<f32>,
}

impl Judge {
    fn new(home: &Path) -> Judge {
        let options = Options { context: 512, threads: 1, batch: 3, ..Options::default() };
        Judge { engine: Engine::load(home, &options).unwrap(), text: String::new(), logits: Vec::new() }
    }

    fn run(&mut self, tokens: &[u32]) {
        let logits = self.engine.runner_mut().run(tokens, &mut |_| ControlFlow::Continue(())).unwrap();
        self.logits = logits.unwrap().to_vec();
    }

    fn begin(&mut self, tokens: &[u32]) {
        self.engine.runner_mut().reset();
        self.text.clear();
        self.run(tokens);
    }

    /// Logarithms of the probabilities of all tokens that come next, by definition.
    fn logprobs(&self) -> Vec<f64> {
        let sum: f64 = self.logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        self.logits.iter().map(|logit| (f64::from(*logit).exp() / sum).ln()).collect()
    }

    /// The token that has these bytes and about this logarithm of its probability.
    fn find(&self, all: &[f64], bytes: &[u8], logprob: f64) -> u32 {
        let words = self.engine.tokenizer();
        let near = |id: &u32| words.token_bytes(*id) == bytes && (all[*id as usize] - logprob).abs() < 1e-3;
        let control = |id: &u32| words.control_name(*id).is_some_and(|name| name.as_bytes() == bytes);
        let mut found = (0..all.len() as u32).filter(|id| near(id) || (control(id) && bytes.starts_with(b"<")));
        found.next().unwrap_or_else(|| {
            let same = (0..all.len() as u32).filter(|id| words.token_bytes(*id) == bytes);
            let same: Vec<_> = same.map(|id| (id, all[id as usize])).collect();
            panic!("{bytes:?} at {logprob} after {:?}, found {same:?}", self.text)
        })
    }

    /// Follows the tokens of an answer; returns their text.
    fn follow(&mut self, tokens: &[Told], top: usize) -> String {
        let mut text = Vec::new();
        for (bytes, logprob, likely) in tokens {
            let all = self.logprobs();
            let own = self.find(&all, bytes, *logprob);
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(likely.len(), top, "{:?}", self.text);
            for ((bytes, logprob), expected) in likely.iter().zip(&sorted) {
                assert!((logprob - expected).abs() < 1e-3, "{logprob} {expected} after {:?}", self.text);
                self.find(&all, bytes, *logprob);
            }
            text.extend_from_slice(bytes);
            self.text = String::from_utf8_lossy(&text).into_owned();
            self.run(&[own]);
        }
        self.text.clone()
    }
}

/// The tokens of `logprobs.content`.
fn told(content: &Value) -> Vec<Told> {
    let entry = |value: &Value| {
        let bytes: Vec<u8> = serde_json::from_value(value["bytes"].clone()).unwrap();
        assert_eq!(value["token"], String::from_utf8_lossy(&bytes).as_ref());
        (bytes, value["logprob"].as_f64().unwrap())
    };
    let token = |value: &Value| {
        let (bytes, logprob) = entry(value);
        (bytes, logprob, value["top_logprobs"].as_array().unwrap().iter().map(entry).collect())
    };
    content.as_array().unwrap_or_else(|| panic!("{content}")).iter().map(token).collect()
}

/// However tokens were drawn, what is told is the model's own distribution, which is computed here a second time.
#[test]
fn logprobs_are_those_of_the_logits() {
    let dir = tempfile::tempdir().unwrap();
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let served = Served::start(dir.path(), &home, "", &[]);
    let mut judge = Judge::new(&home);
    let messages = json!([{"role": "user", "content": "dim the hall lights to 30 and shut the blinds"}]);
    let chat =
        ChatRequest { messages: messages.as_array().unwrap().clone(), tools: None, enable_thinking: Some(false) };
    let prompt = judge.engine.encode_chat(&chat).unwrap();
    // Begins as the model would: else it thinks first, which the judge does not see.
    let schema = json!({"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "object",
        "required": ["device"], "additionalProperties": false, "properties": {"device": {"enum": ["lamp", "light"]}}}});
    let form = json!({"type": "json_schema", "json_schema": {"schema": schema}});
    for (more, top) in [
        (json!({"temperature": 0}), 20),
        (json!({"temperature": 2, "top_k": 3, "seed": 5, "max_tokens": 12, "repetition_penalty": 1.5}), 2),
        (json!({"temperature": 0, "logit_bias": {"300": 100}, "max_tokens": 3}), 0),
        (json!({"temperature": 0, "response_format": form}), 3),
        // The answer ends within a token's text, or before one.
        (json!({"temperature": 0, "stop": ["hall"]}), 1),
    ] {
        let mut body = json!({"messages": messages, "logprobs": true, "top_logprobs": top});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = post(&served, CHAT, &body).json();
        assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 0, "{whole}");
        let choice = &whole["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap_or_else(|| panic!("{whole}"));
        let tokens = told(&choice["logprobs"]["content"]);
        assert!(!tokens.is_empty() && choice["logprobs"]["refusal"].is_null(), "{whole}");
        judge.begin(&prompt);
        let spelled = judge.follow(&tokens, top);
        assert!(spelled.starts_with(text), "{spelled:?} {text:?}");
        if body["stop"].is_null() {
            assert_eq!(spelled, text);
        }

        // In pieces: the same tokens, each with the text that it is of.
        body["stream"] = json!(true);
        body["seed"] = whole["seed"].clone();
        let streamed = chunks(&post(&served, CHAT, &body));
        let mut pieces = Vec::new();
        for chunk in &streamed {
            let choice = &chunk["choices"][0];
            if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
                let piece = told(&choice["logprobs"]["content"]);
                let bytes: Vec<u8> = piece.iter().flat_map(|token| token.0.clone()).collect();
                assert!(String::from_utf8_lossy(&bytes).starts_with(text), "{chunk}");
                pieces.extend(piece);
            }
        }
        assert_eq!(pieces, tokens);
    }

    // In a response, whole and in events: at each delta the tokens of its text, and all of them where the text is done.
    let mut body = json!({"input": messages, "include": ["message.output_text.logprobs"], "top_logprobs": 2,
                          "temperature": 0, "max_output_tokens": 12});
    let whole = post(&served, "/v1/responses", &body).json();
    let tokens = told(&whole["output"][0]["content"][0]["logprobs"]);
    judge.begin(&prompt);
    assert_eq!(judge.follow(&tokens, 2), whole["output"][0]["content"][0]["text"]);
    body["stream"] = json!(true);
    let (mut pieces, mut done) = (Vec::new(), 0);
    for event in data(&post(&served, "/v1/responses", &body)) {
        match event["type"].as_str() {
            Some("response.output_text.delta") => {
                let piece = told(&event["logprobs"]);
                let bytes: Vec<u8> = piece.iter().flat_map(|token| token.0.clone()).collect();
                assert_eq!(event["delta"], String::from_utf8_lossy(&bytes).as_ref());
                pieces.extend(piece);
            }
            Some("response.output_text.done") => {
                assert_eq!(told(&event["logprobs"]), tokens);
                done += 1;
            }
            Some("response.content_part.done") => assert_eq!(told(&event["part"]["logprobs"]), tokens),
            Some("response.completed" | "response.incomplete") => {
                assert_eq!(told(&event["response"]["output"][0]["content"][0]["logprobs"]), tokens);
                done += 1;
            }
            _ => {}
        }
    }
    assert_eq!((pieces, done), (tokens, 2));

    // The older shape.
    let mut body = json!({"prompt": "The kitchen is", "logprobs": 2, "temperature": 0, "max_tokens": 6});
    let whole = post(&served, "/v1/completions", &body).json();
    let logprobs = &whole["choices"][0]["logprobs"];
    judge.begin(&judge.engine.encode_text("The kitchen is"));
    let mut text = String::new();
    for at in 0..logprobs["tokens"].as_array().unwrap().len() {
        let token = logprobs["tokens"][at].as_str().unwrap();
        assert_eq!(logprobs["text_offset"][at], text.chars().count());
        let all = judge.logprobs();
        let (own, logprob) = (all.iter().copied().fold(f64::MIN, f64::max), &logprobs["token_logprobs"][at]);
        assert!((own - logprob.as_f64().unwrap()).abs() < 1e-3, "{logprobs}");
        let top = logprobs["top_logprobs"][at].as_object().unwrap();
        assert_eq!((top.len(), &top[token]), (2, logprob), "{logprobs}");
        text.push_str(token);
        let id = judge.find(&all, token.as_bytes(), own);
        judge.run(&[id]);
    }
    assert_eq!(whole["choices"][0]["text"], text);
    body["stream"] = json!(true);
    let streamed = chunks(&post(&served, "/v1/completions", &body));
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let pieces = streamed.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"][field].as_array()).flatten();
        assert_eq!(&pieces.cloned().collect::<Value>(), &logprobs[field], "{field}");
    }
    served.stop();
}

/// What fails after text of it was sent ends what was begun, says why, and has the text.
#[test]
fn a_response_that_fails_late_ends_in_order() {
    let daemon = Daemon::start("");
    let body = json!({"input": "@think @hold @fail", "stream": true}).to_string();
    let mut sent = daemon.send("POST", "/v1/responses", &body);
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("\"delta\":\"You \"") {
        let read = sent.read(&mut piece).unwrap();
        assert!(read > 0, "no text before the failure: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..read]);
    }
    daemon.release();
    let events = data(&Response::read_on(sent, seen));
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "error",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.failed",
        ]
    );
    assert!(events.iter().enumerate().all(|(at, event)| event["sequence_number"] == at), "{events:?}");
    assert_eq!(events[11]["code"], "internal");
    assert_eq!((&events[14]["item"]["status"], &events[14]["output_index"]), (&"incomplete".into(), &1.into()));
    let last = &events[15]["response"];
    assert_eq!((&last["status"], &last["error"]["code"]), (&"failed".into(), &"server_error".into()));
    assert_eq!(last["output"][1]["content"][0]["text"], "You ");
    assert!(last["usage"].is_null() && last["output"][0]["status"] == "completed", "{last}");
}

#[test]
fn responses_whole_streamed_and_refused() {
    let daemon = Daemon::start("");
    let tools = json!([{"type": "function", "name": "set_light"}]);
    let whole = daemon.post("/v1/responses", &json!({"input": "@think a", "instructions": "s"}).to_string()).json();
    assert_eq!((&whole["object"], &whole["status"]), (&"response".into(), &"completed".into()), "{whole}");
    assert!(whole["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!(whole["output"][0]["content"][0]["text"], "let me see");
    assert_eq!(whole["output"][1]["content"][0]["text"], "You said: s|@think a");
    let usage = &whole["usage"];
    let number = |name: &str| usage[name].as_u64().unwrap_or_else(|| panic!("{name}: {whole}"));
    assert_eq!(number("total_tokens"), number("input_tokens") + number("output_tokens"));
    let chat = daemon
        .post(
            CHAT,
            &json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "@think a"}]})
                .to_string(),
        )
        .json();
    assert_eq!(usage["output_tokens"], chat["usage"]["completion_tokens"], "{whole} {chat}");
    let seeded = daemon.post("/v1/responses", r#"{"input":"a","seed":77}"#).json();
    assert_eq!(seeded["seed"], 77);

    let body = json!({"input": "@call", "tools": tools, "stream": true});
    let streamed = daemon.post("/v1/responses", &body.to_string());
    let mut events = Vec::new();
    for event in streamed.events().into_iter().filter(|event| event.starts_with("event: ")) {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.strip_prefix("event: ").unwrap());
        assert_eq!(data["sequence_number"], events.len());
        events.push(data);
    }
    let last = &events.last().unwrap()["response"];
    assert_eq!((&last["status"], last["output"].as_array().unwrap().len()), (&"completed".into(), 2), "{streamed:?}");
    assert_eq!(last["output"][1]["name"], "set_light");

    let nothing_but_calls = daemon.post(
        CHAT,
        &json!({"messages": [{"role": "user", "content": "@call"}],
                "tools": [{"type": "function", "function": {"name": "set_light"}}]})
        .to_string(),
    );
    assert_eq!(nothing_but_calls.json()["choices"][0]["message"]["content"], Value::Null);

    let pairs = |n: usize| json!({"input": "a", "metadata": (0..n).map(|i| (i.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>()});
    assert_eq!(daemon.post("/v1/responses", &pairs(16).to_string()).status, 200);
    let many = daemon.post("/v1/responses", &pairs(17).to_string());
    assert_eq!((many.status, &many.json()["error"]["param"]), (400, &"metadata".into()));
    let items = |n: usize| json!({"input": vec![json!({"role": "user", "content": "a"}); n]});
    let many = daemon.post("/v1/responses", &items(257).to_string());
    assert_eq!((many.status, &many.json()["error"]["param"]), (400, &"input".into()));

    // Failures name fields as responses do.
    let refused = daemon.post("/v1/responses", r#"{"input":"@refuse"}"#);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &"input".into()));
    let stateful = daemon.post("/v1/responses", r#"{"input":"a","previous_response_id":"resp_1"}"#);
    assert_eq!((stateful.status, &stateful.json()["error"]["param"]), (400, &"previous_response_id".into()));
}
