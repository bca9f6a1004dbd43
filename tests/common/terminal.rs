//! A program on a terminal of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::pty::{Winsize, openpty};

use super::wait_for;

/// A program that believes a person sits before it.
pub struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    /// What of the screen was waited for already.
    seen: usize,
}

impl Terminal {
    /// Starts `command` with a terminal for input and both outputs, by which Ctrl-C reaches it.
    pub fn start(command: &Command) -> Terminal {
        let pty = openpty(&Winsize { ws_row: 24, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 }, None).expect("a terminal");
        let side = || pty.slave.try_clone().expect("a descriptor");
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leader.env(name, value),
                None => leader.env_remove(name),
            };
        }
        let child = leader.stdin(side()).stdout(side()).stderr(side()).spawn().expect("setsid of util-linux");
        let (keys, mut output) = (File::from(pty.master.try_clone().expect("a descriptor")), File::from(pty.master));
        let screen = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&screen);
        let reader = Some(std::thread::spawn(move || {
            let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
            // An error is how a terminal without a program ends.
            while let Ok(length @ 1..) = output.read(&mut part) {
                bytes.extend_from_slice(&part[..length]);
                *written.lock().expect("lock") = String::from_utf8_lossy(&bytes).into_owned();
            }
        }));
        Terminal { child, keys, screen, reader, seen: 0 }
    }

    pub fn screen(&self) -> String {
        self.screen.lock().expect("lock").clone()
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("keys");
    }

    /// Waits until `text` appears after what was seen before, and returns what came up to there.
    pub fn see(&mut self, text: &str) -> String {
        let seen = self.seen;
        let found = wait_for(&format!("{text:?} after {:?}", &self.screen()[seen..]), || {
            let screen = self.screen();
            // A character may have been in pieces when the rest was taken.
            let at = screen.get(seen..)?.find(text)?;
            Some(seen + at + text.len())
        });
        self.seen = found;
        self.screen()[seen..found].to_owned()
    }

    /// Its exit code.
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = wait_for("the program's end", || self.child.try_wait().expect("a child"));
        self.reader.take().expect("a reader").join().expect("reads to the end");
        (status.code(), self.screen())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the screen:\n{:?}", self.screen());
        }
    }
}
