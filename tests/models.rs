//! `emberd model`: what is listed, chosen, checked and removed, and that a choice that fails is taken back.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::binary::{emberd, run, stdout};
use serde_json::{Value, json};

const HOME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/ember-home");

/// A state directory with two models: a directory `home` and a file `packed`.
struct Board(tempfile::TempDir);

impl Board {
    fn new() -> Board {
        let board = Board(tempfile::tempdir().unwrap());
        board.copy("home");
        stdout(run(emberd().args(["pack", HOME]).arg(board.at("models/packed.ember"))));
        let config = format!("[model]\npath = {}\ncontext = 512\n", json!(board.at("model")));
        fs::write(board.at("config.toml"), config).unwrap();
        board
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn copy(&self, name: &str) {
        let to = self.at("models").join(name);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(HOME).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }

    /// Runs `emberd model` with a `systemctl` of ours, if there is one.
    fn model(&self, arguments: &[&str]) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.at("bin").display());
        run(emberd().arg("model").args(arguments).arg("--config").arg(self.at("config.toml")).env("PATH", path))
    }

    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let output = self.model(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        for word in words {
            assert!(message.contains(word), "{arguments:?}, {word}: {message}");
        }
    }

    fn used(&self) -> Option<PathBuf> {
        fs::read_link(self.at("model")).ok()
    }

    fn listed(&self) -> Value {
        serde_json::from_str(&stdout(self.model(&["list", "--json"]))).unwrap()
    }

    /// A service manager that notes what it is asked, and whose service starts with every model but those named `bad`.
    fn service(&self, state: &str) {
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>{0}/calls\ncase $1 in\nis-active) echo {state} ;;\n\
             restart) readlink {0}/model | grep -qv bad ;;\nesac\n",
            self.0.path().display()
        );
        fs::create_dir_all(self.at("bin")).unwrap();
        fs::write(self.at("bin/systemctl"), script).unwrap();
        fs::set_permissions(self.at("bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.at("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn models_are_listed_chosen_and_removed() {
    let board = Board::new();
    fs::write(board.at("models/broken.ember"), "no model").unwrap();
    fs::write(board.at("models/notes.txt"), "not listed").unwrap();
    let names = |list: &Value| -> Vec<Value> {
        list.as_array().unwrap().iter().filter(|m| m["packaged"] == false).map(|m| m["name"].clone()).collect()
    };
    let list = board.listed();
    assert_eq!(names(&list), ["broken", "home", "packed"]);
    assert!(list[0]["error"].as_str().unwrap().contains("broken.ember") && list[1]["bytes"].as_u64() > Some(1_000_000));

    assert!(stdout(board.model(&["use", "home", "--no-restart"])).contains("next start"));
    assert_eq!(board.used(), Some(board.at("models/home")));
    assert!(stdout(board.model(&["list"])).lines().any(|line| line.starts_with("* home ")));
    board.refused(&["remove", "home"], &["home", "in use"]);
    assert!(stdout(board.model(&["use", "packed", "--no-restart"])).contains("SHA-256"));
    assert_eq!(board.used(), Some(board.at("models/packed.ember")));
    // Nothing but the link, the models and the configuration is left behind.
    assert_eq!(fs::read_dir(board.0.path()).unwrap().count(), 3);

    stdout(board.model(&["remove", "home"]));
    stdout(board.model(&["remove", "broken"]));
    assert_eq!(names(&board.listed()), ["packed"]);
    board.refused(&["use", "home"], &["home", "no such model", "models"]);
    board.refused(&["remove", "../config.toml"], &["no such model"]);
    assert!(board.at("config.toml").exists());
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_damaged_model_is_not_used() {
    let board = Board::new();
    stdout(board.model(&["use", "home", "--no-restart"]));
    assert!(stdout(board.model(&["verify", "packed"])).contains("as it was written"));
    assert!(stdout(board.model(&["verify", "home"])).contains("no checksum"));
    flip(&board.at("models/packed.ember"));
    board.refused(&["verify", "packed"], &["packed.ember", "damaged"]);
    board.refused(&["use", "packed"], &["packed.ember", "damaged"]);
    // Whole, and of a form that cannot be loaded.
    board.copy("short");
    fs::write(board.at("models/short/tokenizer.json"), "{}").unwrap();
    board.refused(&["use", "short"], &["short", "not used", "tokenizer.json"]);
    assert_eq!(board.used(), Some(board.at("models/home")));
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_model_with_which_the_service_does_not_start_is_taken_back() {
    let board = Board::new();
    board.service("active");
    board.copy("bad");
    assert!(stdout(board.model(&["use", "home", "--service", "a.service"])).contains("home: in use"));
    assert_eq!(board.calls(), ["is-active a.service", "reset-failed a.service", "restart a.service"]);
    board.refused(&["use", "bad"], &["bad", "does not start", "back to", "models/home"]);
    assert_eq!(board.used(), Some(board.at("models/home")));
    assert_eq!(board.calls()[3..].iter().filter(|call| *call == "restart emberd.service").count(), 2);
    // Who stopped the service wants it stopped.
    board.service("inactive");
    assert!(stdout(board.model(&["use", "packed"])).contains("does not run"));
    assert_eq!(board.calls().iter().filter(|call| call.starts_with("restart")).count(), 3);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn without_an_old_model_there_is_none_afterwards_and_a_model_in_place_stays() {
    let board = Board::new();
    board.service("failed");
    board.copy("bad");
    board.refused(&["use", "bad"], &["no model", "does not start"]);
    assert_eq!(board.used(), None);
    assert!(!board.at("model").exists());
    fs::create_dir(board.at("model")).unwrap();
    board.refused(&["use", "home"], &["is a model itself", "models", "[model]"]);
    assert!(board.at("model").is_dir());
}
