//! The shipped binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::wait_for;

/// The binary under test.
pub fn emberd() -> Command {
    let mut command = super::command(env!("CARGO_BIN_EXE_emberd"));
    command.stdin(Stdio::null()).env_remove("EMBERD_KERNELS");
    command
}

/// Runs it to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().expect("the command starts")
}

/// What it printed, when it did well.
pub fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// `emberd serve` on a socket of its own.
pub struct Served {
    child: Child,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Served {
    pub fn start(dir: &Path, model: &Path, more: &str, environment: &[(&str, &str)]) -> Served {
        let socket = dir.join("emberd.sock");
        // One that was killed leaves it.
        let _ = fs::remove_file(&socket);
        let file = dir.join("config.toml");
        let config = format!(
            "[model]\npath = {}\ncontext = 512\n[socket]\npath = {}\n[spool]\npath = {}\n{more}",
            json!(model),
            json!(socket),
            json!(dir.join("spool.redb")),
        );
        fs::write(&file, config).expect("config");
        let mut command = emberd();
        command.arg("serve").arg("--config").arg(&file).envs(environment.iter().copied());
        let log = dir.join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).expect("log");
        let child = command.stderr(file).spawn().expect("emberd serve");
        wait_for("the socket", || socket.exists().then_some(()));
        Served { child, socket, log }
    }

    /// What it and those before it in its directory have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("log")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn ask(&self, prompt: &str, more: &[&str]) -> String {
        let options = ["ask", "--temperature", "0", "--max-tokens", "24", "--socket"];
        stdout(run(emberd().args(options).arg(&self.socket).args(more).arg(prompt)))
    }

    pub fn stop(mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).expect("still running");
        assert_eq!(self.child.wait().expect("ends").code(), Some(0));
        assert!(!self.socket.exists());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
