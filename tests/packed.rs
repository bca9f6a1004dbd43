//! `emberd serve` with a directory as its model and a state directory: it packs once.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::binary::{emberd, run, stdout};
use common::{PATIENCE, wait_for};
use emberd::engine::checkpoint::synth::{self, Shape};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.synth("tiny", "1");
        fs::create_dir(place.at("state")).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn synth(&self, name: &str, seed: &str) {
        let args = ["debug", "synth", "--shape", "tiny-e2b", "--seed", seed, "--out"];
        stdout(run(emberd().args(args).arg(self.at(name))));
    }

    /// The daemon's command, with the model `name`.
    fn serve(&self, name: &str, more: &str) -> Command {
        let config = format!(
            "[model]\npath = {}\ncontext = 256\n{more}\n[socket]\npath = {}\n[spool]\npath = {}\n[governor]\ncalibrate = false\n",
            json!(self.at(name)),
            json!(self.at("sock")),
            json!(self.at("spool.redb")),
        );
        fs::write(self.at("config.toml"), config).unwrap();
        let mut command = emberd();
        command.arg("serve").arg("--config").arg(self.at("config.toml")).env("STATE_DIRECTORY", self.at("state"));
        command
    }

    fn start(&self, mut command: Command) -> Child {
        let log = fs::File::create(self.at("log")).unwrap();
        let _ = fs::remove_file(self.at("sock"));
        command.stderr(log).stdout(Stdio::null()).spawn().unwrap()
    }

    /// Runs the daemon until it has answered; what it logged.
    fn answer(&self, name: &str, more: &str) -> (String, String) {
        let mut child = self.start(self.serve(name, more));
        wait_for("the daemon", || {
            assert!(child.try_wait().unwrap().is_none(), "{}", self.log());
            self.log().contains("serving").then_some(())
        });
        let said = stdout(run(emberd()
            .args(["ask", "--temperature", "0", "--max-tokens", "8", "--socket"])
            .arg(self.at("sock"))
            .arg("hi")));
        terminate(&child);
        assert!(child.wait().unwrap().success());
        (said, self.log())
    }

    /// Starts the daemon with the model `name` and collects what it tells the service manager until it is ready: when, and what.
    fn told(&self, mut command: Command) -> (Child, Vec<(Duration, String)>) {
        let _ = fs::remove_file(self.at("notify"));
        let notify = UnixDatagram::bind(self.at("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        command.env("NOTIFY_SOCKET", self.at("notify"));
        let (began, child) = (Instant::now(), self.start(command));
        let (mut told, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let length = notify.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}: {told:?} {}", self.log()));
            let message = String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned();
            let ready = message.starts_with("READY=1");
            told.push((began.elapsed(), message));
            if ready {
                return (child, told);
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    /// Names in the directory of copies.
    fn copies(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.at("state/packed")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// The only copy there is, which is what `emberd pack` makes of the model `name`.
    fn only(&self, name: &str) -> String {
        let copies = self.copies();
        let [copy] = &copies[..] else { panic!("{copies:?}") };
        let expected = self.at("expected.ember");
        stdout(run(emberd().args(["pack", "--force"]).args([&self.at(name), &expected])));
        assert!(fs::read(expected).unwrap() == fs::read(self.at("state/packed").join(copy)).unwrap(), "{copy}");
        copy.clone()
    }
}

fn terminate(child: &Child) {
    let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
}

#[test]
fn a_directory_is_packed_once_and_again_when_it_changes() {
    let place = Place::new();
    place.answer("tiny", "pack = false");
    assert!(place.copies().is_empty());
    let (said, log) = place.answer("tiny", "");
    assert!(log.contains("packing the model, once") && log.contains("packed"), "{log}");
    let first = place.only("tiny");
    assert!(first.starts_with("tiny-") && log.contains("model=\"tiny\""), "{first} {log}");
    let mode = fs::metadata(place.at("state/packed")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    // The copy is used, and says the same; so does the directory itself.
    let written = fs::metadata(place.at("state/packed").join(&first)).unwrap().modified().unwrap();
    let (again, log) = place.answer("tiny", "");
    assert!(again == said && !log.contains("packing"), "{log}");
    assert_eq!(fs::metadata(place.at("state/packed").join(&first)).unwrap().modified().unwrap(), written);
    let (plain, log) = place.answer("tiny", "pack = false");
    assert!(plain == said && !log.contains("packing"), "{log}");
    assert_eq!(place.only("tiny"), first, "for when it is used again");

    // Another file of the directory, with the same weights.
    let tokenizer = place.at("tiny/tokenizer.json");
    fs::write(&tokenizer, format!("{}\n", fs::read_to_string(&tokenizer).unwrap())).unwrap();
    let (_, log) = place.answer("tiny", "");
    assert!(log.contains("packing the model, once"), "{log}");
    assert_ne!(place.only("tiny"), first);
    let (_, log) = place.answer("tiny", "");
    assert!(!log.contains("packing"), "{log}");
    // Other weights of the same size.
    let before = place.only("tiny");
    place.synth("other", "2");
    fs::copy(place.at("other/model.safetensors"), place.at("tiny/model.safetensors")).unwrap();
    let (other, log) = place.answer("tiny", "");
    assert!(other != said && log.contains("packing the model, once"), "{log}");
    assert_ne!(place.only("tiny"), before);
    // Another model takes its place; what is no copy stays.
    let foreign = place.at("state/packed/notes");
    fs::write(&foreign, "").unwrap();
    place.answer("other", "");
    fs::remove_file(foreign).unwrap();
    assert!(place.only("other").starts_with("other-"));
}

/// As `emberd model use` leaves it: a link. What it leads to gives the copy its name; a packed model is served from where it is.
#[test]
fn a_link_is_followed_and_a_packed_model_is_not_packed() {
    let place = Place::new();
    symlink(place.at("tiny"), place.at("model")).unwrap();
    let (said, _) = place.answer("model", "");
    let copy = place.only("tiny");
    assert!(copy.starts_with("tiny-"), "{copy}");
    let (_, log) = place.answer("tiny", "");
    assert!(!log.contains("packing"), "{log}");

    fs::remove_file(place.at("model")).unwrap();
    symlink(place.at("expected.ember"), place.at("model")).unwrap();
    let (again, log) = place.answer("model", "");
    assert!(again == said && !log.contains("packing"), "{log}");
    assert_eq!(place.copies(), [copy]);
}

#[test]
fn systemd_hears_of_the_packing_and_gives_loading_its_time() {
    let place = Place::new();
    let (mut child, told) = place.told(place.serve("tiny", ""));
    child.kill().unwrap();
    child.wait().unwrap();
    let at = |words: &str| {
        told.iter().position(|(_, message)| message == words).unwrap_or_else(|| panic!("{words}: {told:?}"))
    };
    let packed = at("STATUS=packing the model, 100 %\nEXTEND_TIMEOUT_USEC=30000000");
    let loading = at("STATUS=loading the model\nEXTEND_TIMEOUT_USEC=900000000");
    assert!(packed < loading && told.last().unwrap().1.contains("STATUS=serving the socket"), "{told:?}");

    // There is nothing to pack any more, and nothing is said of it.
    let (mut child, told) = place.told(place.serve("tiny", ""));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!told.iter().any(|(_, message)| message.contains("packing") || message.contains("=900000000")), "{told:?}");
}

/// A disk that takes 16 MB in 11 seconds: every wait for it is made longer.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs strace")]
fn systemd_waits_for_a_slow_disk() {
    let place = Place::new();
    let shape = Shape { vocab_size: 190_000, ..Shape::named("tiny-e2b").unwrap() };
    synth::write(&shape, 1, &place.at("large")).unwrap();
    let slowly = |waits: u32| {
        let serve = place.serve("large", "");
        let mut command = Command::new("strace");
        // The child is the daemon, and strace is beside it.
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e"]);
        command.arg(format!("inject=fdatasync:delay_enter=11000000:when=1..{waits}"));
        command.arg(serve.get_program()).args(serve.get_args()).env("STATE_DIRECTORY", place.at("state"));
        command
    };
    // Told to stop meanwhile, it does not wait, and leaves nothing that looks whole.
    let mut child = place.start(slowly(1));
    wait_for("the packing", || place.copies().iter().any(|name| name.contains(".partial-")).then_some(()));
    terminate(&child);
    assert!(child.wait().unwrap().success(), "{}", place.log());
    assert!(place.log().contains("stopped while the model was loading"), "{}", place.log());
    let left = place.copies();
    assert!(left.len() == 1 && left[0].contains(".partial-"), "{left:?}");

    let (mut child, told) = place.told(slowly(2));
    terminate(&child);
    assert!(child.wait().unwrap().success());
    let packing: Vec<_> = told.iter().filter(|(_, message)| message.starts_with("STATUS=packing")).collect();
    let percents: Vec<u32> = packing
        .iter()
        .map(|(_, message)| {
            let (percent, patience) = message["STATUS=packing the model, ".len()..].split_once(" %\n").unwrap();
            assert_eq!(patience, "EXTEND_TIMEOUT_USEC=30000000");
            percent.parse().unwrap()
        })
        .collect();
    assert_eq!(percents.len(), 3, "{told:?}");
    assert!(
        percents.is_sorted() && (25..50).contains(&percents[0]) && (50..100).contains(&percents[1]),
        "{percents:?}"
    );
    let mut before = Duration::ZERO;
    for (at, message) in packing {
        // As long as systemd waits; the machine may be busy.
        assert!(*at - before < Duration::from_secs(30), "{message} came too late: {told:?}");
        before = *at;
    }
    // The log has every tenth at most once.
    let log = place.log();
    let lines = log.lines().filter(|line| line.contains("packing the model") && line.contains("percent")).count();
    assert!((3..=10).contains(&lines), "{log}");
    place.only("large");
}

#[test]
fn without_a_state_directory_the_directory_is_served() {
    let place = Place::new();
    let mut command = place.serve("tiny", "");
    command.env_remove("STATE_DIRECTORY");
    let mut child = place.start(command);
    wait_for("the daemon", || place.log().contains("serving").then_some(()));
    assert!(place.log().contains("no state directory") && place.copies().is_empty(), "{}", place.log());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Killed at any moment, it packs anew, and nothing of the attempts is left.
#[test]
fn what_was_cut_off_is_packed_anew() {
    let place = Place::new();
    for delay in (0..60).step_by(4) {
        let mut child = place.start(place.serve("tiny", ""));
        thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        // A copy that has its name is whole.
        for copy in place.copies().iter().filter(|name| name.ends_with(".ember")) {
            stdout(run(emberd().arg("verify").arg(place.at("state/packed").join(copy))));
        }
    }
    place.answer("tiny", "");
    let copy = place.at("state/packed").join(place.only("tiny"));
    // As a power cut and a file system without order might leave it.
    let whole = fs::read(&copy).unwrap();
    fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
    fs::write(copy.with_extension("ember.partial-1"), "half").unwrap();
    let (_, log) = place.answer("tiny", "");
    assert!(log.contains("packing the model, once"), "{log}");
    place.only("tiny");
}

/// A command that runs `script`, with the arguments that are added, where the state directory is on a file system of `size`.
fn inside_of(size: &str, script: &str, place: &Place) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("mount -t tmpfs -o size={size} tmpfs \"$STATE_DIRECTORY\" && {script}");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    command.env("STATE_DIRECTORY", place.at("state"));
    command
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "mounts a file system in a namespace of its own")]
fn too_little_room_is_said_with_what_helps() {
    let place = Place::new();
    if !run(&mut inside_of("200k", "true", &place)).status.success() {
        println!("skipped: no namespace for a small file system here");
        return;
    }
    let serve = place.serve("tiny", "");
    let mut command = inside_of("200k", "exec \"$@\"", &place);
    command.arg(serve.get_program()).args(serve.get_args());
    let output = run(&mut command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for words in ["state/packed", "MB free", "make room", "`pack = false`"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// Where one copy fits and no two: what the changed model was before goes first, and what is left of an attempt. Another model's copy
/// is kept until the new one is loaded.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "mounts a file system in a namespace of its own")]
fn a_changed_model_takes_the_room_of_what_it_was() {
    let place = Place::new();
    if !run(&mut inside_of("200k", "true", &place)).status.success() {
        println!("skipped: no namespace for a small file system here");
        return;
    }
    let before = place.at("before.ember");
    stdout(run(emberd().arg("pack").args([&place.at("tiny"), &before])));
    let size = fs::metadata(&before).unwrap().len();
    let room = format!("{}k", size * 3 / 2 / 1024);
    for (name, fits) in [
        ("tiny-0123456789abcdef.ember", true),
        ("other-0123456789abcdef.ember.partial-7", true),
        ("other-0123456789abcdef.ember", false),
    ] {
        let script = "mkdir -m 700 \"$STATE_DIRECTORY/packed\" && cp \"$1\" \"$STATE_DIRECTORY/packed/$2\" && shift 2 && exec \"$@\"";
        let serve = place.serve("tiny", "");
        let mut command = inside_of(&room, script, &place);
        command.args([before.as_os_str(), name.as_ref(), serve.get_program()]).args(serve.get_args());
        let mut child = place.start(command);
        let ended = wait_for("the daemon", || match child.try_wait().unwrap() {
            None if place.log().contains("serving") => Some(None),
            ended => ended.map(Some),
        });
        terminate(&child);
        let _ = child.wait();
        assert_eq!(
            ended.map(|status| status.code()),
            if fits { None } else { Some(Some(78)) },
            "{name}: {}",
            place.log()
        );
    }
}
