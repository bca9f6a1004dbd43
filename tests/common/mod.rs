//! A deterministic backend for tests, and daemons around it in processes of their own.
//!
//! The daemon under test is this very test binary, started again for its ignored test `daemon_child`: signals,
//! environment and exit codes are real, and nothing but the model is made up.
#![allow(dead_code, unreachable_pub)] // Every test program uses a part of this file.

pub mod binary;
pub mod broker;
pub mod peer;
pub mod proxy;
pub mod schema;
pub mod terminal;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use emberd::daemon::config::{self, Config, Sources};
use emberd::scheduler::backend::{
    Backend, Call, Finish, GenerateError, Input, InputError, ModelInfo, Outcome, Sampling, Step, Vocabulary,
};

/// Generous: the tests also run under emulation, several at a time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const CHILD: &str = "EMBERD_TEST_CHILD_CONFIG";

/// Polls until `found` gives something.
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < until, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A model that repeats what it is told. In the prompt,
///
/// - `@hold` lets it wait in the middle of the answer until the file `release` exists beside the journal,
/// - `@stall` does so without any step, as an engine that hangs would,
/// - `@slow` lets it take 10 ms for a word,
/// - `@think` lets it think first, `@long` makes a long answer, `@params` answers with the sampling parameters,
/// - `@call` makes it call the tool `set_light` twice, where there are tools,
/// - `@fail` makes it fail, `@refuse` makes the prompt unacceptable.
///
/// It notes every start and end in the journal.
pub(crate) struct Fake {
    info: ModelInfo,
    journal: PathBuf,
}

impl Fake {
    pub(crate) fn new(model: &config::Model) -> Fake {
        Fake {
            info: ModelInfo {
                name: model.name(),
                context: model.context,
                vocab: 0x11_0000,
                kernels: "fake".into(),
                threads: 1,
                kv: "int8".into(),
                vocabulary: Arc::new(Characters),
            },
            journal: model.path.clone(),
        }
    }

    fn note(&self, line: &str) {
        static WRITING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = WRITING.lock();
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.journal).unwrap();
        // In one piece: the daemon may be killed at any moment.
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn released(&self) -> bool {
        self.journal.with_file_name("release").exists()
    }
}

/// One token per character; U+10FFFF begins a text.
struct Characters;

impl Vocabulary for Characters {
    fn encode(&self, text: &str, begin: bool, _controls: bool) -> Vec<u32> {
        begin.then_some(char::MAX).into_iter().chain(text.chars()).map(u32::from).collect()
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        char::from_u32(id).map(|character| character.to_string().into_bytes())
    }
}

impl Backend for Fake {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// One token per character of all contents.
    fn encode(&self, input: &Input) -> Result<Vec<u32>, InputError> {
        let text = match input {
            Input::Raw(text) => text.clone(),
            Input::Chat { messages, .. } => {
                let contents = messages.as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap());
                contents.collect::<Vec<_>>().join("|")
            }
        };
        if text.contains("@refuse") {
            return Err(InputError::new("messages", "messages: the template refuses them"));
        }
        Ok(text.chars().map(u32::from).collect())
    }

    fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome, GenerateError> {
        let text: String = prompt.iter().filter_map(|&id| char::from_u32(id)).collect();
        self.note(&format!("start {text}"));
        let outcome = self.answer(&text, prompt.len(), sampling, on);
        self.note(&format!("end {text} {:?}", outcome.as_ref().map(|outcome| outcome.finish)));
        outcome
    }
}

impl Fake {
    fn answer(
        &self,
        text: &str,
        prompt_tokens: usize,
        sampling: &Sampling,
        on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome, GenerateError> {
        let most = sampling.max_tokens.expect("the scheduler always sets max_tokens");
        let mut outcome = Outcome {
            finish: Finish::Cancelled,
            prompt_tokens,
            cached_tokens: 0,
            broken_at: None,
            completion_tokens: 0,
            thought_tokens: 0,
            seed: sampling.seed.unwrap_or(42),
        };
        if text.contains("@form") {
            while !self.released() {
                std::thread::sleep(Duration::from_millis(5));
            }
            return Err(GenerateError::Input(InputError::new("grammar", "grammar: malformed")));
        }
        if on(Step::Begun).is_break() {
            return Ok(outcome);
        }
        for done in [prompt_tokens / 2, prompt_tokens] {
            if on(Step::Prefill { done, total: prompt_tokens }).is_break() {
                return Ok(outcome);
            }
        }
        if text.contains("@think") && on(Step::Thought("let me see")).is_break() {
            return Ok(outcome);
        }
        if sampling.calls && text.contains("@call") {
            let arguments = serde_json::json!({"room": "hall"}).as_object().cloned().unwrap_or_default();
            let call = Call { name: "set_light".into(), arguments };
            if on(Step::Call(&call)).is_break() || on(Step::Call(&call)).is_break() {
                return Ok(outcome);
            }
            outcome.completion_tokens = 2;
            outcome.finish = Finish::Stop;
            return Ok(outcome);
        }
        let answer = if text.contains("@long") {
            (0..5000).map(|n| format!("word{n} ")).collect()
        } else if text.contains("@params") {
            format!("{sampling:?}")
        } else {
            format!("You said: {text}")
        };
        for (at, word) in answer.split_inclusive(' ').enumerate() {
            if at == most {
                outcome.finish = Finish::Length;
                return Ok(outcome);
            }
            outcome.completion_tokens += 1;
            if on(Step::Text(word)).is_break() {
                return Ok(outcome);
            }
            if text.contains("@slow") {
                std::thread::sleep(Duration::from_millis(10));
            }
            while at == 0 && text.contains("@hold") && !self.released() {
                std::thread::sleep(Duration::from_millis(5));
                if on(Step::Tick).is_break() {
                    return Ok(outcome);
                }
            }
            if text.contains("@fail") {
                return Err(GenerateError::Engine("made to fail".into()));
            }
            while text.contains("@stall") && !self.released() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        outcome.finish = Finish::Stop;
        Ok(outcome)
    }
}

/// What the ignored test `daemon_child` of a test binary does: nothing, unless a test started it as a daemon.
pub(crate) fn daemon_child() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG).init();
    let sources = Sources { file: Some(file.into()), ..Sources::default() };
    let again = sources.clone();
    let result = Config::load(&sources).map_err(Into::into).and_then(|config| {
        emberd::daemon::serve(config, Box::new(move || Config::load(&again)), |config, _| {
            let model = &config.model;
            let fake = Fake::new(model);
            while model.path.with_file_name("loading").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if model.path.with_file_name("unloadable").exists() {
                return Err("made unloadable".into());
            }
            Ok(Box::new(fake))
        })
    });
    let code = result.map_or_else(
        |error| {
            eprintln!("{error}");
            error.code()
        },
        |()| 0,
    );
    std::process::exit(code.into());
}

/// A command that runs `program`, by the runner that cargo uses for another architecture.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let runner = if cfg!(target_arch = "aarch64") { "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER" } else { "" };
    match std::env::var(runner) {
        Ok(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().unwrap());
            command.args(words).arg(program.as_ref());
            command
        }
        Err(_) => Command::new(program.as_ref()),
    }
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) notify: UnixDatagram,
    child: Child,
}

impl Daemon {
    /// A daemon that is ready. `settings` are sections of its configuration.
    pub(crate) fn start(settings: &str) -> Daemon {
        Daemon::start_in(tempfile::tempdir().unwrap(), settings, &[])
    }

    pub(crate) fn start_in(dir: tempfile::TempDir, settings: &str, environment: &[(&str, &str)]) -> Daemon {
        let daemon = Daemon::launch(dir, settings, environment);
        daemon.wait_notified("READY=1");
        daemon
    }

    /// A daemon that was just started.
    pub(crate) fn launch(dir: tempfile::TempDir, settings: &str, environment: &[(&str, &str)]) -> Daemon {
        Daemon::launch_by(&[], dir, settings, environment)
    }

    /// As [`Daemon::launch`], by a command that runs another one in its place.
    pub(crate) fn launch_by(
        runner: &[String],
        dir: tempfile::TempDir,
        settings: &str,
        environment: &[(&str, &str)],
    ) -> Daemon {
        let at = |name: &str| dir.path().join(name);
        let socket = at("emberd.sock");
        let has = |section: &str| settings.contains(section);
        let mut config = settings.to_owned();
        if !has("[model]") {
            config.push_str("\n[model]\nname = \"fake\"\n");
        }
        if !has("[socket]") {
            config.push_str("\n[socket]\nmode = \"0600\"\n");
        }
        if !has("[spool]") {
            config.push_str("\n[spool]\nkeep_s = 1000\n");
        }
        let config = config
            .replace("[spool]", &format!("[spool]\npath = {:?}", at("spool.redb")))
            .replace("[model]", &format!("[model]\npath = {:?}", at("journal")))
            .replace("[socket]", &format!("[socket]\npath = {socket:?}"));
        fs::write(at("config.toml"), config).unwrap();
        let _ = fs::remove_file(at("notify"));
        let notify = UnixDatagram::bind(at("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(at("log")).unwrap();
        // A write beyond `limit_file_size` is an error, as on a full disk, and no signal.
        let plain = command(std::env::current_exe().unwrap());
        let mut command = Command::new("env");
        command.arg("--ignore-signal=XFSZ").args(runner).arg(plain.get_program()).args(plain.get_args());
        command.args(["--exact", "daemon_child", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(CHILD, at("config.toml")).env("NOTIFY_SOCKET", at("notify")).envs(environment.iter().copied());
        command.env_remove("WATCHDOG_PID");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Daemon { dir, socket, notify, child }
    }

    /// Waits until the daemon has told systemd a line that starts with `line`.
    pub(crate) fn wait_notified(&self, line: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length =
                self.notify.recv(&mut buffer).unwrap_or_else(|error| panic!("{line}: {error}\n{}", self.log()));
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if let Some(found) = message.lines().find(|found| found.starts_with(line)) {
                return found.to_owned();
            }
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn wait_logged(&self, words: &str) {
        wait_for(words, || self.log().contains(words).then_some(()));
    }

    /// What the fake model has done so far.
    pub(crate) fn journal(&self) -> String {
        fs::read_to_string(self.dir.path().join("journal")).unwrap_or_default()
    }

    pub(crate) fn wait_journal(&self, line: &str) {
        wait_for(line, || self.journal().lines().any(|found| found == line).then_some(()));
    }

    /// Lets go of those that hold.
    pub(crate) fn release(&self) {
        fs::write(self.dir.path().join("release"), "").unwrap();
    }

    pub(crate) fn hold_again(&self) {
        fs::remove_file(self.dir.path().join("release")).unwrap();
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its directory, for the next daemon.
    pub(crate) fn into_dir(mut self) -> tempfile::TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for("the daemon's end", || self.child.try_wait().unwrap())
    }

    pub(crate) fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends the daemon at once and keeps its directory.
    pub(crate) fn kill(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.into_dir()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request without waiting for its answer.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> Sent {
        self.send_with(method, path, "", body)
    }

    /// As [`Daemon::send`], with further lines of the head, each with its end.
    pub(crate) fn send_with(&self, method: &str, path: &str, head: &str, body: &str) -> Sent {
        Sent::new(self.connect(), method, path, head, body)
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> Response {
        Response::read(self.send(method, path, body))
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Response {
        self.request("POST", path, body)
    }

    /// A chat request with one user message and further fields.
    pub(crate) fn chat(&self, prompt: &str, fields: &str) -> String {
        format!(r#"{{"messages":[{{"role":"user","content":"{prompt}"}}]{fields}}}"#)
    }

    /// Requests that wait in the scheduler.
    pub(crate) fn waiting(&self) -> u64 {
        self.request("GET", "/healthz", "").json()["waiting"].as_u64().unwrap()
    }

    /// Whether nothing waits and nothing runs.
    pub(crate) fn idle(&self) -> bool {
        let health = self.request("GET", "/healthz", "").json();
        health["waiting"] == 0 && health["running"] == false
    }

    /// Lets those that say @hold hold (again).
    pub(crate) fn hold(&self) {
        let _ = fs::remove_file(self.dir.path().join("release"));
    }

    /// The largest file that the daemon may write from now on.
    pub(crate) fn limit_file_size(&self, bytes: u64) {
        let soft = if bytes == u64::MAX { "unlimited".to_owned() } else { bytes.to_string() };
        let pid = self.child.id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={soft}:unlimited")]).status();
        assert!(status.expect("prlimit of util-linux").success());
    }

    /// Waits until the scheduler has this many requests waiting.
    pub(crate) fn wait_waiting(&self, number: u64) {
        wait_for("the queue", || (self.request("GET", "/healthz", "").json()["waiting"] == number).then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log:\n{}", self.log());
        }
    }
}

/// An HTTP response, its body put together again.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    /// Whether the body ended as it should.
    pub(crate) complete: bool,
}

/// A request on its way, and where its answer comes from.
pub(crate) struct Sent {
    stream: UnixStream,
    method: String,
    path: String,
    body: String,
}

impl Sent {
    /// Sends a request, with further lines `head` of its head, each with its end.
    pub(crate) fn new(mut stream: UnixStream, method: &str, path: &str, head: &str, body: &str) -> Sent {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}Content-Length: {length}\r\n\r\n\
             {body}"
        );
        match stream.write_all(request.as_bytes()) {
            // Refused by its head alone: the answer is there to be read, the body went unread.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
        Sent::by_hand(stream, method, path, body)
    }

    /// What was written already.
    pub(crate) fn by_hand(stream: UnixStream, method: &str, path: &str, body: &str) -> Sent {
        Sent { stream, method: method.into(), path: path.into(), body: body.into() }
    }
}

impl std::ops::Deref for Sent {
    type Target = UnixStream;

    fn deref(&self) -> &UnixStream {
        &self.stream
    }
}

impl std::ops::DerefMut for Sent {
    fn deref_mut(&mut self) -> &mut UnixStream {
        &mut self.stream
    }
}

impl Response {
    /// Waits for the whole answer, which has to be as the document says.
    pub(crate) fn read(sent: Sent) -> Response {
        Response::read_on(sent, Vec::new())
    }

    /// As [`Response::read`], where `bytes` of it are read already.
    pub(crate) fn read_on(sent: Sent, bytes: Vec<u8>) -> Response {
        let response = Response::parse_on(sent.stream, bytes);
        schema::check(&sent.method, &sent.path, &sent.body, &response);
        response
    }

    /// Waits for the whole answer, whatever it says.
    pub(crate) fn parse(stream: UnixStream) -> Response {
        Response::parse_on(stream, Vec::new())
    }

    fn parse_on(mut stream: UnixStream, mut bytes: Vec<u8>) -> Response {
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, rest) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let (body, complete) =
            if head.contains("transfer-encoding: chunked") { unchunk(rest) } else { (rest.to_owned(), true) };
        Response { status, head, body, complete }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The lines of an SSE body.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.body.split("\n\n").filter(|event| !event.is_empty()).collect()
    }
}

fn unchunk(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        if more.len() < size + 2 {
            break;
        }
        body.push_str(&more[..size]);
        rest = &more[size + 2..];
    }
    (body, false)
}

/// The folder of reference data, `EMBERD_SHARED` or `../shared`. Without it tests that need it are skipped, but not in CI.
pub fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("EMBERD_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    if dir.join("golden").is_dir() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "{} with the reference data is missing", dir.display());
    println!("skipped: {} with the reference data is missing", dir.display());
    None
}
