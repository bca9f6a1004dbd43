//! The publishes that answer a request.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::wire::{self, Form, Key};
use super::chunks::{self, Kind};
use super::options::Options;
use super::outbox::Entry;
use crate::scheduler::backend::InputError;
use crate::scheduler::{Answer, Failure};

/// Where an answer goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Address {
    pub(super) topic: String,
    pub(super) correlation: Option<Vec<u8>>,
}

/// Says no to a request whose answer could not be told: a small device's topic that fills its packets.
pub(super) fn check(options: &Options, key: &Key, address: &Address) -> Result<(), InputError> {
    match options.client(&key.client).and_then(|client| client.packet_bytes) {
        Some(packet) if chunks::room(packet, address.topic.len()).is_none() => {
            let (topic, why) = (address.topic.len(), "leaves no room for an answer");
            Err(InputError::new("topic", format!("a topic of {topic} bytes {why} in packets of {packet} bytes")))
        }
        _ => Ok(()),
    }
}

/// The publishes that carry `result`, in their order; several for a small device, one for everybody else. `session` is what an
/// answer tells of its session.
pub(super) fn entries(
    options: &Options,
    form: Form,
    key: &Key,
    address: &Address,
    session: Option<Value>,
    result: &Result<Answer, Failure>,
) -> Vec<Entry> {
    let packet = options.client(&key.client).and_then(|client| client.packet_bytes);
    let error: Option<Cow<'static, str>> = result.as_ref().err().map(|failure| failure.code.name().into());
    let entry = |form: Form, payload| Entry {
        topic: address.topic.clone(),
        payload,
        content_type: Some(form.content_type().into()),
        correlation: address.correlation.clone(),
        error: error.clone(),
        ..Entry::default()
    };
    let Some(room) = packet.and_then(|packet| chunks::room(packet, address.topic.len())) else {
        let payload = match result {
            Ok(answer) => wire::answer(form, key, &options.model, answer, session),
            Err(failure) => wire::failure(form, key, failure),
        };
        return vec![entry(form, payload)];
    };
    let pieces = match result {
        Ok(answer) => chunks::pieces(Kind::Answer, &answer.text, room),
        Err(failure) => chunks::pieces(Kind::Error, &failure.to_string(), room),
    };
    let last = pieces.len() - 1;
    let piece = |(at, piece): (usize, String)| Entry { more: at < last, ..entry(Form::Text, piece.into()) };
    pieces.into_iter().enumerate().map(piece).collect()
}
