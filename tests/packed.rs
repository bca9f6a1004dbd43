//! `emberd serve` with a directory as its model and a state directory: it packs once.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::binary::{emberd, run, stdout};
use common::wait_for;
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
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::SIGTERM);
        assert!(child.wait().unwrap().success());
        (said, self.log())
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

#[test]
fn a_directory_is_packed_once_and_again_when_it_changes() {
    let place = Place::new();
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
    // Another model takes its place.
    place.answer("other", "");
    assert!(place.only("other").starts_with("other-"));
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

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "mounts a file system in a namespace of its own")]
fn too_little_room_is_said_with_what_helps() {
    let place = Place::new();
    let inside = |script: &str, more: &[&Path]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).args(more);
        command
    };
    let mount = "mount -t tmpfs -o size=200k tmpfs \"$1\"";
    let state = place.at("state");
    if !run(&mut inside(mount, &[&state])).status.success() {
        println!("skipped: no namespace for a small file system here");
        return;
    }
    let serve = place.serve("tiny", "");
    let script = format!("{mount} && shift && export STATE_DIRECTORY={} && exec \"$@\"", state.display());
    let mut command = inside(&script, &[&state]);
    command.arg(serve.get_program()).args(serve.get_args());
    let output = run(&mut command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for words in ["state/packed", "MB free", "make room", "`pack = false`"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
