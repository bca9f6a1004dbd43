//! What the socket offers beside completions: taking requests back, tokens.

mod common;

use common::binary::{Served, emberd, run};
use common::{Daemon, Response};
use serde_json::json;

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
        use std::io::Write;
        let (mut stream, body) = (daemon.connect(), daemon.chat(prompt, more));
        let length = body.len();
        let head = format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: {name}\r\n");
        write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").unwrap();
        stream
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
    assert_eq!(run(command.args(["cancel", "x", "--socket"]).arg(&daemon.socket)).status.code(), Some(1));
    assert_eq!(run(emberd().args(["cancel", "a b"])).status.code(), Some(2));
    assert_eq!(daemon.request("GET", "/v1/cancel/x", "").status, 405);
}

#[test]
fn a_stream_is_taken_back_by_the_id_in_its_pieces() {
    use std::io::Read;
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

/// With a real tokenizer: what a request's text counts is what `/tokenize` says, and it comes back as it was.
#[test]
fn tokens_of_the_bundled_model() {
    let dir = tempfile::tempdir().unwrap();
    let home = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let served = Served::start(dir.path(), &home, "", &[]);
    let post = |path: &str, body: serde_json::Value| {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(&served.socket).unwrap();
        let body = body.to_string();
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n");
        write!(stream, "{head}\r\n{body}").unwrap();
        Response::read(stream).json()
    };
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
