//! Requests between their arrival and the broker's word that it has their answer.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::sessions::Lease;
use super::super::wire::{ANONYMOUS, Form, Key, WireRequest};
use super::link::{Link, Message, Receipt};
use super::options::Options;
use super::outbox::Entry;
use super::reply::Address;
use crate::scheduler::backend::{InputError, Sampling};
use crate::scheduler::{Failure, Request, Ticket};

/// What the spool keeps of a request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    pub(super) form: Form,
    pub(super) address: Address,
    /// That the message named beside its payload.
    pub(super) preset: Option<String>,
    pub(super) payload: Vec<u8>,
    /// What its session knew before it, as JSON: a session does not outlive the daemon, and what a crash interrupted has to
    /// run again as it was.
    pub(super) before: Vec<u8>,
}

impl Envelope {
    /// As the spool keeps it.
    pub fn encode(&self) -> Vec<u8> {
        // Strings and bytes: this cannot fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads what [`Envelope::encode`] made; `None` when these are other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Envelope> {
        postcard::from_bytes(bytes).ok()
    }

    /// Keeps what the session knew.
    pub(super) fn remember(&mut self, before: &[Value]) {
        // Objects with names for keys: this cannot fail.
        self.before = serde_json::to_vec(before).unwrap_or_default();
    }

    /// What the session knew; nothing where there is none.
    pub(super) fn before(&self) -> Vec<Value> {
        serde_json::from_slice(&self.before).unwrap_or_default()
    }
}

/// What the spool keeps of an answer.
pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    // Strings and bytes: this cannot fail.
    postcard::to_allocvec(entries).unwrap_or_default()
}

/// The entries of an answer that the spool kept.
pub(super) fn decode(answer: &[u8]) -> Option<Vec<Entry>> {
    postcard::from_bytes(answer).ok()
}

/// What a client wants to hear beside the answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    pub(super) stream: bool,
    pub(super) events: bool,
}

/// How far a request is.
pub(super) enum Stage {
    /// The spool is about to keep it, or is only asked whether it knows it: then with the reason why it is not admitted.
    Admitting(Box<Request>, Option<Failure>),
    /// The scheduler has it.
    Asked(Ticket),
    /// The spool is about to keep the answer, which goes out then.
    Answered(Vec<Entry>),
    /// The answer is in the outbox.
    Sending,
}

/// A request that is not done.
pub(super) struct Open {
    pub(super) key: Key,
    pub(super) stage: Stage,
    pub(super) form: Form,
    pub(super) address: Address,
    /// What the broker waits for until the request is on disk.
    pub(super) receipt: Option<Receipt>,
    pub(super) digest: [u8; 32],
    pub(super) wanted: Wanted,
    /// The session that the answer belongs to.
    pub(super) lease: Option<Lease>,
    /// Taken back before the scheduler had it.
    pub(super) cancelled: bool,
    /// Collected for the next batch.
    pub(super) text: String,
    pub(super) thought: String,
    pub(super) prefill: Option<(usize, usize)>,
    pieces: u64,
}

impl Open {
    pub(super) fn new(key: Key, stage: Stage, envelope: &Envelope, digest: [u8; 32], wanted: Wanted) -> Open {
        let (form, address) = (envelope.form, envelope.address.clone());
        let (receipt, lease, cancelled, text, thought, prefill, pieces) = Default::default();
        Open { key, stage, form, address, receipt, digest, wanted, lease, cancelled, text, thought, prefill, pieces }
    }

    pub(super) fn has_batch(&self) -> bool {
        !self.text.is_empty() || !self.thought.is_empty() || self.prefill.is_some()
    }

    /// Sends what was collected; it may get lost.
    pub(super) fn send_batch(&mut self, options: &Options, link: Option<&Link>) {
        let prefill = self.prefill.take();
        let (text, thought) = (std::mem::take(&mut self.text), std::mem::take(&mut self.thought));
        let Some(link) = link else { return };
        if let Some((done, total)) = prefill
            && self.wanted.events
        {
            let value = json!({"event": "prefill", "done": done, "total": total});
            link.publish_droppable(options.topics.events(&self.key), value.to_string().into_bytes());
        }
        if text.is_empty() && thought.is_empty() {
            return;
        }
        let mut value = json!({"seq": self.pieces, "text": text});
        if !thought.is_empty() {
            value["thought"] = json!(thought);
        }
        self.pieces += 1;
        link.publish_droppable(options.topics.tokens(&self.key), value.to_string().into_bytes());
    }
}

/// Tells a repetition from another request under the same name. Where the answer is to go makes no other request.
pub(super) fn digest(message: &Message) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for word in [&message.content_type, &message.preset] {
        let word = word.as_deref().unwrap_or_default();
        hasher.update((word.len() as u64).to_le_bytes());
        hasher.update(word);
    }
    hasher.update(&message.payload);
    hasher.finalize().into()
}

/// The request for the scheduler. One that names no seed gets one that follows from its name and body: should a crash
/// make it run again, it says the same again.
pub(super) fn request(
    options: &Options,
    key: &Key,
    digest: &[u8; 32],
    envelope: &Envelope,
) -> Result<(Request, WireRequest), InputError> {
    let preset = envelope.preset.clone().or_else(|| options.client(&key.client)?.preset);
    let presets = options.rules.borrow().presets.clone();
    let wire = WireRequest::parse_with(envelope.form, &envelope.payload, &presets, preset.as_deref())?;
    if wire.session.is_some() && (key.shared || key.level() == ANONYMOUS) {
        // A session is one daemon's, and a turn of it must not come twice.
        let why = if key.shared {
            "not where several daemons take turns; ask one of them by its own topic"
        } else {
            "not with the id -, whose messages may come twice; give each request an id of its own"
        };
        return Err(InputError::new("session", format!("session: {why}")));
    }
    let seed = wire.sampling.seed.unwrap_or_else(|| {
        let hash = Sha256::new().chain_update(key.path()).chain_update(digest).finalize();
        hash.iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte))
    });
    let request = Request {
        id: key.path(),
        client: Some(key.client.clone()),
        priority: wire.priority,
        input: wire.input.clone(),
        sampling: Sampling { seed: Some(seed), ..wire.sampling.clone() },
        deadline: None::<Instant>,
    };
    Ok((request, wire))
}
