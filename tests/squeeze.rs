//! A daemon whose control group gets smaller while it answers: it gives up what it can, says so, and lives.
//!
//! Needs the right to make a control group with a memory limit (version 1 or 2); without it nothing is tested, and the test
//! says so.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::binary::{emberd, run, stdout};
use common::wait_for;
use serde_json::json;

const MB: u64 = 1 << 20;

/// A group of its own, removed at the end.
struct Group {
    dir: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl Group {
    /// Below the group of this process, or below the root where that one may have no children with limits.
    fn new() -> Option<Group> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let below = |list: &str| {
            let line = own.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(list)?.strip_prefix(":/"));
            line.map(str::to_owned)
        };
        let v1 = ("/sys/fs/cgroup/memory", below("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes");
        let v2 = ("/sys/fs/cgroup", below(""), "memory.max", "memory.current");
        for (root, own, limit, usage) in [v1, v2] {
            for parent in [own.as_deref(), Some("")].into_iter().flatten() {
                let dir = Path::new(root).join(parent).join(format!("emberd-test-{}", std::process::id()));
                if fs::create_dir(&dir).is_err() {
                    continue;
                }
                let group = Group { dir, limit, usage };
                if group.dir.join(limit).exists() {
                    return Some(group);
                }
            }
        }
        None
    }

    fn set_limit(&self, bytes: u64) {
        fs::write(self.dir.join(self.limit), bytes.to_string())
            .expect("the kernel takes what is in use away, or fails");
    }

    /// Leaves its processes so many bytes besides what they use and cannot give back.
    fn leave(&self, bytes: u64) {
        let usage = fs::read_to_string(self.dir.join(self.usage)).expect("usage");
        let stat = fs::read_to_string(self.dir.join("memory.stat")).expect("memory.stat");
        let of = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map_or(0, |bytes| bytes.parse::<u64>().expect("bytes"))
        };
        let used: u64 = usage.trim().parse().expect("bytes");
        self.set_limit(used - of("active_file") - of("inactive_file") + bytes);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty a moment after its last process has gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// `emberd serve` in a group, its log in a file.
struct Squeezed {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Squeezed {
    fn start(dir: &Path, group: &Group, model: &Path, context: usize) -> Squeezed {
        let (socket, log, config) = (dir.join("socket"), dir.join("log"), dir.join("config.toml"));
        let text = format!(
            "[model]\npath = {}\ncontext = {context}\n[limits]\nmax_tokens = {context}\n[socket]\npath = {}\n\
             [spool]\npath = {}\n[governor]\ncalibrate = false\nreserve_mb = 64\n",
            json!(model),
            json!(socket),
            json!(dir.join("spool.redb")),
        );
        fs::write(&config, text).expect("config");
        let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(&group.dir).arg(env!("CARGO_BIN_EXE_emberd"));
        command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
        let child = command.stderr(File::create(&log).expect("log")).spawn().expect("sh");
        wait_for("the socket", || socket.exists().then_some(()));
        Squeezed { child, socket, log }
    }

    /// Waits for a line of the governor with all of `words`.
    fn says(&self, words: &[&str]) {
        wait_for(&format!("{words:?} in the log"), || {
            let log = fs::read_to_string(&self.log).ok()?;
            log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        });
    }

    fn ask(&self, prompt: &str) -> std::process::Output {
        run(emberd().args(["ask", "--max-tokens", "4", "--socket"]).arg(&self.socket).arg(prompt))
    }
}

impl Drop for Squeezed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A long answer that comes piece by piece.
struct Stream {
    received: Arc<Mutex<Received>>,
    connection: UnixStream,
}

#[derive(Default)]
struct Received {
    pieces: usize,
    ended: bool,
}

impl Stream {
    fn of(socket: &Path, tokens: usize) -> Stream {
        let mut connection = UnixStream::connect(socket).expect("the socket");
        let messages = json!([{"role": "user", "content": "Count."}]);
        let body = json!({"messages": messages, "max_tokens": tokens, "temperature": 0, "stream": true});
        let body = body.to_string();
        let length = body.len();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        write!(connection, "{head}Content-Length: {length}\r\n\r\n{body}").expect("sent");
        let received = Arc::new(Mutex::new(Received::default()));
        let shared = Arc::clone(&received);
        let from = connection.try_clone().expect("another descriptor");
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n') {
                let Ok(line) = line else { return };
                let mut received = shared.lock().expect("not poisoned");
                if line.starts_with(b"data: {") {
                    received.pieces += 1;
                } else if line.starts_with(b"data: [DONE]") {
                    received.ended = true;
                    return;
                }
            }
        });
        Stream { received, connection }
    }

    fn pieces(&self) -> usize {
        self.received.lock().expect("not poisoned").pieces
    }

    fn ended(&self) -> bool {
        self.received.lock().expect("not poisoned").ended
    }

    /// Takes the request back.
    fn close(self) {
        self.connection.shutdown(Shutdown::Both).expect("an open connection");
    }

    /// Pieces a second in the seconds that follow.
    fn rate(&self, seconds: u64) -> f64 {
        let before = self.pieces();
        std::thread::sleep(Duration::from_secs(seconds));
        (self.pieces() - before) as f64 / seconds as f64
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the emulator's own memory would be in the group")]
fn squeezed_while_it_answers_it_sheds_says_so_and_lives() {
    let Some(group) = Group::new() else {
        eprintln!("skipped: no memory control group can be made here");
        return;
    };
    let dir = tempfile::tempdir().expect("directory");
    let model = dir.path().join("model");
    stdout(run(emberd().args(["debug", "synth", "--shape", "tiny-e2b", "--out"]).arg(&model)));
    group.set_limit(512 * MB);
    let mut daemon = Squeezed::start(dir.path(), &group, &model, 20_000);
    assert!(daemon.ask("hi").status.success());

    let stream = Stream::of(&daemon.socket, 19_000);
    wait_for("the answer", || (stream.pieces() > 10).then_some(()));
    for (left, level) in [(90, "warm"), (35, "hot"), (6, "critical")] {
        group.leave(left * MB);
        daemon.says(&["governor", level, "memory"]);
    }
    let refused = daemon.ask("and me?");
    assert_eq!(refused.status.code(), Some(75), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("memory"));
    // What runs goes on.
    let so_far = stream.pieces();
    assert!(!stream.ended(), "the answer was too short to be squeezed");
    wait_for("more of the answer", || (stream.pieces() > so_far + 50 || stream.ended()).then_some(()));
    assert_eq!(daemon.child.try_wait().expect("its state"), None);
}

/// Weights that the kernel takes away while they are needed:
/// `EMBERD_SQUEEZE_MODEL=model cargo test --test squeeze storm -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: needs a large model, and minutes"]
fn an_eviction_storm() {
    let model = PathBuf::from(std::env::var_os("EMBERD_SQUEEZE_MODEL").expect("EMBERD_SQUEEZE_MODEL: a model"));
    let group = Group::new().expect("a memory control group");
    let dir = tempfile::tempdir().expect("directory");
    // Pages that are in memory already belong to whoever read them first.
    let file = File::open(if model.is_dir() { model.join("model.safetensors") } else { model.clone() }).expect("file");
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advice");
    group.set_limit(4096 * MB);
    let mut daemon = Squeezed::start(dir.path(), &group, &model, 1024);
    assert!(daemon.ask("hi").status.success());
    let stream = Stream::of(&daemon.socket, 900);
    wait_for("the answer", || (stream.pieces() > 3).then_some(()));
    println!("before: {:.2} pieces/s", stream.rate(10));
    group.leave(400 * MB);
    println!("the first seconds of it: {:.2} pieces/s", stream.rate(5));
    daemon.says(&["governor", "memory"]);
    println!("during: {:.2} pieces/s", stream.rate(20));
    let refused = daemon.ask("and me?");
    assert_eq!(refused.status.code(), Some(75), "{}", String::from_utf8_lossy(&refused.stderr));
    group.set_limit(4096 * MB);
    println!("after: {:.2} pieces/s", stream.rate(10));
    println!("the answer had {} pieces and goes on: {}", stream.pieces(), !stream.ended());
    stream.close();
    wait_for("admission", || daemon.ask("and now?").status.success().then_some(()));
    assert_eq!(daemon.child.try_wait().expect("its state"), None);
    println!("{}", fs::read_to_string(&daemon.log).expect("log"));
}
