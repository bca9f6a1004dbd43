//! Start-up, shutdown, systemd, configuration and the command line.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, PATIENCE, Response, wait_for};
use emberd::daemon::Config;
use emberd::daemon::config::Sources;
use nix::sys::signal::Signal;

#[test]
#[ignore = "started by the other tests as their daemon"]
fn daemon_child() {
    common::daemon_child();
}

/// The real binary, with a clean environment.
fn emberd(arguments: &[&str]) -> Command {
    let mut command = common::command(env!("CARGO_BIN_EXE_emberd"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn systemd_hears_of_loading_readiness_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let loading = dir.path().join("loading");
    fs::write(&loading, "").unwrap();
    let mut daemon = Daemon::launch(dir, "[limits]\ndrain_s = 300\n", &[]);
    daemon.wait_notified("STATUS=loading the model");
    daemon.wait_notified("EXTEND_TIMEOUT_USEC=");
    // Who comes early waits until the model is there.
    let early = daemon.send("GET", "/healthz", "");
    fs::remove_file(loading).unwrap();
    assert_eq!(Response::read(early).status, 200);
    daemon.wait_notified("READY=1");
    assert_eq!(daemon.post("/v1/prompt", "ready").body, "You said: ready");
    daemon.signal(Signal::SIGTERM);
    // In the same message as STOPPING=1: TimeoutStopSec= knows nothing of drain_s.
    assert_eq!(daemon.wait_notified("EXTEND_TIMEOUT_USEC="), "EXTEND_TIMEOUT_USEC=330000000");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.socket.exists());
}

#[test]
fn the_watchdog_is_fed_by_the_engine() {
    let environment = [("WATCHDOG_USEC", "3000000")];
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), "", &environment);
    // Idle, and busy.
    daemon.wait_notified("WATCHDOG=1");
    let _busy = daemon.send("POST", "/v1/prompt", "@hold");
    daemon.wait_journal("start @hold");
    daemon.wait_notified("WATCHDOG=1");
    daemon.wait_notified("WATCHDOG=1");
    daemon.release();
    daemon.wait_journal("end @hold Ok(Stop)");
    daemon.hold_again();
    // Hanging: silence comes, which a bare timer would never keep for four periods.
    let _hanging = daemon.send("POST", "/v1/prompt", "@stall");
    daemon.wait_journal("start @stall");
    daemon.notify.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let until = Instant::now() + PATIENCE;
    while daemon.notify.recv(&mut [0; 512]).is_ok() {
        assert!(Instant::now() < until, "fed although the engine hangs");
    }
}

#[test]
fn sigterm_lets_the_running_request_end_and_fails_the_waiting_ones() {
    let mut daemon = Daemon::start("");
    let running = daemon.send("POST", "/v1/prompt", "one @hold");
    daemon.wait_journal("start one @hold");
    let waiting = daemon.send("POST", "/v1/chat/completions", &daemon.chat("two", ""));
    daemon.wait_waiting(1);
    daemon.signal(Signal::SIGTERM);
    let waiting = Response::read(waiting);
    assert_eq!((waiting.status, &waiting.json()["error"]["code"]), (503, &"shutting_down".into()));
    assert_eq!(daemon.post("/v1/prompt", "three").status, 503);
    assert_eq!(daemon.request("GET", "/healthz", "").status, 503);
    daemon.release();
    assert_eq!(Response::read(running).body, "You said: one @hold");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn the_drain_limit_cuts_the_running_request() {
    let mut daemon = Daemon::start("[limits]\ndrain_s = 0\n");
    let running = daemon.send("POST", "/v1/chat/completions", &daemon.chat("@hold", ""));
    daemon.wait_journal("start @hold");
    daemon.signal(Signal::SIGINT);
    assert_eq!(Response::read(running).json()["error"]["code"], "shutting_down");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn sighup_takes_over_what_it_can_and_names_the_rest() {
    let mut daemon = Daemon::start("[limits]\ndrain_s = 300\n");
    let file = daemon.dir.path().join("config.toml");
    let config = fs::read_to_string(&file).unwrap();
    let write = |from: &str, to: &str| {
        let changed = config.replace(from, to);
        assert_ne!(config, changed);
        fs::write(&file, changed).unwrap();
    };
    write("drain_s = 300", "drain_s = 0\n[governor]\nset_point_c = 61.5\n[queue]\ndepth = 3");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_logged("configuration read again");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("read again")).unwrap();
    let (changed, waiting) = line.split_once("after_restart").unwrap();
    for key in ["governor.set_point_c", "limits.drain_s"] {
        assert!(changed.contains(key), "{line}");
    }
    assert!(waiting.contains("queue.depth") && !changed.contains("queue.depth"), "{line}");
    // Nothing of a wrong one counts.
    write("drain_s = 300", "drain_s = 77\n[queue]\ndepht = 3");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_logged("the old one stays");
    assert!(daemon.log().contains("depht"));
    // The new limit is the one that holds: the old one would be minutes.
    let running = daemon.send("POST", "/v1/chat/completions", &daemon.chat("@hold", ""));
    daemon.wait_journal("start @hold");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(Response::read(running).json()["error"]["code"], "shutting_down");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut daemon = Daemon::start("");
    let _running = daemon.send("POST", "/v1/prompt", "@hold");
    daemon.wait_journal("start @hold");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_notified("STOPPING=1");
    assert!(daemon.running());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(130));
}

#[test]
fn a_killed_daemon_leaves_a_socket_that_the_next_one_replaces() {
    let dir = Daemon::start("").kill();
    assert!(dir.path().join("emberd.sock").exists());
    let first = Daemon::start_in(dir, "", &[]);
    // And while it runs, nobody else gets it.
    let second_config = format!("[socket]\npath = {:?}\n", first.socket);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("c.toml"), second_config).unwrap();
    let output = emberd(&["serve", "--config", dir.path().join("c.toml").to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("another process is listening"), "{output:?}");
    assert_eq!(first.post("/v1/prompt", "mine").body, "You said: mine");
}

#[test]
fn a_model_that_cannot_be_used_is_a_configuration_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("unloadable"), "").unwrap();
    let mut daemon = Daemon::launch(dir, "", &[]);
    assert_eq!(daemon.wait().code(), Some(78));
    assert!(daemon.log().contains("made unloadable"));
    assert!(!daemon.socket.exists());
}

fn check_config(file: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, file).unwrap();
    let mut command = emberd(&["check-config", "--config", path.to_str().unwrap()]);
    command.args(arguments).envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn check_config_prints_what_takes_effect() {
    let output = check_config(
        "[mqtt]\nenabled = true\nnode = \"pi\"\n[model]\ncontext = 2048\n",
        &[("EMBERD__MODEL__CONTEXT", "8192"), ("EMBERD__MQTT__NODE", "7"), ("EMBERD_KERNELS", "scalar")],
        &["--socket", "/tmp/x.sock"],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = text(&output.stdout);
    for line in ["context = 8192", "enabled = true", "node = \"7\"", "path = \"/tmp/x.sock\"", "kv = \"int8\""] {
        assert!(printed.lines().any(|found| found == line), "{line}: {printed}");
    }
    // What it prints is a configuration that gives itself.
    let again = check_config(&printed, &[], &[]);
    assert_eq!(text(&again.stdout), printed);
}

#[test]
fn check_config_is_well_when_nobody_reads_it() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = emberd(&["check-config"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn configuration_errors_name_layer_key_and_range() {
    let twice = "[[prefix]]\nname = \"a\"\nsystem = \"x\"\n[[prefix]]\nname = \"a\"\nsystem = \"y\"\n";
    type Environment<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Environment<'_>, &[&str]); 29] = [
        ("[mqtt]\nhots = \"x\"\n", &[], &["config.toml", "hots"]),
        ("[metrics]\n", &[], &["config.toml", "metrics"]),
        ("[model\n", &[], &["config.toml"]),
        ("[queue]\ndepth = \"many\"\n", &[], &["config.toml", "depth"]),
        ("", &[("EMBERD__SOCKET__PAHT", "/x")], &["EMBERD__", "paht"]),
        ("[model]\ncontext = 3\n", &[], &["model.context", "16 to", "3"]),
        ("[model]\nkernels = \"sse\"\n", &[], &["model.kernels", "neondot", "sse"]),
        ("[model]\nkv = \"int4\"\n", &[], &["config.toml", "int4"]),
        ("[socket]\nmode = \"0999\"\n", &[], &["socket.mode", "0999"]),
        ("[mqtt]\nkeep_alive_s = 2\n", &[], &["mqtt.keep_alive_s", "5 to", "2"]),
        ("[mqtt]\nbase = \"a/req/b\"\n", &[], &["mqtt.base", "a/req/b"]),
        ("[mqtt]\nnode = \"a+\"\n", &[], &["mqtt.node", "a+"]),
        ("[mqtt]\nusername = \"u\"\npassword_file = \"/does/not/exist\"\n", &[], &["/does/not/exist"]),
        ("[mqtt]\nca_file = \"/x\"\n", &[], &["mqtt.tls", "true"]),
        ("[mqtt]\nhost = \"/run/broker\"\ntls = true\n", &[], &["mqtt.tls", "Unix socket"]),
        ("[mqtt]\ntls = true\nca_file = \"/does/not/exist\"\n", &[], &["TLS", "/does/not/exist"]),
        ("[mqtt]\ntls = true\ncert_file = \"/x\"\n", &[], &["mqtt.key_file", "cert_file"]),
        ("[mqtt.presets.a]\nsytem = \"x\"\n", &[], &["mqtt.presets.a", "sytem", "system"]),
        ("[mqtt.presets.a]\ntop_p = 7\n", &[], &["mqtt.presets.a", "top_p", "found 7"]),
        ("[[mqtt.clients]]\nnames = [\"a\"]\npreset = \"b\"\n", &[], &["mqtt.clients[0].preset", "b"]),
        ("[mqtt]\nnode = \"a\"\nshare = \"a\"\n", &[], &["mqtt.share", "node"]),
        ("[[mqtt.clients]]\nnames = [\"a/b\"]\n", &[], &["mqtt.clients[0].names", "a/b"]),
        ("[[mqtt.clients]]\nnames = [\"a\"]\npacket_bytes = 8\n", &[], &["mqtt.clients[0].packet_bytes", "64 to"]),
        ("[mqtt]\npassword_file = \"/does/not/exist\"\n", &[], &["mqtt.username"]),
        ("[[prefix]]\nname = \"a\"\n", &[], &["prefix[0].system", "tools_file"]),
        ("[[prefix]]\nname = \"../a\"\nsystem = \"x\"\n", &[], &["prefix[0].name", "../a"]),
        ("[[prefix]]\nname = \"a\"\nsystem = \"x\"\nsystem_file = \"y\"\n", &[], &["prefix[0].system_file"]),
        ("[[prefix]]\nname = \"a\"\nsystem = \"x\"\ntool_file = \"y\"\n", &[], &["tool_file"]),
        (twice, &[], &["prefix[1].name", "of no other"]),
    ];
    for (file, environment, words) in cases {
        let output = check_config(file, environment, &[]);
        assert_eq!(output.status.code(), Some(78), "{file} {environment:?}: {output:?}");
        for word in words {
            assert!(text(&output.stderr).contains(word), "{file} {environment:?}: {}", text(&output.stderr));
        }
    }
    assert_eq!(emberd(&["serve", "--config", "/does/not/exist.toml"]).output().unwrap().status.code(), Some(78));
    assert_eq!(emberd(&["serve", "--nonsense"]).output().unwrap().status.code(), Some(2));
}

/// The level of the log follows, in the shipped binary: the test's own daemon logs everything.
#[test]
fn sighup_changes_the_level_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let write = |level: &str| {
        let (socket, spool) = (at("emberd.sock"), at("spool.redb"));
        let config = format!(
            "[model]\npath = {model:?}\ncontext = 512\n[socket]\npath = {socket:?}\n[spool]\npath = {spool:?}\n\
             [governor]\ncalibrate = false\n[log]\nlevel = {level:?}\n"
        );
        fs::write(at("config.toml"), config).unwrap();
    };
    write("error");
    let config = at("config.toml");
    let mut command = emberd(&["serve", "--config", config.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::null()).stderr(fs::File::create(at("log")).unwrap()).spawn().unwrap();
    wait_for("the socket", || at("emberd.sock").exists().then_some(()));
    let process = nix::unistd::Pid::from_raw(child.id() as i32);
    // It listens before it is ready; what it is told then waits.
    let log = || fs::read_to_string(at("log")).unwrap();
    write("info");
    nix::sys::signal::kill(process, Signal::SIGHUP).unwrap();
    wait_for("the log", || log().contains("configuration read again").then_some(()));
    nix::sys::signal::kill(process, Signal::SIGTERM).unwrap();
    wait_for("the end", || child.try_wait().unwrap());
    assert!(log().contains("log.level") && log().contains("stopped"), "{}", log());
}

#[test]
fn the_password_is_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    fs::write(&file, "s3cr3t\n").unwrap();
    let output = check_config(&format!("[mqtt]\nusername = \"u\"\npassword_file = {file:?}\n"), &[], &[]);
    assert!(text(&output.stdout).contains("password: set") && !text(&output.stdout).contains("s3cr3t"));
}

#[test]
fn the_example_configuration_is_right_and_shows_the_built_in_values() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/config.toml");
    let load = |file: &std::path::Path| {
        Config::load(&Sources { file: Some(file.into()), environment: Some([].into()), flags: Vec::new() }).unwrap()
    };
    assert_eq!(load(example.as_ref()), Config::default());
    // Every key that is commented out parses too; those of the built-in values equal them.
    let text = fs::read_to_string(example).unwrap();
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    // The files for TLS are refused without it.
    assert!(uncommented.contains("\ntls = false\n"));
    file.as_file().write_all(uncommented.replace("\ntls = false\n", "\ntls = true\n").as_bytes()).unwrap();
    let mut shown = load(file.path());
    let examples = [
        "name",
        "group",
        "port",
        "ca_file",
        "cert_file",
        "key_file",
        "client_id",
        "username",
        "password_file",
        "node",
        "speeds_file",
    ];
    for key in examples {
        assert!(uncommented.contains(&format!("\n{key} = ")), "{key} is not in the example");
    }
    shown.model.name = None;
    shown.socket.group = None;
    shown.governor.speeds_file = None;
    shown.mqtt.tls = false;
    (shown.mqtt.port, shown.mqtt.ca_file, shown.mqtt.cert_file, shown.mqtt.key_file) = Default::default();
    (shown.mqtt.share, shown.mqtt.clients, shown.mqtt.presets, shown.prefix) = Default::default();
    (shown.mqtt.client_id, shown.mqtt.username, shown.mqtt.password_file, shown.mqtt.node) = Default::default();
    assert_eq!(shown, Config::default());
    let keys = |text: &str| text.lines().filter(|line| line.contains(" = ") && !line.starts_with("# ")).count();
    assert_eq!(keys(&uncommented), keys(&Config::default().to_toml()) + 21, "a key is missing in the example");
}

#[test]
fn status_and_top_show_the_running_daemon() {
    let daemon = Daemon::start("[model]\nname = \"tiny\"\n");
    assert!(ask(&daemon, &["hello"]).status.success());
    let look = |arguments: &[&str]| {
        let output = emberd(arguments)
            .args(["--socket", daemon.socket.to_str().unwrap()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let page = look(&["status"]);
    for part in ["tiny", "nominal", "1 answered", "none running, 0 waiting"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let value: serde_json::Value = serde_json::from_str(&look(&["status", "--json"])).unwrap();
    assert_eq!(value["requests"]["answered"], 1);
    let lines = look(&["top", "--count", "2", "--interval", "0.1"]);
    assert_eq!(lines.lines().filter(|line| line.contains("level=nominal") && line.contains(" answered=1 ")).count(), 2);
    let output = emberd(&["top", "--socket", "/does/not/exist"]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(emberd(&["top", "--interval", "0"]).output().unwrap().status.code(), Some(2));
}

fn ask(daemon: &Daemon, arguments: &[&str]) -> Output {
    emberd(&["ask", "--socket", daemon.socket.to_str().unwrap()]).args(arguments).output().unwrap()
}

#[test]
fn eval_asks_the_running_daemon() {
    let daemon = Daemon::start("");
    let cases = daemon.dir.path().join("cases");
    fs::write(&cases, "{\"prompt\": \"a\", \"expected\": \"You said: a\"}\n{\"prompt\": \"b\", \"expected\": \"c\"}\n")
        .unwrap();
    let eval = |more: &[&str]| emberd(&["eval", "--cases", cases.to_str().unwrap()]).args(more).output().unwrap();
    let socket = daemon.socket.to_str().unwrap();
    let output = eval(&["--socket", socket, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((&report["total"]["passed"], &report["total"]["cases"]), (&1.into(), &2.into()));
    assert_eq!((&report["model"], &report["answers"][1]["answer"]), (&"fake".into(), &"You said: b".into()));
    assert_eq!(eval(&["--socket", socket, "--at-least", "0.9"]).status.code(), Some(1));
    assert_eq!(eval(&["--socket", "/does/not/exist"]).status.code(), Some(69));
    assert_eq!(eval(&[]).status.code(), Some(2));
    assert_eq!(eval(&["--socket", socket, "--model", "x"]).status.code(), Some(2));
}

#[test]
fn ask_prints_the_answer() {
    let daemon = Daemon::start("");
    let output = ask(&daemon, &["--system", "be short", "why", "is", "it"]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("You said: be short|why is it\n", Some(0)));
    let output = ask(&daemon, &["--json", "--seed", "9", "--max-tokens", "2", "hi"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["choices"][0]["message"]["content"], &json["seed"]), (&"You said: ".into(), &9.into()));
    let mut child = emberd(&["ask", "--temperature", "0"])
        .env("EMBERD__SOCKET__PATH", &daemon.socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all("über stdin\n".as_bytes()).unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "You said: über stdin\n");
}

#[test]
fn ask_tells_failures_apart() {
    let daemon = Daemon::start("[queue]\ndepth = 0\n");
    let output = ask(&daemon, &["@refuse"]);
    assert_eq!(
        (output.status.code(), text(&output.stderr).contains("template refuses")),
        (Some(65), true),
        "{output:?}"
    );
    let output = ask(&daemon, &["--temperature", "7", "x"]);
    assert_eq!((output.status.code(), text(&output.stderr).contains("from 0 to 2")), (Some(65), true), "{output:?}");
    let _running = daemon.send("POST", "/v1/prompt", "@hold");
    daemon.wait_journal("start @hold");
    assert_eq!(ask(&daemon, &["x"]).status.code(), Some(75));
    let output = emberd(&["ask", "--socket", "/does/not/exist", "x"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).contains("emberd serve")), (Some(69), true), "{output:?}");
}

#[test]
fn interrupting_ask_takes_the_request_back() {
    let daemon = Daemon::start("");
    let mut child =
        emberd(&["ask", "--socket", daemon.socket.to_str().unwrap(), "@hold"]).stdout(Stdio::null()).spawn().unwrap();
    daemon.wait_journal("start @hold");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    daemon.wait_journal("end @hold Ok(Cancelled)");
    let status = wait_for("the end of ask", || child.try_wait().unwrap());
    assert!(status.code() == Some(130) || status.signal() == Some(2), "{status:?}");
}

/// That `program` finds nothing wrong with `file`; skipped, except in CI, where there is no such program.
fn accepts(program: &str, args: &[&str], file: &Path) {
    let output = Command::new(program).args(args).arg(file).output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "{program} is missing");
            println!("skipped: {program} is missing");
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
fn shells_and_man_take_what_is_made_for_them() {
    let dir = tempfile::tempdir().unwrap();
    for (shell, flag) in [("bash", "--max-tokens"), ("zsh", "--max-tokens"), ("fish", "max-tokens")] {
        let script = text(&emberd(&["completions", shell]).output().unwrap().stdout);
        assert!(script.contains(flag) && script.contains("check-config"), "{shell}");
        let file = dir.path().join(shell);
        fs::write(&file, script).unwrap();
        accepts(shell, &["-n"], &file);
    }
    let pages = dir.path().join("man");
    assert!(emberd(&["man", pages.to_str().unwrap()]).output().unwrap().status.success());
    let help = text(&emberd(&["--help"]).output().unwrap().stdout);
    let commands = help.split_once("Commands:").unwrap().1.split_once("Options:").unwrap().0;
    let names = commands.lines().filter_map(|line| line.split_whitespace().next());
    let names: Vec<&str> = names.filter(|name| *name != "help").collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let file = pages.join(format!("emberd-{name}.1"));
        let page = fs::read_to_string(&file).unwrap();
        assert!(page.contains(&format!(".TH EMBERD-{} 1", name.to_uppercase())), "{name}: {page}");
        accepts("mandoc", &["-T", "lint", "-W", "error"], &file);
    }
    assert!(fs::read_to_string(pages.join("emberd.1")).unwrap().contains("Exit codes"));
    for name in ["ask", "chat", "cancel", "status", "top"] {
        let page = fs::read_to_string(pages.join(format!("emberd-{name}.1"))).unwrap();
        let told = |code: &str, words: &str| page.lines().any(|line| line.contains(code) && line.contains(words));
        assert!(told("66 ", "(410)") && told("75 ", "(409)"), "{name}: {page}");
    }
}

#[test]
fn help_and_version() {
    let output = emberd(&["--help"]).output().unwrap();
    for word in ["serve", "check-config", "ask", "Exit codes", "EMBERD__SECTION__KEY"] {
        assert!(text(&output.stdout).contains(word), "{word}");
    }
    let version = emberd(&["--version"]).output().unwrap();
    assert_eq!(text(&version.stdout), format!("emberd {}\n", env!("CARGO_PKG_VERSION")));
}
