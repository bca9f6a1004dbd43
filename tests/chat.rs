//! `emberd chat` with a person at a terminal and with a program, and colours.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use common::binary::{emberd, run, stdout};
use common::terminal::Terminal;
use common::{Daemon, daemon_child as child};

#[test]
#[ignore = "started by the tests"]
fn daemon_child() {
    child();
}

fn chat(daemon: &Daemon, more: &[&str]) -> Command {
    let mut command = emberd();
    command.args(["chat", "--socket"]).arg(&daemon.socket).args(more);
    command.env("XDG_STATE_HOME", daemon.dir.path()).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
    command
}

fn with_lines(daemon: &Daemon, more: &[&str], lines: &str) -> Output {
    let mut child = chat(daemon, more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("emberd chat");
    // It may end before it has read all.
    let _ = child.stdin.take().expect("stdin").write_all(lines.as_bytes());
    child.wait_with_output().expect("output")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sessions_of(daemon: &Daemon, id: &str) -> u16 {
    daemon.request("DELETE", &format!("/v1/sessions/{id}"), "").status
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn lines_of_a_program_are_a_conversation() {
    let daemon = Daemon::start("[mqtt.presets.short]\nmax_tokens = 3\n");
    let text = "a\n\nb\n/system be brief\nc\n/reset\n//d\n/quit\nnever";
    let printed = stdout(with_lines(&daemon, &[], text));
    let first = "You said: a";
    let second = format!("{first}|b");
    let second = format!("You said: a|{second}");
    let third = format!("You said: be brief|a|{first}|b|{second}|c");
    assert_eq!(printed, format!("{first}\n{second}\n{third}\nYou said: be brief|/d\n"));
    assert!(!daemon.dir.path().join("emberd").exists(), "a program's lines are no history");

    // The session of a name is kept, any other is not.
    let printed = stdout(with_lines(&daemon, &["--session", "tea", "--system", "s"], "one"));
    assert_eq!(printed, "You said: s|one\n");
    assert_eq!(stdout(with_lines(&daemon, &["--session", "tea"], "two\n")), "You said: s|one|You said: s|one|two\n");
    assert_eq!(sessions_of(&daemon, "tea"), 200);
    assert!(daemon.journal().lines().all(|line| !line.contains("never")), "nothing follows /quit");

    // Options reach the request.
    let printed = stdout(with_lines(&daemon, &["--seed", "77", "--temperature", "0.5"], "@params"));
    assert!(printed.contains("Some(77)") && printed.contains("Some(0.5)"), "{printed}");
    let grammar = daemon.dir.path().join("grammar");
    fs::write(&grammar, "start: \"x\"\n").expect("grammar");
    let path = grammar.to_str().expect("UTF-8");
    let printed = stdout(with_lines(&daemon, &["--grammar", path], "@params"));
    assert!(printed.contains(r#"Lark("start: \"x\"\n")"#), "{printed}");
    fs::write(&grammar, "root ::= \"x\"\n").expect("grammar");
    let printed = stdout(with_lines(&daemon, &["--grammar", path], "@params"));
    assert!(printed.contains(r#"Gbnf("root ::= \"x\"\n")"#), "{printed}");
    assert_eq!(with_lines(&daemon, &["--grammar", path, "--json-schema", path], "a").status.code(), Some(2));
    assert_eq!(stdout(with_lines(&daemon, &["--preset", "short"], "x y")), "You said: x \n");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_program_learns_what_failed() {
    let daemon = Daemon::start("[queue]\ndepth = 0\n");
    let failed = |more: &[&str], lines: &str, code: i32, words: &str| {
        let output = with_lines(&daemon, more, lines);
        assert_eq!(output.status.code(), Some(code), "{lines}: {output:?}");
        assert!(said(&output).contains(words), "{lines}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert_eq!(failed(&[], "fine\n@refuse\nnever\n", 65, "template refuses"), "You said: fine\n");
    failed(&[], "@fail", 1, "the engine failed");
    failed(&[], "/exit", 2, "no such command");
    failed(&["--preset", "x"], "hi", 65, "there are none");
    failed(&["--session", "a b"], "hi", 65, "session");
    failed(&["--json-schema", "/does/not/exist"], "hi", 2, "--json-schema: /does/not/exist");
    let output =
        run(emberd().args(["chat", "--socket", "/does/not/exist"]).stdin(fs::File::open("Cargo.toml").expect("lines")));
    assert!(output.status.code() == Some(69) && said(&output).contains("emberd serve"), "{output:?}");
    let running = daemon.send("POST", "/v1/prompt?session=s", "@hold");
    daemon.wait_journal("start @hold");
    failed(&["--session", "s"], "hi", 75, "another program waits for its answer");
    failed(&[], "hi", 75, "");
    drop(running);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_person_edits_lines_and_takes_answers_back() {
    let daemon = Daemon::start("");
    let mut terminal = Terminal::start(&chat(&daemon, &["--color", "never"]));
    terminal.see("fake. /help shows the commands");
    terminal.see("> ");
    // The cursor goes back, and what is typed there is put in between.
    terminal.press("helo\x1b[Dl\r");
    terminal.see("You said: hello\r\n");
    terminal.see("> ");
    terminal.press("@hold on\r");
    daemon.wait_journal("start hello|You said: hello|@hold on");
    terminal.press("\x03");
    terminal.see("taken back");
    daemon.wait_journal("end hello|You said: hello|@hold on Ok(Cancelled)");
    terminal.see("> ");
    // Ctrl-C at the prompt drops the line, and nothing else.
    terminal.press("dropped\x03");
    terminal.see("Ctrl-D ends.");
    terminal.see("> ");
    // What was taken back is no part of the conversation, and the session is free at once.
    terminal.press("again\r");
    terminal.see("You said: hello|You said: hello|again\r\n");
    terminal.see("> ");
    terminal.press("/exit\r");
    terminal.see("no such command");
    terminal.see("> ");
    // Two lines at once: the second waits for its turn.
    terminal.press("/system be brief\r/system\r");
    terminal.see("instructions: be brief");
    terminal.see("> ");
    terminal.press("/reset\r");
    terminal.see("a new conversation");
    terminal.see("> ");
    terminal.press("x\r");
    terminal.see("You said: be brief|x\r\n");
    terminal.see("> ");
    terminal.press("@refuse\r");
    terminal.see("emberd: messages: the template refuses them");
    // Two lines up is x.
    terminal.see("> ");
    terminal.press("\x1b[A\x1b[A\r");
    terminal.see("You said: be brief|x|You said: be brief|x|x\r\n");
    terminal.see("> ");
    terminal.press(" secret\r");
    terminal.see("|secret\r\n");
    terminal.see("> ");
    terminal.press("\x04");
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains("\x1b[1m") && !screen.contains("\x1b[2m"), "{screen:?}");
    // The session had no name and is gone.
    let journal = daemon.journal();
    assert!(!journal.contains("dropped"));

    let file = daemon.dir.path().join("emberd/chat_history");
    assert_eq!(fs::metadata(&file).expect("a history").permissions().mode() & 0o777, 0o600);
    let history = fs::read_to_string(&file).expect("a history");
    assert!(history.starts_with("hello\n@hold on\nagain\n/exit\n/system be brief\n"), "{history}");
    assert!(!history.contains("secret") && !history.contains("dropped"), "{history}");

    // The next one knows the lines; one that is told not to does not, and adds none.
    let mut terminal = Terminal::start(&chat(&daemon, &[]));
    terminal.see("> ");
    terminal.press("\x1b[A\r");
    terminal.see("You said: x\r\n");
    terminal.see("> ");
    terminal.press("/quit\r");
    let (code, screen) = terminal.end();
    assert!(code == Some(0) && screen.contains("\x1b[1m> \x1b[0m") && screen.contains("\x1b[2mfake"), "{screen:?}");
    let before = fs::read_to_string(&file).expect("a history");
    let mut terminal = Terminal::start(&chat(&daemon, &["--no-history"]));
    terminal.see("> ");
    terminal.press("\x1b[Aother\r");
    terminal.see("You said: other\r\n");
    terminal.see("> ");
    terminal.press("\x04");
    assert_eq!(terminal.end().0, Some(0));
    assert_eq!(fs::read_to_string(&file).expect("a history"), before);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn a_person_learns_that_a_session_is_gone_or_in_use() {
    let daemon = Daemon::start("");
    let mut terminal = Terminal::start(&chat(&daemon, &["--session", "tea"]));
    terminal.see("> ");
    terminal.press("one\r");
    terminal.see("You said: one\r\n");
    assert_eq!(sessions_of(&daemon, "tea"), 200);
    terminal.see("> ");
    terminal.press("two\r");
    terminal.see("session tea: not known, or forgotten since. It was idle");
    terminal.see("begins a new conversation");
    terminal.see("> ");
    terminal.press("three\r");
    terminal.see("You said: three\r\n");
    let running = daemon.send("POST", "/v1/prompt?session=tea", "@hold");
    daemon.wait_journal("start three|You said: three|@hold");
    terminal.see("> ");
    terminal.press("four\r");
    terminal.see("session tea: another program waits for its answer");
    daemon.release();
    let _ = common::Response::read(running);
    terminal.see("> ");
    terminal.press("/quit\r");
    assert_eq!(terminal.end().0, Some(0));
    // Whoever comes back to it is told so.
    let mut terminal = Terminal::start(&chat(&daemon, &["--session", "tea"]));
    terminal.see("> ");
    terminal.press("five\r");
    terminal.see("(goes on after 4 earlier messages)");
    terminal.see("> ");
    terminal.press("\x04");
    assert_eq!(terminal.end().0, Some(0));
    assert_eq!(sessions_of(&daemon, "tea"), 200);
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn colours_are_for_terminals() {
    let daemon = Daemon::start("");
    let status = |more: &[&str], environment: &[(&str, &str)]| {
        let mut command = emberd();
        command.args(["status", "--socket"]).arg(&daemon.socket).args(more);
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").envs(environment.iter().copied());
        command
    };
    let on_terminal = |command: Command| {
        let (code, screen) = Terminal::start(&command).end();
        assert!(code == Some(0) && screen.contains("nominal"), "{screen:?}");
        screen.contains('\x1b')
    };
    assert!(on_terminal(status(&[], &[])));
    assert!(!on_terminal(status(&[], &[("NO_COLOR", "1")])));
    assert!(!on_terminal(status(&["--color", "never"], &[])));
    assert!(on_terminal(status(&["--color", "always"], &[("NO_COLOR", "1")])));
    let piped = |more: &[&str]| stdout(run(&mut status(more, &[]))).contains('\x1b');
    assert!(!piped(&[]) && piped(&["--color", "always"]));

    // Thoughts are shown to people only, dimmed.
    let think = || {
        let mut command = emberd();
        command.args(["ask", "--think", "--socket"]).arg(&daemon.socket).arg("@think");
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command
    };
    let output = run(&mut think());
    assert_eq!((stdout(output.clone()).as_str(), output.stderr.len()), ("You said: @think\n", 0));
    let (code, screen) = Terminal::start(&think()).end();
    assert!(code == Some(0) && screen.contains("\x1b[2mlet me see\x1b[0m\r\nYou said: @think\r\n"), "{screen:?}");
}
