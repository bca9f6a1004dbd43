//! Many clients of the socket at once, some of them rude: nobody is forgotten, and memory stays as it is.
#![cfg(target_arch = "x86_64")] // what is shown has nothing to do with the CPU, and emulation takes its time

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::binary::{Served, emberd, run, stdout};
use serde_json::{Value, json};

const CLIENTS: usize = 16;

/// Longest that one request may take, the queue before it included.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of the requests.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicUsize,
    busy: AtomicUsize,
    refused: AtomicUsize,
    hung_up: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn get(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    stream
}

fn http(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// A request that can be answered.
fn good(random: &mut fastrand::Rng) -> String {
    let prompt = ["dim the hall lights to 30", "is it warm?", "close the blinds", "tell me a joke"][random.usize(..4)];
    let tokens = random.usize(1..12);
    let chat = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens});
        body.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        http("POST", "/v1/chat/completions", &body.to_string())
    };
    match random.usize(..10) {
        0..=2 => chat(json!({"seed": random.u32(..)})),
        3..=5 => chat(json!({"stream": true, "stream_options": {"include_usage": true}})),
        6 => chat(json!({"response_format": {"type": "choice", "choice": ["on", "off"]}})),
        7 => http("POST", &format!("/v1/prompt?max_tokens={tokens}"), prompt),
        8 => http("GET", ["/v1/models", "/healthz", "/v1/status", "/metrics"][random.usize(..4)], ""),
        _ => chat(json!({"temperature": 0})),
    }
}

/// A request that has to be refused.
fn bad(random: &mut fastrand::Rng) -> String {
    match random.usize(..7) {
        0 => http("POST", "/v1/chat/completions", "{\"messages\": ["),
        1 => http("POST", "/v1/chat/completions", r#"{"messages": 7}"#),
        2 => http("POST", "/v1/chat/completions", &"[".repeat(5000)),
        3 => http("DELETE", "/v1/chat/completions", ""),
        4 => http("GET", "/no/such/path", ""),
        5 => "\u{16}\u{3}\u{1} not HTTP at all\r\n\r\n".to_owned(),
        _ => http("POST", "/v1/prompt?max_tokens=none", "hello"),
    }
}

fn one(socket: &Path, random: &mut fastrand::Rng, tally: &Tally) {
    let mut stream = connect(socket);
    let malformed = random.usize(..10) == 0;
    let request = if malformed { bad(random) } else { good(random) };
    if random.usize(..3) == 0 {
        // In the middle of the request, while it waits, or in the middle of the answer.
        let sent = if random.bool() { request.len() } else { random.usize(..request.len()) };
        let _ = stream.write_all(&request.as_bytes()[..sent]);
        if sent == request.len() && random.bool() {
            let _ = stream.read(&mut [0; 16]);
        } else {
            std::thread::sleep(Duration::from_millis(random.u64(..30)));
        }
        if random.bool() {
            let _ = stream.shutdown(Shutdown::Write);
        }
        return count(&tally.hung_up);
    }
    let mut answer = Vec::new();
    // Who is refused may be cut off while it still writes.
    let _ = stream.write_all(request.as_bytes());
    let read = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(read.is_ok() || malformed, "{request}\n{read:?}\n{answer}");
    let status: u16 = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    match status {
        400..=499 if malformed => count(&tally.refused),
        503 => {
            assert!(answer.to_lowercase().contains("retry-after"), "{answer}");
            count(&tally.busy);
        }
        200 if !malformed => {
            assert!(!answer.contains("text/event-stream") || answer.contains("data: [DONE]"), "{answer}");
            count(&tally.answered);
        }
        _ => panic!("status {status} for {request}\n{answer}"),
    }
}

fn soak(served: &Served, requests: usize, seed: u64) -> Tally {
    let (tally, left) = (Tally::default(), AtomicUsize::new(requests));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (tally, left, socket) = (&tally, &left, &served.socket);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed + client as u64);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    one(socket, &mut random, tally);
                }
            });
        }
    });
    tally
}

/// `None` while too many connections are open.
fn status(served: &Served) -> Option<Value> {
    let output = run(emberd().args(["status", "--json", "--socket"]).arg(&served.socket));
    (output.status.code() != Some(75)).then(|| serde_json::from_str(&stdout(output)).expect("JSON"))
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number")
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count()
}

/// Waits until nothing runs, nothing waits and every connection is closed; how long that took.
fn settle(served: &Served, files: usize) -> Duration {
    let began = Instant::now();
    loop {
        let now = status(served).unwrap_or_default();
        if now["running"] == false && now["waiting"] == 0 && open_files(served.pid()) <= files {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "{} descriptors, {files} before: {now}", open_files(served.pid()));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn run_soak(requests: usize) {
    let dir = tempfile::tempdir().expect("directory");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let environment = [("EMBERD__SOCKET__MAX_CONNECTIONS", "14"), ("EMBERD__SOCKET__HEADER_TIMEOUT_S", "2")];
    let served = Served::start(dir.path(), &model, "[queue]\ndepth = 8\n", &environment);
    // The first requests bring the arenas and the grammar's tables to their size.
    soak(&served, requests / 4, 1);
    settle(&served, usize::MAX);
    std::thread::sleep(Duration::from_millis(200));
    let (files, before) = (open_files(served.pid()), resident(served.pid()));
    let tally = soak(&served, requests - requests / 4, 100);
    let took = settle(&served, files);
    let after = resident(served.pid());
    println!("{requests} requests: {tally:?}; anonymous memory {before} kB, then {after} kB; idle after {took:?}");
    // Every kind came to its turn, and nothing was lost between them.
    for counter in [&tally.answered, &tally.busy, &tally.refused, &tally.hung_up] {
        assert!(get(counter) > 0, "{tally:?}");
    }
    assert!(after < before + 4096, "{before} kB, then {after} kB");
    assert_eq!(status(&served).expect("a report")["status"], "ok");
    served.stop();
}

#[test]
fn rude_clients_delay_nobody_for_ever() {
    run_soak(400);
}

/// `cargo test --release --test soak -- --ignored --nocapture`
#[test]
#[ignore = "takes a minute or more"]
fn two_thousand_requests() {
    run_soak(2000);
}

/// Processor time of all threads so far.
fn computed(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let nanoseconds = tasks.flatten().map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanoseconds.sum())
}

#[test]
fn an_idle_daemon_takes_less_than_half_a_percent() {
    let dir = tempfile::tempdir().expect("directory");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let broker = common::broker::Broker::start();
    let served = Served::start(dir.path(), &model, &broker.settings(""), &[]);
    served.ask("is it warm?", &[]);
    // What follows an answer is over.
    std::thread::sleep(Duration::from_secs(2));
    let (then, began) = (computed(served.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(6));
    let share = (computed(served.pid()) - then).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("idle: {:.3} % of a core", 100.0 * share);
    assert!(share < 0.005, "{:.3} % of a core", 100.0 * share);
    served.stop();
}
