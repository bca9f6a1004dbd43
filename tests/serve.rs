//! The shipped binary with a real (random) model behind both doors: what a user runs, end to end.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::binary::{Served, emberd, run, stdout};
use common::broker::Broker;
use serde_json::{Value, json};

fn model(dir: &Path, shape: &str) -> PathBuf {
    let model = dir.join(shape);
    stdout(run(emberd().args(["debug", "synth", "--shape", shape, "--out"]).arg(&model)));
    model
}

#[test]
fn both_doors_give_the_models_answer() {
    let dir = tempfile::tempdir().expect("directory");
    let model = model(dir.path(), "tiny-e2b");
    let broker = Broker::start();
    let served = Served::start(dir.path(), &model, &broker.settings(""), &[]);

    let streamed = served.ask("Is the window open?", &[]);
    let whole: Value = serde_json::from_str(&served.ask("Is the window open?", &["--json"])).expect("JSON");
    let text = whole["choices"][0]["message"]["content"].as_str().expect("content");
    assert!(!text.is_empty());
    assert_eq!(streamed.trim_end_matches('\n'), text.trim_end_matches('\n'));
    assert!(whole["usage"]["completion_tokens"].as_u64().is_some_and(|n| (1..=24).contains(&n)), "{whole}");

    // The same over MQTT, with mosquitto's own programs as the device. The state is retained, so waiting for it waits
    // for the daemon.
    let port = broker.port.to_string();
    let subscribe = |topic: &str| {
        let mut command = Command::new("mosquitto_sub");
        command.args(["-V", "5", "-h", "127.0.0.1", "-p", &port, "-W", "100", "-t", topic]).stdout(Stdio::piped());
        command
    };
    let online = run(subscribe("emberd/n/state").args(["-C", "1"]));
    assert_eq!(String::from_utf8_lossy(&online.stdout).trim(), "online");
    let request = json!({"prompt": "Is the window open?", "temperature": 0, "max_tokens": 24}).to_string();
    let rr = Command::new("mosquitto_rr")
        .args(["-V", "5", "-h", "127.0.0.1", "-p", &port, "-W", "100", "-q", "1"])
        .args(["-t", "emberd/n/req/device/1", "-e", "emberd/n/res/device/1", "-m", &request])
        .output()
        .expect("mosquitto_rr is needed for this test (Debian package mosquitto-clients)");
    let answer: Value = serde_json::from_slice(&rr.stdout).expect("JSON answer");
    assert_eq!(answer["text"], text, "{answer}");

    served.stop();
}

/// Threads, instruction sets and a restart change no answer; greedy and seeded answers repeat.
#[test]
fn answers_do_not_depend_on_the_machine() {
    let dir = tempfile::tempdir().expect("directory");
    let model = model(dir.path(), "tiny-e4b");
    let seeded = ["--temperature", "0.9", "--seed", "5"];
    let ask_seeded = |served: &Served| {
        stdout(run(emberd().args(["ask", "--socket"]).arg(&served.socket).args(seeded).args([
            "--max-tokens",
            "9",
            "hi",
        ])))
    };
    let first = Served::start(dir.path(), &model, "", &[]);
    let greedy = first.ask("2+2?", &["--system", "Answer in one word."]);
    let drawn = ask_seeded(&first);
    assert_eq!(drawn, ask_seeded(&first));
    first.stop();
    let second =
        Served::start(dir.path(), &model, "", &[("EMBERD_KERNELS", "scalar"), ("EMBERD__MODEL__THREADS", "3")]);
    assert_eq!(greedy, second.ask("2+2?", &["--system", "Answer in one word."]));
    assert_eq!(drawn, ask_seeded(&second));
    second.stop();
}

#[test]
fn a_prompt_that_is_too_long_is_refused_with_the_limit() {
    let dir = tempfile::tempdir().expect("directory");
    let served = Served::start(dir.path(), &model(dir.path(), "tiny-e2b"), "", &[]);
    let refused = |bytes: usize| {
        let file = dir.path().join("prompt");
        fs::write(&file, "a ".repeat(bytes / 2)).expect("prompt");
        let mut command = emberd();
        command.args(["ask", "--socket"]).arg(&served.socket).stdin(fs::File::open(file).expect("prompt"));
        let output = run(&mut command);
        assert_eq!(output.status.code(), Some(65));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Longer than the body may be, and longer than the context.
    let said = refused(3_000_000);
    assert!(said.contains("262144"), "{said}");
    let said = refused(20_000);
    assert!(said.contains("512"), "{said}");
    served.stop();
}

#[cfg(feature = "demo")]
#[test]
fn the_demo_asks_through_both_doors() {
    let output = stdout(run(emberd().args(["demo", "--once", "--max-tokens", "8"])));
    for part in ["socket    > ", "MQTT      > ", "tokens/s answer", "kernels   "] {
        assert!(output.contains(part), "{part}: {output}");
    }
}

#[test]
fn a_model_that_cannot_be_used_is_refused_with_its_file() {
    let dir = tempfile::tempdir().expect("directory");
    let model = model(dir.path(), "tiny-e2b");
    let config = dir.path().join("config.toml");
    fs::write(&config, "").expect("config");
    let refused = |environment: &[(&str, &str)], model: &Path| {
        let socket = dir.path().join("refused.sock");
        let output = run(emberd()
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--model")
            .arg(model)
            .arg("--socket")
            .arg(&socket)
            .envs(environment.iter().copied()));
        assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!socket.exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&[("EMBERD_KERNELS", "sse2")], &model);
    assert!(said.contains("sse2") && said.contains("scalar"), "{said}");
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() - 1]).expect("shorter");
    let said = refused(&[], &model);
    assert!(said.contains("model.safetensors"), "{said}");
    fs::remove_file(&weights).expect("removed");
    let said = refused(&[], &model);
    assert!(said.contains("model.safetensors"), "{said}");
}

#[test]
fn the_parts_can_be_run_one_by_one() {
    let dir = tempfile::tempdir().expect("directory");
    let model = model(dir.path(), "tiny-e2b");
    let page = stdout(run(emberd().arg("inspect").arg(&model)));
    assert!(page.contains("weights read per token") && page.contains("4 bits"), "{page}");
    let report: Value =
        serde_json::from_str(&stdout(run(emberd().args(["inspect", "--json"]).arg(&model)))).expect("JSON");
    assert_eq!(report["vocab_size"], 512);

    let (tokens, logits) = (dir.path().join("tokens.json"), dir.path().join("logits.safetensors"));
    fs::write(&tokens, "[2, 7, 300, 9, 511]").expect("tokens");
    let write = |batch: &str| {
        let command = &mut emberd();
        command.args(["debug", "logits", "--kv", "f32", "--batch", batch, "--model"]).arg(&model);
        stdout(run(command.arg("--tokens").arg(&tokens).arg("--out").arg(&logits)));
        fs::read(&logits).expect("logits")
    };
    let bytes = write("1");
    assert!(bytes == write("3"));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(file.tensor("logits").expect("logits").shape(), [5, 512]);
    fs::write(&tokens, "[2, 512]").expect("tokens");
    let refused = run(emberd()
        .args(["debug", "logits", "--model"])
        .arg(&model)
        .arg("--tokens")
        .arg(&tokens)
        .args(["--out", "/dev/null"]));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("token 512"));

    let bench = |more: &[&str]| {
        let command = &mut emberd();
        command.args(["bench", "--prompt", "20", "--generate", "3", "--repetitions", "2", "--model"]).arg(&model);
        run(command.args(more))
    };
    let found: Value =
        serde_json::from_str(&stdout(bench(&["--json", "--context", "9", "--threads", "2", "--verify", "1,4"])))
            .expect("JSON");
    for spread in ["prefill_tok_s", "decode_tok_s", "first_token_ms"] {
        let [min, median, max] = ["min", "median", "max"].map(|name| found[spread][name].as_f64().expect(spread));
        assert!(0.0 < min && min <= median && median <= max, "{found}");
    }
    assert_eq!(found["verify_ms"].as_object().map(|ms| ms.len()), Some(2), "{found}");
    assert!(["1", "4"].iter().all(|n| found["verify_ms"][n]["min"].as_f64() > Some(0.0)), "{found}");
    for figure in ["read_bandwidth_gb_s", "decode_bandwidth_share", "peak_gmac_s", "prefill_peak_share", "ready_ms"] {
        assert!(found[figure].as_f64().is_some_and(|x| x > 0.0), "{figure}: {found}");
    }
    assert!(found["rss_mb"].as_f64() >= found["anon_mb"].as_f64() && found["threads"] == 2, "{found}");
    assert_eq!(
        found["bytes_per_token"],
        report["weights_per_token"].as_u64().expect("bytes") + report["scales_per_token"].as_u64().expect("bytes")
    );
    let page = stdout(bench(&["--verify", "3"]));
    assert!(page.contains("can be read here") && page.contains("3 guesses checked"), "{page}");
    assert_eq!(bench(&["--verify", "129"]).status.code(), Some(2));
    assert_eq!(bench(&["--context", "1000000"]).status.code(), Some(2));

    let text = dir.path().join("text");
    fs::write(&text, "the quick brown fox ".repeat(40)).expect("text");
    let command = &mut emberd();
    command.args(["perplexity", "--json", "--context", "64", "--model"]).arg(&model).arg("--text").arg(&text);
    let found: Value = serde_json::from_str(&stdout(run(command))).expect("JSON");
    assert_eq!(found["tokens"], 800);
    assert!(found["perplexity"].as_f64().is_some_and(|p| p > 1.0), "{found}");
}

/// The service manager holds the socket: a client that comes before the daemon is answered, and the file outlives it.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "systemd-socket-activate starts programs of its own machine only")]
fn a_socket_of_the_service_manager_outlives_the_daemon() {
    let dir = tempfile::tempdir().expect("directory");
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let (socket, config) = (dir.path().join("passed.sock"), dir.path().join("config.toml"));
    let elsewhere = dir.path().join("other.sock");
    let text = format!("[model]\npath = {}\n[socket]\npath = {}\nmode = \"0600\"\n", json!(home), json!(elsewhere));
    fs::write(&config, text).expect("config");
    // Passes the socket on at the first connection and becomes the daemon.
    let activated = Command::new("systemd-socket-activate")
        .arg("-l")
        .arg(&socket)
        .args([env!("CARGO_BIN_EXE_emberd"), "serve", "--config"])
        .arg(&config)
        .stderr(Stdio::piped())
        .spawn()
        .expect("systemd-socket-activate is needed for this test (Debian package systemd)");
    common::wait_for("the socket", || socket.exists().then_some(()));
    let ask =
        || run(emberd().args(["ask", "--temperature", "0", "--socket"]).arg(&socket).arg("turn on the hall light"));
    assert!(stdout(ask()).contains("hall"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(activated.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .expect("still running");
    let ended = activated.wait_with_output().expect("ends");
    assert_eq!(ended.status.code(), Some(0));
    let log = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(log.contains("socket.path is not where the service manager listens"), "{log}");
    assert!(log.contains("socket.mode and socket.group have no effect"), "{log}");
    assert!(socket.exists() && !elsewhere.exists());
}
