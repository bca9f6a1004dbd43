//! Streamed text against the whole text.

use emberd::engine::stream::{Delta, TextStream};
use emberd::engine::tokenizer::Tokenizer;

use super::shared;

/// (text, thought, stopped)
fn run(tokenizer: &Tokenizer, ids: &[u32], stops: &[&str]) -> (String, String, bool) {
    let mut stream = TextStream::new(tokenizer, stops.iter().map(|s| s.to_string()).collect()).unwrap();
    let mut deltas: Vec<Delta> = ids.iter().flat_map(|id| stream.push(tokenizer, *id)).collect();
    deltas.extend(stream.finish());
    let (mut text, mut thought) = (String::new(), String::new());
    for delta in deltas {
        match delta {
            Delta::Text(piece) => text += &piece,
            Delta::Thought(piece) => thought += &piece,
            Delta::Call(call) => panic!("{call:?}"),
        }
    }
    (text, thought, stream.stopped())
}

/// `text` as one byte token per byte: every cut there is.
fn bytes(tokenizer: &Tokenizer, text: &[u8]) -> Vec<u32> {
    let id = |byte: u8| (0..1000).find(|id| *id >= 238 && tokenizer.token_bytes(*id) == [byte]).unwrap();
    text.iter().map(|byte| id(*byte)).collect()
}

#[test]
fn calls_go_their_own_way_and_broken_ones_are_text() {
    let home = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home/tokenizer.json");
    let tokenizer = &Tokenizer::load(&home).unwrap();
    let said = |text: &str| {
        let mut stream = TextStream::new(tokenizer, vec!["END".to_owned()]).unwrap().with_calls(tokenizer);
        let ids = tokenizer.encode_prompt(&tokenizer.split_controls(text));
        let mut deltas: Vec<Delta> = ids.iter().flat_map(|id| stream.push(tokenizer, *id)).collect();
        deltas.extend(stream.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for delta in deltas {
            match delta {
                Delta::Text(more) | Delta::Thought(more) => text += &more,
                Delta::Call(call) => calls.push(format!("{} {}", call.name, serde_json::Value::Object(call.arguments))),
            }
        }
        (text, calls, stream.stopped())
    };
    let light = r#"<|tool_call>call:light{room:<|"|>hall END, x}<|"|>,level:3}<tool_call|>"#;
    let read = r#"light {"room":"hall END, x}","level":3}"#.to_owned();
    assert_eq!(said(light), (String::new(), vec![read.clone()], false));
    assert_eq!(said(&format!("well {light}{light}E")), ("well E".into(), vec![read.clone(), read.clone()], false));
    // What would follow is the tool's to say.
    assert_eq!(said(&format!("{light}<|tool_response>response:light{{}}")), (String::new(), vec![read], true));
    for broken in [
        "<|tool_call>",
        "<|tool_call>call:light{room:<|\"|>hall",
        "<|tool_call>light{}<tool_call|>",
        "<|tool_call>call:light{room:}<tool_call|>",
        "<|tool_call>call:light(){}<tool_call|>",
    ] {
        assert_eq!(said(broken), (broken.to_owned(), vec![], false));
    }
    // Nobody asked for calls: text, as it comes.
    let mut stream = TextStream::new(tokenizer, Vec::new()).unwrap();
    let ids = tokenizer.encode_prompt(&tokenizer.split_controls(light));
    assert!(ids.iter().flat_map(|id| stream.push(tokenizer, *id)).all(|delta| matches!(delta, Delta::Text(_))));
}

#[test]
fn deltas_add_up_to_the_whole() {
    let Some(tokenizer) = shared::tokenizer() else { return };
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..2000 {
        // Byte tokens, often: broken characters of every kind.
        let ids: Vec<u32> = (0..rng.usize(0..30))
            .map(|_| if rng.bool() { rng.u32(238..494) } else { rng.u32(494..tokenizer.vocab_size() as u32) })
            .collect();
        let all: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
        let whole = String::from_utf8_lossy(&all).into_owned();
        assert_eq!(run(tokenizer, &ids, &[]), (whole.clone(), String::new(), false), "round {round}: {ids:?}");
        assert_eq!(run(tokenizer, &ids, &["\u{1}never", "🦙🦙never"]).0, whole);
        assert_eq!(run(tokenizer, &bytes(tokenizer, &all), &[]).0, whole, "cut at every byte");
    }
}

#[test]
fn stop_strings_end_the_text_however_it_is_cut() {
    let Some(tokenizer) = shared::tokenizer() else { return };
    for (text, stops, expected, stopped) in [
        ("one STOP two", &["STOP"][..], "one ", true),
        ("one STO", &["STOP"], "one STO", false),
        ("STOP", &["STOP"], "", true),
        ("aaab", &["aab"], "a", true),
        ("xabcd", &["abcd", "bc"], "xa", true),
        ("xabcd", &["abcz", "cd"], "xab", true),
        ("🦙🦩x", &["🦩"], "🦙", true),
        ("🦙\u{1f9aa}", &["🦩"], "🦙\u{1f9aa}", false),
        ("line\n\nline\n", &["\n\n"], "line", true),
        ("ababac", &["abac"], "ab", true),
        ("a<turn|>b", &["<turn|>"], "a", true),
    ] {
        for ids in [tokenizer.encode_text(text), bytes(tokenizer, text.as_bytes())] {
            assert_eq!(
                run(tokenizer, &ids, stops),
                (expected.to_owned(), String::new(), stopped),
                "{text:?} {stops:?}"
            );
        }
    }
}

#[test]
fn text_is_held_back_no_longer_than_needed() {
    let Some(tokenizer) = shared::tokenizer() else { return };
    let mut stream = TextStream::new(tokenizer, vec!["end".to_owned()]).unwrap();
    let text = |text: &str| vec![Delta::Text(text.to_owned())];
    let mut push = |byte: &[u8]| stream.push(tokenizer, bytes(tokenizer, byte)[0]);
    assert_eq!(push(b"a"), text("a"));
    assert_eq!(push(b"e"), []);
    assert_eq!(push(b"n"), []);
    assert_eq!(push(b"e"), text("en"));
    assert_eq!(push(b"\xc3"), []);
    assert_eq!(push(b"\xa9"), text("eé"));
}

#[test]
fn thoughts_go_their_own_way() {
    let Some(tokenizer) = shared::tokenizer() else { return };
    let (open, close, turn) = (100, 101, 106);
    let say = |text: &str| tokenizer.encode_text(text);
    let build = |parts: &[Vec<u32>]| parts.concat();
    let check = |ids: Vec<u32>, text: &str, thought: &str| {
        assert_eq!(run(tokenizer, &ids, &["STOP"]), (text.to_owned(), thought.to_owned(), false));
    };
    check(
        build(&[vec![open], say("thought\nLet me see. STOP\n"), vec![close], say("It is 3.")]),
        "It is 3.",
        "Let me see. STOP\n",
    );
    check(build(&[vec![open], say("thought\n"), vec![close], say("x"), vec![turn]]), "x", "");
    check(build(&[vec![open], say("thought"), vec![close], say("x")]), "x", "");
    check(build(&[vec![open], say("thoughtful"), vec![close], say("x")]), "x", "thoughtful");
    check(build(&[say("a"), vec![open], say("thought\nunclosed")]), "a", "unclosed");
    check(build(&[vec![close], say("a ST"), vec![open, close], say("OP")]), "a STOP", "");
    check(build(&[vec![open], bytes(tokenizer, b"thought\n\xf0\x9f"), vec![close], say("x")]), "x", "\u{fffd}");
}

#[test]
fn stop_strings_are_bounded() {
    let Some(tokenizer) = shared::tokenizer() else { return };
    for stops in [vec![String::new()], vec!["x".repeat(257)], vec!["x".to_owned(); 17]] {
        let message = TextStream::new(tokenizer, stops).err().unwrap().to_string();
        assert!(message.starts_with("stop: expected at most 16 strings of 1 to 256 bytes, found "), "{message}");
    }
}
