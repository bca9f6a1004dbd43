//! The bundled model: what it says, by `emberd eval` and through both doors of the daemon.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::binary::{Served, emberd, run, stdout};
use common::broker::Broker;
use emberd::engine::eval::{self, Case};
use serde_json::{Value, json};

/// So many of the cases may be answered otherwise than expected: the model gets all 40 right, and the last bit of a sum that an
/// instruction set rounds otherwise may cost it one or two.
fn allowed(cases: usize) -> usize {
    cases / 20
}

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home")
}

/// A few held-out cases of every kind; fewer where the CPU is an emulated one.
fn smoke() -> String {
    let text = std::fs::read_to_string(home().join("cases/smoke.jsonl")).expect("cases");
    let step = if cfg!(target_arch = "aarch64") { 4 } else { 1 };
    text.lines().step_by(step).map(|line| format!("{line}\n")).collect()
}

#[test]
fn held_out_cases_are_answered_over_the_socket_and_over_mqtt() {
    let cases = eval::parse(&smoke()).expect("cases");
    let dir = tempfile::tempdir().expect("directory");
    let broker = Broker::start();
    let served = Served::start(dir.path(), &home(), &broker.settings(""), &[]);
    let port = broker.port.to_string();
    let mosquitto = |program: &str| {
        let mut command = Command::new(program);
        command.args(["-V", "5", "-h", "127.0.0.1", "-p", &port, "-W", "100"]).stderr(Stdio::null());
        command
    };
    let online = run(mosquitto("mosquitto_sub").args(["-t", "emberd/n/state", "-C", "1"]));
    assert_eq!(String::from_utf8_lossy(&online.stdout).trim(), "online");

    let mut passed = 0;
    for case in &cases {
        let over_socket = ask(&served, case);
        let (id, request) = (case.line, json!({"messages": case.messages, "max_tokens": 200}).to_string());
        let (to, back) = (format!("emberd/n/req/device/{id}"), format!("emberd/n/res/device/{id}"));
        let answer = run(mosquitto("mosquitto_rr").args(["-q", "1", "-t", &to, "-e", &back, "-m", &request]));
        let answer: Value = serde_json::from_slice(&answer.stdout).expect("JSON answer");
        assert_eq!(answer["text"], over_socket, "line {}: {answer}", case.line);
        assert_eq!(answer["finish_reason"], "stop", "line {}: {answer}", case.line);
        let agrees = eval::agrees(case.compare, &case.expected, &over_socket);
        if !agrees {
            println!("line {}: expected {}, answered {over_socket}", case.line, case.expected);
        }
        passed += usize::from(agrees);
    }
    served.stop();
    assert!(passed + allowed(cases.len()) >= cases.len(), "{passed} of {}", cases.len());
}

fn ask(served: &Served, case: &Case) -> String {
    let system = case.messages.iter().find(|message| message["role"] == "system");
    let mut command = emberd();
    command.args(["ask", "--json", "--max-tokens", "200", "--socket"]).arg(&served.socket);
    if let Some(system) = system {
        command.arg(format!("--system={}", system["content"].as_str().expect("text")));
    }
    let user = case.messages.last().and_then(|message| message["content"].as_str()).expect("text");
    let answer: Value = serde_json::from_str(&stdout(run(command.arg("--").arg(user)))).expect("JSON");
    answer["choices"][0]["message"]["content"].as_str().expect("text").to_string()
}

#[test]
fn an_answer_has_the_form_that_was_asked_for() {
    let dir = tempfile::tempdir().expect("directory");
    let broker = Broker::start();
    let served = Served::start(dir.path(), &home(), &broker.settings(""), &[]);
    let schema = dir.path().join("schema.json");
    // Nothing that the model would say by itself.
    let wanted = json!({
        "type": "object", "required": ["sure", "place"], "additionalProperties": false,
        "properties": {"sure": {"type": "integer", "minimum": 10, "maximum": 99}, "place": {"enum": ["roof", "shed"]}},
    });
    std::fs::write(&schema, wanted.to_string()).expect("schema");
    for prompt in ["dim the hall lights to 30", "tell me a joke"] {
        let mut ask = emberd();
        ask.args(["ask", prompt, "--seed", "7", "--socket"]).arg(&served.socket).arg("--json-schema").arg(&schema);
        let answer: Value = serde_json::from_str(&stdout(run(&mut ask))).expect("JSON");
        assert!((10..=99).contains(&answer["sure"].as_u64().expect("number")), "{answer}");
        assert!(answer["place"] == "roof" || answer["place"] == "shed", "{answer}");
    }

    // The same over MQTT, where a text of a fixed list is what a small device wants.
    let request = json!({
        "prompt": "tell me a joke", "response_format": {"type": "choice", "choice": ["on", "off"]},
    });
    let mut rr = Command::new("mosquitto_rr");
    rr.args(["-V", "5", "-h", "127.0.0.1", "-p", &broker.port.to_string(), "-W", "100", "-q", "1"]);
    rr.args(["-t", "emberd/n/req/door/1", "-e", "emberd/n/res/door/1", "-m", &request.to_string()]);
    let answer: Value = serde_json::from_str(&stdout(run(&mut rr))).expect("JSON");
    assert!(answer["text"] == "on" || answer["text"] == "off", "{answer}");
    assert_eq!(answer["finish_reason"], "stop", "{answer}");

    // A required call of a tool, through both doors: the model was never told of tools, the grammar makes it one.
    let tools = json!([{"type": "function", "function": {"name": "set_light", "parameters": {"type": "object",
        "properties": {"room": {"enum": ["hall", "attic"]}, "on": {"type": "boolean"}}, "required": ["room", "on"]}}}]);
    let request = json!({
        "messages": [{"role": "user", "content": "dim the hall lights to 30"}], "tools": tools, "tool_choice": "required",
    });
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--data-binary", &request.to_string(), "http://localhost/v1/chat/completions", "--unix-socket"]);
    let over_socket: Value = serde_json::from_str(&stdout(run(curl.arg(&served.socket)))).expect("JSON");
    let choice = &over_socket["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{over_socket}");
    let mut rr = Command::new("mosquitto_rr");
    rr.args(["-V", "5", "-h", "127.0.0.1", "-p", &broker.port.to_string(), "-W", "100", "-q", "1"]);
    rr.args(["-t", "emberd/n/req/door/2", "-e", "emberd/n/res/door/2", "-m", &request.to_string()]);
    let over_mqtt: Value = serde_json::from_str(&stdout(run(&mut rr))).expect("JSON");
    assert_eq!(over_mqtt["finish_reason"], "tool_calls", "{over_mqtt}");
    for calls in [&choice["message"]["tool_calls"], &over_mqtt["tool_calls"]] {
        let function = &calls[0]["function"];
        let arguments = function["arguments"].as_str().expect("text");
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        assert_eq!((calls.as_array().map(Vec::len), &function["name"]), (Some(1), &json!("set_light")));
        assert!(arguments["room"] == "hall" || arguments["room"] == "attic", "{arguments}");
        assert!(arguments["on"].is_boolean(), "{arguments}");
    }

    // A schema that is none is the client's fault, and said so.
    std::fs::write(&schema, r#"{"type": "fruit"}"#).expect("schema");
    let refused = run(emberd().args(["ask", "hi", "--socket"]).arg(&served.socket).arg("--json-schema").arg(&schema));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("response_format") && said.contains("fruit"), "{said}");
    served.stop();
}

#[test]
fn eval_counts_and_reports() {
    let dir = tempfile::tempdir().expect("directory");
    let (report, cases) = (dir.path().join("report.json"), dir.path().join("cases.jsonl"));
    std::fs::write(&cases, smoke()).expect("cases");
    let mut command = emberd();
    command.args(["eval", "--failures", "100", "--model"]).arg(home()).arg("--cases").arg(&cases);
    let table = stdout(run(command.arg("--at-least").arg("0").arg("--report").arg(&report)));
    println!("{table}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("report")).expect("JSON");
    let (total, kinds) = (&report["total"], report["kinds"].as_array().expect("kinds"));
    let answers = report["answers"].as_array().expect("answers");
    assert_eq!(
        kinds.iter().map(|kind| kind["kind"].as_str().expect("kind")).collect::<Vec<_>>(),
        ["command", "sensor", "alarm", "other"]
    );
    let sum = |field: &str| kinds.iter().filter_map(|kind| kind[field].as_u64()).sum::<u64>();
    assert_eq!((Some(sum("passed")), Some(sum("cases"))), (total["passed"].as_u64(), total["cases"].as_u64()));
    assert_eq!(answers.len() as u64, sum("cases"));
    let wrong = answers.iter().filter(|answer| answer["passed"] == false).count();
    assert!(wrong <= allowed(answers.len()), "{total}");
    assert_eq!(table.matches("  expected  ").count(), wrong);
    assert!(answers.iter().all(|answer| answer["answer"].as_str().is_some_and(|text| !text.contains("thought"))));

    // What is expected decides, not the model.
    let eval =
        |more: &[&str]| run(emberd().args(["eval", "--model"]).arg(home()).arg("--cases").arg(&cases).args(more));
    let wrong = json!({"kind": "bad", "prompt": "tell me a joke", "expected": "something else"}).to_string();
    std::fs::write(&cases, &wrong).expect("cases");
    let report: Value = serde_json::from_str(&stdout(eval(&["--json"]))).expect("JSON");
    let said = &report["answers"][0]["answer"];
    let right = json!({"kind": "good", "prompt": "tell me a joke", "expected": said}).to_string();
    std::fs::write(&cases, format!("{right}\n{wrong}")).expect("cases");
    let report: Value = serde_json::from_str(&stdout(eval(&["--json"]))).expect("JSON");
    assert_eq!((&report["kinds"][0]["passed"], &report["kinds"][1]["passed"]), (&json!(1), &json!(0)), "{report}");
    let failed = eval(&["--at-least", "0.5"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("bad has 0.0000") && !said.contains("good"), "{said}");

    // What cannot be run is refused before anything runs, with its line.
    let refused = |text: &str, part: &str| {
        std::fs::write(&cases, text).expect("cases");
        let output = eval(&[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1) && said.contains("cases.jsonl: line 2: ") && said.contains(part),
            "{said}"
        );
    };
    let good = r#"{"prompt": "hi", "expected": "x"}"#;
    refused(&format!("{good}\n{{\"prompt\": 1}}"), "invalid type");
    refused(&format!("{good}\n{{\"messages\": [], \"expected\": \"x\"}}"), "messages");
    let long = json!({"prompt": "7".repeat(2000), "expected": "x"});
    refused(&format!("{good}\n{long}"), "1024");
}
