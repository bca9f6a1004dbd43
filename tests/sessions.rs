//! Sessions and presets over the socket: a request that continues a conversation gets the answer of the whole conversation.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::binary::{Served, emberd, run, stdout};
use common::broker::Broker;
use common::peer::Peer;
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
    // What makes a session too long is named by a field that a response has.
    let many: Vec<Value> = (0..256).map(|n| json!({"role": "user", "content": n.to_string()})).collect();
    let (status, long) = ask(json!({"input": many, "session": "s"}));
    assert_eq!((status, &long["error"]["param"]), (400, &json!("session")), "{long}");
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

/// A client of MQTT that knows the topics of its requests.
struct Client(Peer, &'static str);

impl Client {
    fn connect(broker: &Broker, name: &'static str) -> Client {
        let peer = Peer::connect(broker.port, name, "emberd/n/#");
        peer.wait_state("online");
        Client(peer, name)
    }

    fn send(&self, id: &str, body: &Value) {
        self.0.send(&format!("emberd/n/req/{}/{id}", self.1), body.to_string());
    }

    fn answer(&self, id: &str) -> Value {
        self.0.json_on(&format!("emberd/n/res/{}/{id}", self.1))
    }

    fn ask(&self, id: &str, body: Value) -> Value {
        self.send(id, &body);
        self.answer(id)
    }
}

#[test]
fn clients_of_mqtt_have_sessions_of_their_own() {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings(""));
    let (a, b) = (Client::connect(&broker, "a"), Client::connect(&broker, "b"));
    let known = |number: usize| json!({"id": "s", "known_messages": number});
    let first = a.ask("1", json!({"prompt": "one", "system": "i", "session": "s"}));
    assert_eq!((&first["text"], &first["session"]), (&"You said: i|one".into(), &known(0)));
    let other = b.ask("1", json!({"prompt": "mine", "session": "s"}));
    assert_eq!((&other["text"], &other["session"]), (&"You said: mine".into(), &known(0)));
    let (_, socket) = chat(&daemon.socket, &json!({"messages": user("x"), "session": "s"}));
    assert_eq!((content(&socket), &socket["session"]), ("You said: x", &known(0)));
    assert_eq!(send(&daemon.socket, "DELETE", "/v1/sessions/s", "").0, 200);
    assert_eq!(send(&daemon.socket, "DELETE", "/v1/sessions/s", "").0, 404);

    let two = json!({"messages": user("two"), "session": {"id": "s", "resume": true}});
    let second = a.ask("2", two.clone());
    assert_eq!((&second["text"], &second["session"]), (&"You said: i|one|You said: i|one|two".into(), &known(3)));
    // Who repeats a request gets its answer and adds nothing, also while the session is in use.
    assert_eq!(a.ask("2", two.clone()), second);
    a.send("3", &json!({"prompt": "three @hold", "session": "s"}));
    let busy = a.ask("4", json!({"prompt": "four", "session": "s"}));
    assert_eq!(busy["error"]["code"], "session_busy", "{busy}");
    assert_eq!(a.ask("2", two), second);
    daemon.release();
    assert_eq!(a.answer("3")["session"], known(5));
    assert_eq!(a.ask("4", json!({"prompt": "four", "session": "s"}))["session"], known(7));
    assert_eq!(b.ask("2", json!({"prompt": "b", "session": "s"}))["text"], "You said: mine|You said: mine|b");

    // What failed is no part of it, and calls of tools are.
    assert_eq!(b.ask("3", json!({"prompt": "@fail", "session": "s"}))["error"]["code"], "internal");
    assert_eq!(b.ask("4", json!({"prompt": "@refuse", "session": "s"}))["error"]["code"], "bad_request");
    assert_eq!(b.ask("5", json!({"prompt": "c", "session": "s"}))["session"], known(4));
    let tools = json!([{"type": "function", "function": {"name": "set_light"}}]);
    let called = b.ask("6", json!({"prompt": "@call", "tools": tools, "session": "t"}));
    let result = json!([{"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "done"}]);
    assert_eq!(b.ask("7", json!({"messages": result, "session": "t"}))["text"], "You said: @call||done");
}

#[test]
fn wrong_sessions_over_mqtt_are_refused() {
    let broker = Broker::start();
    let _daemon = Daemon::start(&broker.settings("share = \"pool\""));
    let a = Client::connect(&broker, "a");
    let gone = a.ask("1", json!({"prompt": "p", "session": {"id": "s", "resume": true}}));
    assert_eq!(gone["error"]["code"], "session_gone", "{gone}");
    let wrong = |answer: &Value| {
        let error = &answer["error"];
        assert_eq!((&error["code"], &error["param"]), (&"bad_request".into(), &"session".into()), "{answer}");
    };
    let long = "x".repeat(129);
    for bad in [json!(1), json!(""), json!("a b"), json!("b/s"), json!(long), json!({"resume": true})] {
        wrong(&a.ask("2", json!({"prompt": "p", "session": bad})));
    }
    wrong(&a.ask("2", json!({"prompt": "p", "session": {"id": "a", "resume": 1}})));
    wrong(&a.ask("2", json!({"prompt": "p", "session": "s", "raw": true})));
    // A message without an id may come twice, and one to several daemons may go to any.
    wrong(&a.ask("-", json!({"prompt": "p", "session": "s"})));
    let other = Peer::connect(broker.port, "other", "emberd/pool/res/a/1");
    a.0.send("emberd/pool/req/a/1", json!({"prompt": "p", "session": "s"}).to_string());
    wrong(&other.json_on("emberd/pool/res/a/1"));
    assert_eq!(a.ask("3", json!({"prompt": "p", "session": "s"}))["session"]["known_messages"], 0);
}

/// Wherever the daemon dies during the second turn of a session, the turn is in it once, or the session is gone.
#[test]
fn a_crash_adds_no_turn_twice() {
    let broker = Broker::start();
    let settings = broker.settings("");
    let two = json!({"prompt": "two", "session": "s"});
    let said = "You said: one|You said: one|two";
    // Where the answer was not kept yet, the request runs again and its session goes on.
    for (place, goes_on) in [
        ("mqtt.admitted", true),
        ("mqtt.acknowledged", true),
        ("mqtt.started", true),
        ("mqtt.ended", true),
        ("mqtt.stored", false),
        ("mqtt.completed", false),
    ] {
        let fail = format!("{place}:2");
        let mut first = Daemon::start_in(tempfile::tempdir().expect("directory"), &settings, &[("EMBERD_FAIL", &fail)]);
        let client = Client::connect(&broker, "a");
        assert_eq!(client.ask("1", json!({"prompt": "one", "session": "s"}))["session"]["known_messages"], 0);
        client.send("2", &two);
        first.wait();
        let second = Daemon::start_in(first.into_dir(), &settings, &[]);
        let answer = client.answer("2");
        assert_eq!((&answer["text"], &answer["session"]["known_messages"]), (&said.into(), &2.into()), "{place}");
        // As often as it is repeated.
        for _ in 0..2 {
            let again = client.ask("2", two.clone());
            assert_eq!((&again["text"], &again["session"]), (&answer["text"], &answer["session"]), "{place}");
        }
        let third = client.ask("3", json!({"prompt": "three", "session": {"id": "s", "resume": true}}));
        if goes_on {
            assert_eq!(third["session"]["known_messages"], 4, "{place}: {third}");
            assert_eq!(third["text"], format!("You said: one|You said: one|two|{said}|three"), "{place}");
        } else {
            assert_eq!(third["error"]["code"], "session_gone", "{place}: {third}");
            let anew = client.ask("4", json!({"prompt": "three", "session": "s"}));
            assert_eq!(anew["session"]["known_messages"], 0, "{place}: {anew}");
        }
        drop(second);
    }
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
