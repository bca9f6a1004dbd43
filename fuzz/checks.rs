//! What must hold of any bytes that a client or a disk can bring: for the fuzzer, and for `tests/fuzz_corpus.rs`. Each says
//! whether the input was accepted.

use emberd::engine::gbnf;
use emberd::spool::Head;
use emberd::transport::mqtt::Envelope;
use emberd::transport::mqtt::chunks::{self, Kind, MAX_PACKET, MIN_PACKET};
use emberd::transport::openai::ChatRequest;
use emberd::transport::responses::request::ResponsesRequest;
use emberd::transport::wire::{Asked, Form, MAX_NAME, Topics, WireRequest};

/// The topic of a request, and the Response Topic that it names, in two lines.
pub(crate) fn topics(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let (topic, response) = text.split_once('\n').unwrap_or((text, ""));
    let topics = Topics::new("emberd", "kitchen").sharing(Some("home")).closing(Some("homeassistant"));
    let Some(asked) = topics.asked(topic) else { return false };
    let (key, cancel) = match asked {
        Asked::Answer(key) => (key, ""),
        Asked::Cancel(key) => (key, "/cancel"),
    };
    // What was read says the same when it is written, and no name leaves its level.
    assert_eq!(format!("{}{cancel}", topics.request(&key)), topic);
    for name in [&key.client, &key.id] {
        assert!(!name.is_empty() && name.len() <= MAX_NAME && !name.contains('/'), "{name:?}");
    }
    if topics.check_response_topic(&key.client, response).is_err() {
        return false;
    }
    // No answer is another's answer, a request, a state, or a message to the broker or Home Assistant.
    assert!(!response.contains(['#', '+', '\0']) && !response.starts_with('$') && topics.asked(response).is_none());
    if let Some(below) = response.strip_prefix("emberd/") {
        let own = ["kitchen", "home"].map(|level| format!("{level}/res/{}/", key.client));
        assert!(own.iter().any(|own| below.starts_with(own)), "{response} for {}", key.client);
    }
    assert!(!response.starts_with("homeassistant/"), "{response}");
    true
}

/// The payload of a request over MQTT.
pub(crate) fn request(bytes: &[u8]) -> bool {
    let form = Form::of(None, bytes);
    match WireRequest::parse(form, bytes) {
        Ok(request) => request.timeout_s.is_none_or(|seconds| (1..=86_400).contains(&seconds)),
        Err(error) => {
            told(&error.message);
            false
        }
    }
}

/// The body of a chat request over HTTP.
pub(crate) fn chat(bytes: &[u8]) -> bool {
    ChatRequest::parse(bytes).inspect_err(|error| told(&error.message)).is_ok()
        | ChatRequest::parse_text(bytes).inspect_err(|error| told(&error.message)).is_ok()
}

/// The body of a request for a response over HTTP.
pub(crate) fn response(bytes: &[u8]) -> bool {
    ResponsesRequest::parse(bytes).inspect_err(|error| told(&error.message)).is_ok()
}

/// An error is one that can be sent and logged, whatever came.
fn told(message: &str) {
    assert!(!message.is_empty() && message.len() < 4000, "{} bytes: {message:.200}", message.len());
}

/// The answer to a small device: the size of its packets, the length of its topic (two bytes each), then the text.
pub(crate) fn pieces(bytes: &[u8]) -> bool {
    let Some((&[a, b, c, d], text)) = bytes.split_first_chunk() else { return false };
    let packet = usize::from(u16::from_le_bytes([a, b])).clamp(MIN_PACKET, MAX_PACKET);
    let topic = usize::from(u16::from_le_bytes([c, d]));
    let text = String::from_utf8_lossy(text);
    let Some(room) = chunks::room(packet, topic) else { return false };
    let pieces = chunks::pieces(Kind::Answer, &text, room);
    let mut joined = String::new();
    for (at, piece) in pieces.iter().enumerate() {
        // Header, topic and payload fit into the device's buffer.
        assert!(piece.len() + topic + 7 <= packet, "{} in {packet} with {topic}", piece.len());
        let rest = piece.strip_prefix(&(at + 1).to_string()).expect("its number");
        let mark = if at + 1 == pieces.len() { '.' } else { ':' };
        joined.push_str(rest.strip_prefix(mark).expect("its mark"));
    }
    assert_eq!(joined, text);
    true
}

/// A grammar in GBNF. One that is refused is so at a place that it has.
pub(crate) fn grammar(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match gbnf::to_lark(&text) {
        Ok(lark) => {
            assert!(gbnf::is_gbnf(&text) && lark.starts_with("start: "), "{text:?}");
            true
        }
        Err(error) => {
            let line = text.split('\n').nth(error.line - 1).expect("a line of it");
            assert!((1..=line.chars().count() + 1).contains(&error.column), "{text:?}: {error}");
            false
        }
    }
}

/// A record of the spool: the head of a request, or a request.
pub(crate) fn record(bytes: &[u8]) -> bool {
    let head = Head::decode(bytes);
    if let Some(head) = &head {
        assert_eq!(Head::decode(&head.encode()).as_ref(), Some(head));
        assert!(head.left_s(u64::MAX) <= head.limit_s && head.left_s(0) <= head.limit_s);
    }
    let envelope = Envelope::decode(bytes);
    if let Some(envelope) = &envelope {
        let again = envelope.encode();
        assert_eq!(Envelope::decode(&again).map(|envelope| envelope.encode()), Some(again));
    }
    head.is_some() || envelope.is_some()
}
