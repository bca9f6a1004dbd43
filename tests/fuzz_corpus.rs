//! The fuzz targets' corpus and cheap mutations of it, through the same parsers, without a fuzzer.

use std::fs;
use std::path::Path;

use emberd::engine::checkpoint::names::NESTED;
use emberd::engine::checkpoint::summary::Summary;
use emberd::engine::checkpoint::{Config, GenerationDefaults, Problem, files, header};
use fastrand::Rng;

/// Mutations of every file of the corpus.
const MUTATIONS: usize = 120;

#[path = "../fuzz/checks.rs"]
mod checks;

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<(String, Vec<u8>)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// A few changes of the kinds that break parsers: bits, numbers, pieces removed, repeated and put elsewhere.
fn mutate(input: &[u8], rng: &mut Rng) -> Vec<u8> {
    const TOKENS: [&str; 14] = [
        "0",
        "-1",
        "1e999",
        "18446744073709551615",
        "9223372036854775808",
        "null",
        "[",
        "]",
        "{",
        "}",
        "\"",
        ":",
        ",",
        "\u{fffd}",
    ];
    let mut bytes = input.to_vec();
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..=bytes.len());
        let end = rng.usize(at..=bytes.len().min(at + 40));
        match rng.u8(..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..end, TOKENS[rng.usize(..TOKENS.len())].bytes())),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = rng.usize(..=bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
    bytes
}

/// Runs `parse` on the corpus and its mutations; returns how many were accepted and refused.
fn run(target: &str, parse: fn(&[u8]) -> Result<(), Problem>) -> [usize; 2] {
    let mut rng = Rng::with_seed(1);
    let mut counts = [0; 2];
    let mut count = |input: &[u8]| match parse(input) {
        Ok(()) => counts[0] += 1,
        Err(problem) => {
            let message = problem.to_string();
            assert!(message.len() < 2000 && !message.contains('\n'), "{message}");
            counts[1] += 1;
        }
    };
    for (_, input) in corpus(target) {
        count(&input);
        (0..MUTATIONS).for_each(|_| count(&mutate(&input, &mut rng)));
    }
    counts
}

fn parse_header(bytes: &[u8]) -> Result<(), Problem> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = files::parse_index(text);
    }
    for entry in header::parse(bytes)?.entries.values() {
        assert!(bytes.get(entry.start..entry.start + entry.len).is_some(), "{entry:?}");
    }
    Ok(())
}

fn parse_config(bytes: &[u8]) -> Result<(), Problem> {
    let text = String::from_utf8_lossy(bytes);
    let config = Config::parse(&text)?;
    let _ = GenerationDefaults::parse(&text, &config);
    Summary::new(&config, NESTED).memory(config.max_position_embeddings);
    Ok(())
}

/// What the parsers say of the corpus as it stands: accepted files by name, all others refused.
fn accepted(target: &str, parse: fn(&[u8]) -> Result<(), Problem>) -> Vec<String> {
    corpus(target).into_iter().filter(|(_, input)| parse(input).is_ok()).map(|(name, _)| name).collect()
}

#[test]
fn headers() {
    assert_eq!(accepted("header", parse_header), ["no-tensors", "scalar-and-empty", "two-tensors"]);
    let [good, bad] = run("header", parse_header);
    assert!(good > 5 && bad > 1500, "{good} accepted, {bad} refused");
}

#[test]
fn configs() {
    let expected = ["generation", "largest", "no-ple", "published", "saved", "text-only"];
    assert_eq!(accepted("config", parse_config), expected);
    let [good, bad] = run("config", parse_config);
    assert!(good > 20 && bad > 1000, "{good} accepted, {bad} refused");
}

/// Runs `check` on the corpus, whose accepted files it returns, and on mutations; returns how many of these were accepted and
/// refused.
fn checked(target: &str, check: fn(&[u8]) -> bool) -> (Vec<String>, [usize; 2]) {
    let (mut rng, mut accepted, mut counts) = (Rng::with_seed(2), Vec::new(), [0; 2]);
    for (name, input) in corpus(target) {
        if check(&input) {
            accepted.push(name);
        }
        for _ in 0..MUTATIONS {
            counts[usize::from(!check(&mutate(&input, &mut rng)))] += 1;
        }
    }
    (accepted, counts)
}

#[test]
fn topics() {
    let (accepted, [good, bad]) = checked("topics", checks::topics);
    assert_eq!(accepted, ["cancel", "own", "plain", "shared"]);
    assert!(good > 60 && bad > 500, "{good} accepted, {bad} refused");
}

#[test]
fn requests() {
    let (accepted, [good, bad]) = checked("request", checks::request);
    assert_eq!(accepted, ["grammar", "messages", "prompt", "raw", "schema", "text", "tools"]);
    assert!(good > 100 && bad > 500, "{good} accepted, {bad} refused");
}

#[test]
fn chats() {
    let (accepted, [good, bad]) = checked("chat", checks::chat);
    // `twice` is a text to continue; `messages` is a field that it does not know.
    assert_eq!(accepted, ["grammar", "messages", "openai", "prompt", "raw", "schema", "tools", "twice"]);
    assert!(good > 40 && bad > 500, "{good} accepted, {bad} refused");
}

#[test]
fn responses() {
    let (accepted, [good, bad]) = checked("response", checks::response);
    assert_eq!(accepted, ["items", "string"]);
    assert!(good > 10 && bad > 100, "{good} accepted, {bad} refused");
}

#[test]
fn pieces() {
    let (accepted, [good, bad]) = checked("pieces", checks::pieces);
    assert_eq!(accepted, ["large", "pubsub", "short", "umlauts"]);
    assert!(good > 100 && bad > 10, "{good} accepted, {bad} refused");
}

#[test]
fn grammars() {
    let (accepted, [good, bad]) = checked("grammar", checks::grammar);
    assert_eq!(accepted, ["apart", "json", "last", "list"]);
    assert!(good > 20 && bad > 100, "{good} accepted, {bad} refused");
}

#[test]
fn records() {
    let (accepted, [good, bad]) = checked("record", checks::record);
    assert_eq!(accepted, ["correlated", "envelope", "head"]);
    assert!(good > 20 && bad > 100, "{good} accepted, {bad} refused");
}
