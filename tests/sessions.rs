//! Sessions and presets over the socket: a request that continues a conversation gets the answer of the whole conversation.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::binary::{Served, emberd, run, stdout};
use common::{Daemon, Response, daemon_child as child};
use serde_json::{Value, json};

#[test]
#[ignore = "started by the tests"]
fn daemon_child() {
    child();
}

fn send(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("connects");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("sends");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    (text.split(' ').nth(1).expect("a status").parse().expect("a number"), text)
}

fn chat(socket: &Path, body: &Value) -> (u16, Value) {
    let (status, text) = send(socket, "POST", "/v1/chat/completions", &body.to_string());
    (status, serde_json::from_str(text.split_once("\r\n\r\n").expect("a body").1).expect("JSON"))
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn a_session_goes_on_and_says_what_it_knew() {
    let daemon = Daemon::start("");
    let ask = |body: Value| chat(&daemon.socket, &body);
    let (status, gone) = ask(json!({"messages": user("a"), "session": {"id": "s", "resume": true}}));
    assert_eq!((status, &gone["error"]["code"]), (410, &json!("session_gone")));
    let (_, first) = ask(json!({"messages": user("a"), "session": "s"}));
    assert_eq!((content(&first), &first["session"]), ("You said: a", &json!({"id": "s", "known_messages": 0})));
    let (_, second) = ask(json!({"messages": user("b"), "session": {"id": "s", "resume": true}}));
    assert_eq!(content(&second), "You said: a|You said: a|b");
    assert_eq!(second["session"]["known_messages"], 2);
    // In a stream the last piece says it, and the answer is kept; text in and text out, too.
    let body = json!({"messages": user("c"), "session": "t", "stream": true}).to_string();
    let (_, stream) = send(&daemon.socket, "POST", "/v1/chat/completions", &body);
    assert!(stream.contains(r#""session":{"id":"t","known_messages":0}"#), "{stream}");
    let (_, plain) = send(&daemon.socket, "POST", "/v1/prompt?session=t", "d");
    assert!(plain.contains("x-session-known-messages: 2") && plain.contains("c|You said: c|d"), "{plain}");
    // What failed is not part of it.
    assert_eq!(ask(json!({"messages": user("@refuse"), "session": "t"})).0, 400);
    assert_eq!(ask(json!({"messages": user("@fail"), "session": "t"})).0, 500);
    assert_eq!(ask(json!({"messages": user("e"), "session": "t"})).1["session"]["known_messages"], 4);
    assert_eq!(send(&daemon.socket, "DELETE", "/v1/sessions/t", "").0, 200);
    assert_eq!(send(&daemon.socket, "DELETE", "/v1/sessions/t", "").0, 404);
    for bad in [json!(1), json!(""), json!("a b"), json!({"resume": true}), json!({"id": "a", "resume": 1})] {
        let (status, error) = ask(json!({"messages": user("a"), "session": bad}));
        assert_eq!((status, &error["error"]["param"]), (400, &json!("session")));
    }
    let output = stdout(run(emberd().args(["ask", "--session", "s", "--socket"]).arg(&daemon.socket).arg("x")));
    assert!(output.ends_with("|x\n") && output.contains("a|You said: a|b|"), "{output}");
}

/// The `X-Session-Id` of a request that has one, and a body that is JSON.
fn post(daemon: &Daemon, path: &str, session: &str, body: &Value) -> (u16, Value) {
    let head = if session.is_empty() { String::new() } else { format!("X-Session-Id: {session}\r\n") };
    let response = Response::read(daemon.send_with("POST", path, &head, &body.to_string()));
    (response.status, response.json())
}

#[test]
fn a_header_names_the_session_too() {
    let daemon = Daemon::start("");
    let ask = |session: &str, body: Value| post(&daemon, "/v1/chat/completions", session, &body);
    assert_eq!(ask("s", json!({"messages": user("a")})).1["session"], json!({"id": "s", "known_messages": 0}));
    let (_, second) = ask("s", json!({"messages": user("b"), "session": {"id": "s", "resume": true}}));
    assert_eq!((content(&second), &second["session"]["known_messages"]), ("You said: a|You said: a|b", &json!(2)));
    let plain = Response::read(daemon.send_with("POST", "/v1/prompt", "X-Session-Id: s\r\n", "c"));
    assert!(plain.head.contains("x-session-known-messages: 4") && plain.body.ends_with("b|c"), "{plain:?}");
    let long = "x".repeat(129);
    for (header, own) in [("a b", Value::Null), (&long, Value::Null), ("\u{e9}", Value::Null), ("s", json!("t"))] {
        let (status, error) = ask(header, json!({"messages": user("a"), "session": own}));
        assert_eq!((status, &error["error"]["param"]), (400, &json!("session")), "{header}");
    }
    // The header is a part of what a key stands for.
    for (session, status) in [("u", 200), ("v", 422), ("u", 200)] {
        let head = format!("Idempotency-Key: k\r\nX-Session-Id: {session}\r\n");
        let sent = daemon.send_with("POST", "/v1/chat/completions", &head, &daemon.chat("d", ""));
        assert_eq!(Response::read(sent).status, status, "{session}");
    }
    assert_eq!(ask("u", json!({"messages": user("e")})).1["session"]["known_messages"], 2);
    assert_eq!(ask("v", json!({"messages": user("e")})).1["session"]["known_messages"], 0);
}

#[test]
fn responses_continue_sessions() {
    let daemon = Daemon::start("");
    let ask = |body: Value| post(&daemon, "/v1/responses", "", &body);
    let said = |response: &Value| response["output"][0]["content"][0]["text"].as_str().map(str::to_owned);
    let (_, first) = ask(json!({"input": "a", "instructions": "i", "session": "s"}));
    assert_eq!(first["session"], json!({"id": "s", "known_messages": 0}), "{first}");
    let (_, second) = post(&daemon, "/v1/responses", "s", &json!({"input": "b"}));
    assert_eq!(said(&second).as_deref(), Some("You said: i|a|You said: i|a|b"));
    assert_eq!(second["session"]["known_messages"], 3);
    // In a stream; what failed is no part of it, and chat continues the same conversation.
    assert_eq!(ask(json!({"input": "@fail", "session": "s"})).0, 500);
    let streamed = daemon.post("/v1/responses", &json!({"input": "c", "session": "s", "stream": true}).to_string());
    assert_eq!(streamed.body.matches(r#""session":{"id":"s","known_messages":5}"#).count(), 3, "{streamed:?}");
    let (_, chat) = chat(&daemon.socket, &json!({"messages": user("d"), "session": "s"}));
    assert_eq!(chat["session"]["known_messages"], 7, "{chat}");
    // Calls and their results, by the ids that the response told.
    let tools = json!([{"type": "function", "name": "set_light"}]);
    let (_, called) = ask(json!({"input": "@call", "tools": tools, "session": "t"}));
    let call = &called["output"][0]["call_id"];
    let result = json!([{"type": "function_call_output", "call_id": call, "output": "done"}]);
    let (status, after) = ask(json!({"input": result, "session": "t"}));
    assert_eq!((status, said(&after).as_deref()), (200, Some("You said: @call||done")), "{after}");
    assert!(ask(json!({"input": "a", "session": {"id": "u", "resume": true}})).0 == 410);
    for name in ["previous_response_id", "conversation"] {
        let (status, error) = ask(json!({"input": "a", name: "resp_1"}));
        assert_eq!((status, &error["error"]["param"]), (400, &json!(name)));
        assert!(error["error"]["message"].as_str().expect("text").contains("`session`"), "{error}");
    }
}

#[test]
fn one_request_of_a_session_at_a_time() {
    let daemon = Daemon::start("");
    let (socket, body) = (daemon.socket.clone(), json!({"messages": user("@hold"), "session": "s"}));
    let first = std::thread::spawn(move || chat(&socket, &body));
    daemon.wait_journal("start @hold");
    let (status, busy) = chat(&daemon.socket, &json!({"messages": user("b"), "session": "s"}));
    assert_eq!((status, &busy["error"]["code"]), (409, &json!("session_busy")));
    assert_eq!(send(&daemon.socket, "DELETE", "/v1/sessions/s", "").0, 404);
    daemon.release();
    assert_eq!(first.join().expect("answered").0, 200);
    assert_eq!(chat(&daemon.socket, &json!({"messages": user("b"), "session": "s"})).1["session"]["known_messages"], 2);
}

#[test]
fn presets_fill_in_what_a_request_leaves_out() {
    let daemon = Daemon::start("[mqtt.presets.short]\nsystem = \"be brief\"\nmax_tokens = 3\n");
    let ask = |more: &[&str]| run(emberd().args(["ask", "--socket"]).arg(&daemon.socket).args(more));
    assert_eq!(stdout(ask(&["--preset", "short", "hi"])), "You said: be \n");
    let output = ask(&["--preset", "long", "hi"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(65) && said.contains("there are short"), "{said}");
    let (_, plain) = send(&daemon.socket, "POST", "/v1/prompt?preset=short&max_tokens=2", "x");
    // The two tokens that were asked for may come in a chunk each.
    assert!(plain.contains("said: ") && !plain.contains("be "), "{plain}");
    // A preset's number of tokens is a limit, whoever asks for more.
    let (_, plain) = send(&daemon.socket, "POST", "/v1/prompt?preset=short&max_tokens=9", "x");
    assert!(plain.contains("be ") && !plain.contains("brief"), "{plain}");
    for field in ["max_tokens", "max_completion_tokens"] {
        let (_, answer) = chat(&daemon.socket, &json!({"messages": user("x"), "preset": "short", field: 9}));
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &answer["usage"]["completion_tokens"]),
            (&"length".into(), &3.into()),
            "{answer}"
        );
    }
}

/// Random conversations with the real engine: the same text and the same number of prompt tokens as the whole conversation gives.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn answers_are_those_of_the_whole_conversation() {
    let dir = tempfile::tempdir().expect("directory");
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let served = Served::start(dir.path(), &home, "[governor]\nenabled = false\n", &[]);
    let mut rng = fastrand::Rng::with_seed(5);
    let words = ["light", "hall", "turn on", "blind", "why?", "window open", "22.5", "kitchen", "please"];
    let mut whole: Vec<Vec<Value>> = vec![Vec::new(); 3];
    let mut cached = 0;
    for request in 0..24 {
        let own = rng.usize(..3);
        let text: Vec<&str> = (0..rng.usize(1..6)).map(|_| words[rng.usize(..words.len())]).collect();
        let mut more = user(&text.join(" ")).as_array().cloned().expect("an array");
        if whole[own].is_empty() {
            more.insert(0, json!({"role": "system", "content": format!("You are number {own}.")}));
        }
        let body =
            |messages: &[Value]| json!({"messages": messages, "max_tokens": 12, "temperature": 1, "seed": request});
        let mut continued = body(&more);
        continued["session"] = json!(format!("s{own}"));
        let (status, found) = chat(&served.socket, &continued);
        assert_eq!(status, 200, "{found}");
        whole[own].extend(more);
        let (_, expected) = chat(&served.socket, &body(&whole[own]));
        assert_eq!(content(&found), content(&expected), "request {request}");
        assert_eq!(found["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
        cached += found["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
        whole[own].push(json!({"role": "assistant", "content": content(&found)}));
        if whole[own].len() > 9 {
            whole[own].clear();
            assert_eq!(send(&served.socket, "DELETE", &format!("/v1/sessions/s{own}"), "").0, 200);
        }
    }
    assert!(cached > 100, "{cached}");
    served.stop();
}
