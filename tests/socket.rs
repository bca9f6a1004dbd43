//! The HTTP door, with real connections to a daemon in a process of its own.

mod common;

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Daemon, Response, Sent, schema, wait_for};

#[test]
#[ignore = "started by the other tests as their daemon"]
fn daemon_child() {
    common::daemon_child();
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_chat_completion_has_openais_shape() {
    let daemon = Daemon::start("");
    let body = daemon.chat("hello you", r#","seed":7,"max_tokens":3"#);
    let response = daemon.post(CHAT, &body);
    assert_eq!(response.status, 200, "{response:?}");
    let json = response.json();
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["model"], "fake");
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &json["choices"][0];
    assert_eq!(choice["message"], serde_json::json!({"role": "assistant", "content": "You said: hello "}));
    assert_eq!(choice["finish_reason"], "length");
    let details = serde_json::json!({"cached_tokens": 0});
    let usage = serde_json::json!({
        "prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": 0},
    });
    assert_eq!(json["usage"], usage);
    assert_eq!(json["seed"], 7);

    let thinking = daemon.post(CHAT, &daemon.chat("@think", "")).json();
    assert_eq!(thinking["choices"][0]["message"]["reasoning_content"], "let me see");
    assert_eq!(thinking["choices"][0]["finish_reason"], "stop");
}

#[test]
fn a_stream_has_role_pieces_finish_usage_and_done() {
    let daemon = Daemon::start("");
    let body = daemon.chat("@think of it", r#","stream":true,"stream_options":{"include_usage":true}"#);
    let response = daemon.post(CHAT, &body);
    assert!(response.head.contains("content-type: text/event-stream") && response.complete, "{response:?}");
    let data: Vec<_> = response.events().into_iter().filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(*data.last().unwrap(), "[DONE]");
    let chunks: Vec<serde_json::Value> =
        data[..data.len() - 1].iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"]));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let joined = |field: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!(joined("content"), "You said: @think of it");
    assert_eq!(joined("reasoning_content"), "let me see");
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[chunks.len() - 1]["usage"]["prompt_tokens"], 12);
    assert!(response.body.contains(": started\n\n") && response.body.contains(": prefill 12/12\n\n"), "{response:?}");
}

#[test]
fn calls_of_tools_whole_and_streamed() {
    let daemon = Daemon::start("");
    let tools = r#","tools":[{"type":"function","function":{"name":"set_light"}}]"#;
    let whole = daemon.post(CHAT, &daemon.chat("@call", tools)).json();
    let (choice, number) = (&whole["choices"][0], whole["id"].as_str().unwrap().trim_start_matches("chatcmpl-"));
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&"tool_calls".into(), &().into()));
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["id"]), (2, &format!("call_{number}_0").into()));
    let function = serde_json::json!({"name": "set_light", "arguments": r#"{"room":"hall"}"#});
    assert_eq!((&calls[1]["type"], &calls[1]["function"]), (&"function".into(), &function));

    let streamed = daemon.post(CHAT, &daemon.chat("@call", &format!(r#"{tools},"stream":true"#)));
    let data =
        streamed.events().into_iter().filter_map(|event| event.strip_prefix("data: ")).filter(|d| *d != "[DONE]");
    let chunks: Vec<serde_json::Value> = data.map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let pieces = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array()).flatten();
    let pieces: Vec<_> = pieces.map(|call| (call["index"].as_u64(), call["function"].clone())).collect();
    assert_eq!(pieces, [(Some(0), function.clone()), (Some(1), function)]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    // What the tools gave goes back in.
    let messages = serde_json::json!({"messages": [
        {"role": "user", "content": "dim it"}, {"role": "assistant", "content": null, "tool_calls": calls},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": "done"}]});
    let said = daemon.post(CHAT, &messages.to_string()).json();
    assert_eq!(said["choices"][0]["message"]["content"], "You said: dim it||done");
    let none = daemon.post(CHAT, &daemon.chat("@call", &format!(r#"{tools},"tool_choice":"none""#))).json();
    assert_eq!(none["choices"][0]["finish_reason"], "stop");
}

#[test]
fn texts_are_continued_whole_and_streamed() {
    let daemon = Daemon::start("");
    let json = daemon.post("/v1/completions", r#"{"prompt":"hello you","max_tokens":3,"seed":7}"#).json();
    assert_eq!(json["object"], "text_completion");
    assert!(json["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice =
        serde_json::json!({"index": 0, "text": "You said: hello ", "logprobs": null, "finish_reason": "length"});
    assert_eq!((&json["choices"], &json["usage"]["total_tokens"]), (&serde_json::json!([choice]), &12.into()));

    let body = r#"{"prompt":"@think of it","stream":true,"stream_options":{"include_usage":true}}"#;
    let response = daemon.post("/v1/completions", body);
    let data: Vec<_> = response.events().into_iter().filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(*data.last().unwrap(), "[DONE]");
    let chunks: Vec<serde_json::Value> =
        data[..data.len() - 1].iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "You said: @think of it");
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[chunks.len() - 1]["usage"]["prompt_tokens"], 12);
}

#[test]
fn requests_keep_their_names_and_readiness_is_that_of_the_queue() {
    let daemon = Daemon::start("[queue]\ndepth = 1\n");
    let named =
        |id: &str, path: &str| Response::read(daemon.send_with("GET", path, &format!("X-Request-Id: {id}\r\n"), ""));
    for (path, status) in [("/readyz", 200), ("/nowhere", 404)] {
        let response = named("trace-7:a/b", path);
        assert_eq!(response.status, status);
        assert!(response.head.contains("\r\nx-request-id: trace-7:a/b"), "{response:?}");
    }
    for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
        assert_eq!(named(bad, "/readyz").status, 400, "{bad}");
    }
    let first = daemon.send("POST", "/v1/prompt", "one @hold");
    daemon.wait_journal("start one @hold");
    assert_eq!(daemon.request("GET", "/readyz", "").status, 200, "one more may wait");
    let second = daemon.send("POST", "/v1/prompt", "two");
    daemon.wait_waiting(1);
    let full = daemon.request("GET", "/readyz", "");
    assert_eq!((full.status, &full.json()["error"]["code"]), (503, &"busy".into()));
    daemon.release();
    assert_eq!((Response::read(first).body.as_str(), Response::read(second).status), ("You said: one @hold", 200));
}

#[test]
fn text_in_text_out_through_curl() {
    let daemon = Daemon::start("");
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl").arg("-sS").arg("--unix-socket").arg(&daemon.socket).args(arguments).output();
        output.expect("curl is needed for this test")
    };
    let output = curl(&["--data-binary", "why is the sky blue?", "http://localhost/v1/prompt?system=be+short"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "You said: be short|why is the sky blue?");
    assert!(output.status.success());

    let output =
        curl(&["--data-binary", "show @params", "http://localhost/v1/prompt?temperature=0&seed=3&max_tokens=99"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for expected in ["temperature: Some(0.0)", "seed: Some(3)", "max_tokens: Some(99)"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_failure_after_the_first_words_cuts_the_body_off() {
    let daemon = Daemon::start("");
    let stream = daemon.send("POST", "/v1/prompt", "@hold @fail");
    let mut seen = Vec::new();
    let mut reader = stream.try_clone().unwrap();
    wait_for("the first word", || {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
        seen.ends_with(b"You ").then_some(())
    });
    daemon.release();
    let _ = reader.read_to_end(&mut seen);
    assert!(!String::from_utf8_lossy(&seen).contains("\r\n0\r\n"), "the last chunk must be missing");
    // The same over SSE, where there is room for the reason.
    let body = daemon.post(CHAT, &daemon.chat("@fail", r#","stream":true"#)).body;
    assert!(body.contains(r#""code":"internal""#), "{body}");
}

/// The document has the routes of the router, and no others; and what it says of them can be broken.
#[test]
fn the_document_has_the_routes() {
    let source = include_str!("../src/transport/socket/http.rs");
    let route = |rest: &str| {
        let (path, rest) = rest.split_once("\", ")?;
        // All that is a name there and the rest of the path here.
        Some(format!("{} {}", rest.split('(').next()?, path.replace("{*", "{").replace("{name}", "{id}")))
    };
    let mut routes: Vec<String> = source.split(".route(\"").skip(1).filter_map(route).collect();
    let mut documented: Vec<String> = Vec::new();
    for (path, item) in schema::DOCUMENT["paths"].as_object().unwrap() {
        documented.extend(item.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    routes.sort();
    documented.sort();
    assert!(routes.len() > 12, "{routes:?}");
    assert_eq!(routes, documented);

    let daemon = Daemon::start("");
    let good = daemon.request("GET", "/healthz", "");
    let fails = |path: &str, change: &dyn Fn(&mut Response)| {
        let mut bad = Response { head: good.head.clone(), body: good.body.clone(), ..good };
        change(&mut bad);
        std::panic::catch_unwind(|| schema::check("GET", path, "", &bad)).is_err()
    };
    assert!(!fails("/healthz", &|_| {}));
    assert!(fails("/healthz", &|bad| bad.body = bad.body.replace("waiting", "wait")));
    assert!(fails("/healthz", &|bad| bad.body = bad.body.replace("false", "0")));
    assert!(fails("/healthz", &|bad| bad.body = bad.body.replace('}', ",\"more\":1}")));
    assert!(fails("/healthz", &|bad| bad.status = 201));
    assert!(fails("/healthz", &|bad| bad.head = bad.head.replace("json", "xml")));
    assert!(fails("/v1/health", &|_| {}));
}

#[test]
fn models_and_health() {
    let daemon = Daemon::start("[model]\nname = \"tiny\"\ncontext = 100\n");
    let models = daemon.request("GET", "/v1/models", "").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&"list".into(), &"tiny".into()));
    assert_eq!(models["data"][0]["context"], 100);
    assert_eq!(daemon.request("GET", "/v1/models/tiny", "").json(), models["data"][0]);
    let other = daemon.request("GET", "/v1/models/org/other", "");
    assert_eq!((other.status, &other.json()["error"]["code"]), (404, &"not_found".into()));
    let health = daemon.request("GET", "/healthz", "");
    assert_eq!((health.status, &health.json()["status"]), (200, &"ok".into()));
}

#[test]
fn status_and_metrics_tell_the_same() {
    let daemon = Daemon::start("[model]\nname = 'ti\"n\\y'\n");
    assert_eq!(daemon.post(CHAT, &daemon.chat("hello", "")).status, 200);
    assert_eq!(daemon.post(CHAT, &daemon.chat("@fail", "")).status, 500);
    let status = daemon.request("GET", "/v1/status", "").json();
    assert_eq!((&status["status"], &status["model"]["name"]), (&"ok".into(), &"ti\"n\\y".into()));
    assert_eq!(status["requests"], serde_json::json!({"total": 2, "answered": 1, "internal": 1}));
    assert_eq!((&status["waiting"], &status["last_error"]), (&0.into(), &"internal".into()));
    assert!(status["governor"]["decode_threads"].as_u64().unwrap() > 0 && status["governor"]["why"].is_string());

    let page = daemon.request("GET", "/metrics", "").body;
    let mut families = Vec::new();
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            families.push(family.split(' ').next().unwrap().to_owned());
        } else if !line.starts_with("# HELP ") {
            // A sample belongs to the family before it, and its value is a number.
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(name.split('{').next(), families.last().map(String::as_str), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    let mut unique = families.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), families.len(), "a family twice: {page}");
    let tokens = format!("emberd_completion_tokens_total {}", status["completion_tokens"]);
    let name = r#"model="ti\"n\\y""#;
    for part in [r#"emberd_requests_total{result="answered"} 1"#, r#"{result="internal"} 1"#, &tokens, name] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

/// docs/operations.md has the metrics that a daemon shows, and no others.
#[test]
fn every_metric_is_explained() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let doc = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let section = doc.split("## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<(&str, &str)> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).collect();
    let page = Daemon::start("").request("GET", "/metrics", "").body;
    let shown: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(shown.len() > 10, "{page}");
    for name in &shown {
        assert!(rows.iter().any(|(row, _)| row == name), "{name}: not in docs/operations.md");
    }
    let code = std::fs::read_to_string(root.join("src/transport/socket/report.rs")).unwrap();
    for (name, row) in &rows {
        // A board's sensors need not be here.
        let there =
            if row.contains("where known") { code.contains(&format!("\"{name}\"")) } else { shown.contains(name) };
        assert!(there, "{name}: in docs/operations.md, and no metric");
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "an emulated CPU tells nothing of time")]
fn a_request_costs_less_than_two_milliseconds_beside_its_computing() {
    let daemon = Daemon::start("");
    let body = daemon.chat("hello", "");
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let mut stream = daemon.connect();
            let (began, mut answer) = (Instant::now(), String::new());
            write!(stream, "{head}{body}").unwrap();
            stream.read_to_string(&mut answer).unwrap();
            let time = began.elapsed();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            time
        })
        .collect();
    times.sort();
    // The model of this daemon answers at once.
    println!("request: median {:?}, 95 % {:?}", times[100], times[190]);
    // Other tests share the CPUs: the slower half says more of them than of this.
    assert!(times[50] < Duration::from_millis(2), "{:?}", times[50]);
}

#[test]
fn refusals_have_openais_shape() {
    let daemon = Daemon::start("[model]\ncontext = 64\n[limits]\nbody_bytes = 2048\n");
    let cases = [
        ("POST", CHAT, "{".to_owned(), 400, "bad_request", None),
        ("POST", CHAT, "\u{0}garbage".to_owned(), 400, "bad_request", None),
        ("POST", CHAT, "{}".to_owned(), 400, "bad_request", Some("messages")),
        ("POST", CHAT, daemon.chat("x", r#","tools":[{}]"#), 400, "bad_request", Some("tools[0].type")),
        ("POST", CHAT, daemon.chat("x", r#","temperature":9"#), 400, "bad_request", Some("temperature")),
        ("POST", CHAT, daemon.chat("@refuse", ""), 400, "bad_request", Some("messages")),
        ("POST", CHAT, daemon.chat(&"x".repeat(64), ""), 400, "context_length_exceeded", None),
        ("POST", CHAT, daemon.chat(&"x".repeat(64), r#","stream":true"#), 400, "context_length_exceeded", None),
        ("POST", CHAT, daemon.chat("@fail", ""), 500, "internal", None),
        ("POST", CHAT, "x".repeat(4096), 413, "too_large", None),
        ("POST", "/v1/prompt", " ".to_owned(), 400, "bad_request", None),
        ("POST", "/v1/prompt?seed=x", "x".to_owned(), 400, "bad_request", Some("seed")),
        ("POST", "/v1/completions", "x".to_owned(), 400, "bad_request", None),
        ("POST", "/v1/completions", "{}".to_owned(), 400, "bad_request", Some("prompt")),
        ("POST", "/v1/engines", "x".to_owned(), 404, "not_found", None),
        ("GET", CHAT, String::new(), 405, "method_not_allowed", None),
    ];
    for (method, path, body, status, code, param) in cases {
        let response = daemon.request(method, path, &body);
        let error = &response.json()["error"];
        assert_eq!((response.status, error["code"].as_str()), (status, Some(code)), "{path} {body}: {response:?}");
        assert_eq!(error["param"].as_str(), param, "{path} {body}");
        assert!(error["message"].is_string() && error["type"].is_string());
    }
    let message = daemon.post(CHAT, &daemon.chat(&"x".repeat(64), "")).json()["error"]["message"].to_string();
    assert!(message.contains("65") && message.contains("64"), "needed and available: {message}");
    // The context bounds the answer too.
    let near = daemon.post(CHAT, &daemon.chat(&"x ".repeat(30), "")).json();
    assert_eq!(
        (&near["usage"]["completion_tokens"], &near["choices"][0]["finish_reason"]),
        (&4.into(), &"length".into())
    );
}

#[test]
fn a_chunked_body_beyond_the_limit_is_refused() {
    let daemon = Daemon::start("[limits]\nbody_bytes = 2048\n");
    let mut stream = daemon.connect();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    let head = "POST /v1/prompt HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}{chunk}0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(Response::read(Sent::by_hand(stream, "POST", "/v1/prompt", "")).status, 413);
}

#[test]
fn a_full_queue_is_said_at_once_and_positions_move() {
    let daemon = Daemon::start("[queue]\ndepth = 2\n");
    let first = daemon.send("POST", "/v1/prompt", "one @hold");
    daemon.wait_journal("start one @hold");
    let second = daemon.send("POST", CHAT, &daemon.chat("two", r#","stream":true"#));
    daemon.wait_waiting(1);
    let third = daemon.send("POST", CHAT, &daemon.chat("three", r#","stream":true"#));
    daemon.wait_waiting(2);
    let refused = daemon.post(CHAT, &daemon.chat("four", ""));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &"busy".into()));
    assert!(refused.head.contains("\r\nretry-after: "), "{refused:?}");
    daemon.release();
    assert_eq!(Response::read(first).body, "You said: one @hold");
    assert!(Response::read(second).body.starts_with(": queued 1\n\n"));
    let third = Response::read(third);
    assert!(third.body.starts_with(": queued 2\n\n"), "{third:?}");
    let order: Vec<_> = daemon.journal().lines().filter(|line| line.starts_with("start")).map(str::to_owned).collect();
    assert_eq!(order, ["start one @hold", "start two", "start three"]);
}

#[test]
fn hanging_up_stops_the_running_request() {
    let daemon = Daemon::start("");
    for (path, body) in [
        (CHAT, daemon.chat("a @hold", r#","stream":true"#)),
        (CHAT, daemon.chat("b @hold", "")),
        ("/v1/prompt", "c @hold".to_owned()),
    ] {
        let prompt = ["a @hold", "b @hold", "c @hold"].into_iter().find(|prompt| body.contains(prompt)).unwrap();
        let stream = daemon.send("POST", path, &body);
        daemon.wait_journal(&format!("start {prompt}"));
        drop(stream);
        daemon.wait_journal(&format!("end {prompt} Ok(Cancelled)"));
    }
    assert_eq!(daemon.post("/v1/prompt", "next").body, "You said: next");
}

#[test]
fn hanging_up_takes_a_waiting_request_back_and_leaves_the_running_one() {
    let daemon = Daemon::start("");
    let running = daemon.send("POST", "/v1/prompt", "one @hold");
    daemon.wait_journal("start one @hold");
    for body in [daemon.chat("two", ""), daemon.chat("two", r#","stream":true"#)] {
        let waiting = daemon.send("POST", CHAT, &body);
        daemon.wait_waiting(1);
        drop(waiting);
        daemon.wait_waiting(0);
    }
    daemon.release();
    assert_eq!(Response::read(running).body, "You said: one @hold");
    assert!(!daemon.journal().contains("two"));
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    let daemon = Daemon::start("[limits]\nmax_tokens = 100000\n[model]\ncontext = 1000000\n");
    // 5000 pieces of over 200 bytes each: more than socket buffers hold.
    let slow = daemon.send("POST", CHAT, &daemon.chat("@long", r#","stream":true"#));
    daemon.wait_journal("end @long Ok(Stop)");
    assert_eq!(daemon.post("/v1/prompt", "next").body, "You said: next");
    let response = Response::read(slow);
    assert!(response.complete && response.body.contains("word4999 ") && response.body.ends_with("data: [DONE]\n\n"));
}

#[test]
fn slow_heads_and_bodies_are_timed_out() {
    let daemon = Daemon::start("[socket]\nheader_timeout_s = 1\n");
    let mut stream = daemon.connect();
    stream.write_all(b"POST /v1/prompt HT").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    let mut stream = daemon.connect();
    stream
        .write_all(b"POST /v1/prompt HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\nx")
        .unwrap();
    assert_eq!(Response::read(Sent::by_hand(stream, "POST", "/v1/prompt", "")).status, 408);
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let daemon = Daemon::start("[socket]\nmax_connections = 1\n");
    let held = daemon.send("POST", "/v1/prompt", "one @hold");
    daemon.wait_journal("start one @hold");
    let refused = daemon.request("GET", "/healthz", "");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &"busy".into()));
    assert!(refused.head.contains("retry-after: 1"));
    drop(held);
    wait_for("a free place", || (daemon.request("GET", "/healthz", "").status == 200).then_some(()));
}

#[test]
fn a_request_that_takes_too_long_expires() {
    let daemon = Daemon::start("[limits]\nrequest_timeout_s = 1\n");
    let running = daemon.send("POST", CHAT, &daemon.chat("one @hold", ""));
    daemon.wait_journal("start one @hold");
    let waiting = daemon.post(CHAT, &daemon.chat("two @hold", ""));
    for response in [Response::read(running), waiting] {
        assert_eq!((response.status, &response.json()["error"]["code"]), (504, &"expired".into()));
    }
}

#[test]
fn large_bodies_are_refused_with_words_not_with_a_broken_pipe() {
    let daemon = Daemon::start("[limits]\nbody_bytes = 2048\n");
    let file = daemon.dir.path().join("large");
    for bytes in [3_000, 300_000, 5_000_000] {
        std::fs::write(&file, "x".repeat(bytes)).unwrap();
        let output = Command::new("curl")
            .args(["-sS", "--data-binary", &format!("@{}", file.display()), "http://localhost/v1/prompt"])
            .arg("--unix-socket")
            .arg(&daemon.socket)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("larger than 2048 bytes"), "{bytes}: {output:?}");
    }
}
