//! What has to reach the broker, without I/O: an entry leaves the outbox when the broker has acknowledged it, and goes
//! back to its front when the connection is lost before that. The client library would forget it.
//!
//! The pieces of an answer stay together: all of them go out again unless the last one was acknowledged, for whoever was
//! to get the first ones may have lost them with the connection.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::super::wire::Key;
use super::link::Receipt;

/// Publishes that may be unacknowledged at once; a broker may allow fewer.
pub(super) const MAX_IN_FLIGHT: usize = 16;

/// Refusals and repeated answers beyond this number of waiting entries are dropped. Answers are never: there are no more
/// of them than open requests.
const MAX_REFUSALS: usize = 256;

/// The same for those that a broker waits for: one that is dropped leaves its client without a word.
const MAX_OWED: usize = 8192;

/// A publish of QoS 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) retain: bool,
    pub(super) content_type: Option<Cow<'static, str>>,
    pub(super) correlation: Option<Vec<u8>>,
    /// Code of the failure that the payload tells of, for the user property `error`.
    pub(super) error: Option<Cow<'static, str>>,
    /// The next entry is another piece of the same answer.
    pub(super) more: bool,
    /// The request that may be acknowledged when this entry is: it is not on disk, only its refusal is known.
    #[serde(skip)]
    pub(super) receipt: Option<Receipt>,
    /// The open request that is done when this entry is acknowledged.
    #[serde(skip)]
    pub(super) completes: Option<Key>,
}

/// Entries in the order in which they are sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Entry>,
    /// Handed to the client, which has not said their packet ids yet.
    handed: VecDeque<Entry>,
    /// With their packet ids; acknowledged pieces, which have none any more, wait for the last one of their answer.
    sent: VecDeque<(Option<u16>, Entry)>,
}

impl Outbox {
    /// Adds an answer or a state.
    pub(super) fn push(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
    }

    /// Adds the pieces of a refusal; `false` when there are too many already.
    pub(super) fn push_refusal(&mut self, pieces: Vec<Entry>) -> bool {
        let owed = |entry: &&Entry| entry.receipt.is_some();
        let room = match pieces.last().filter(owed) {
            Some(_) => self.waiting.iter().filter(owed).count() < MAX_OWED,
            None => self.waiting.len() < MAX_REFUSALS,
        };
        if room {
            self.waiting.extend(pieces);
        }
        room
    }

    /// The next entry to hand to the client while at most `limit` are unacknowledged.
    pub(super) fn next(&self, limit: usize) -> Option<&Entry> {
        let in_flight = self.handed.len() + self.sent.iter().filter(|(id, _)| id.is_some()).count();
        if in_flight < limit.min(MAX_IN_FLIGHT) { self.waiting.front() } else { None }
    }

    /// The entry that [`Outbox::next`] gave was taken by the client.
    pub(super) fn handed(&mut self) {
        self.handed.extend(self.waiting.pop_front());
    }

    /// Drops the entry that [`Outbox::next`] gave and the pieces that follow it; returns the last one.
    pub(super) fn discard(&mut self) -> Option<Entry> {
        loop {
            let entry = self.waiting.pop_front()?;
            if !entry.more {
                return Some(entry);
            }
        }
    }

    /// The client sent the oldest handed entry under `packet`.
    pub(super) fn sent(&mut self, packet: u16) {
        self.sent.extend(self.handed.pop_front().map(|entry| (Some(packet), entry)));
    }

    /// The broker acknowledged `packet`: the entry, when all its pieces are there.
    pub(super) fn acknowledged(&mut self, packet: u16) -> Option<Entry> {
        let at = self.sent.iter().position(|(id, _)| *id == Some(packet))?;
        if self.sent[at].1.more {
            self.sent[at].0 = None;
            return None;
        }
        let pieces = self.sent.range(..at).rev().take_while(|(_, entry)| entry.more).count();
        self.sent.drain(at - pieces..=at).next_back().map(|(_, entry)| entry)
    }

    /// The connection is lost: everything unacknowledged waits again, in its old order, except what `keep` rejects. It is
    /// asked for the last piece of each answer.
    pub(super) fn disconnected(&mut self, keep: impl Fn(&Entry) -> bool) {
        let again = self.sent.drain(..).map(|(_, entry)| entry).chain(self.handed.drain(..));
        let all: Vec<Entry> = again.chain(self.waiting.drain(..)).collect();
        let mut kept = true;
        for entry in all.into_iter().rev() {
            kept = if entry.more { kept } else { keep(&entry) };
            if kept {
                self.waiting.push_front(entry);
            }
        }
    }

    /// Whether everything was acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.handed.is_empty() && self.sent.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(topic: &str) -> Entry {
        Entry { topic: topic.into(), ..Entry::default() }
    }

    fn hand_over(outbox: &mut Outbox, limit: usize) -> Vec<String> {
        let mut topics = Vec::new();
        while let Some(entry) = outbox.next(limit) {
            topics.push(entry.topic.clone());
            outbox.handed();
        }
        topics
    }

    #[test]
    fn what_is_unacknowledged_is_sent_again_in_order() {
        let mut outbox = Outbox::default();
        for topic in ["a", "b", "c", "d"] {
            outbox.push(entry(topic));
        }
        assert_eq!(hand_over(&mut outbox, 3), ["a", "b", "c"]);
        outbox.sent(1);
        outbox.sent(2);
        assert_eq!(outbox.acknowledged(1), Some(entry("a")));
        assert_eq!(outbox.acknowledged(1), None);
        outbox.disconnected(|_| true);
        assert_eq!(hand_over(&mut outbox, 9), ["b", "c", "d"]);
        for packet in 1..=3 {
            outbox.sent(packet);
            assert!(!outbox.is_empty());
            outbox.acknowledged(packet);
        }
        assert!(outbox.is_empty());
    }

    #[test]
    fn an_answer_of_several_pieces_is_sent_again_whole() {
        let mut outbox = Outbox::default();
        let piece = |topic: &str, retain| Entry { more: true, retain, ..entry(topic) };
        for pieces in [[piece("a1", false), entry("a2")], [piece("b1", false), entry("b2")]] {
            pieces.into_iter().for_each(|piece| outbox.push(piece));
        }
        let refusal = Entry { receipt: Some(Receipt::default()), ..entry("r2") };
        assert!(outbox.push_refusal(vec![piece("r1", false), refusal]));
        assert_eq!(hand_over(&mut outbox, 5), ["a1", "a2", "b1", "b2", "r1"]);
        (1..=5).for_each(|packet| outbox.sent(packet));
        assert_eq!(outbox.acknowledged(1), None, "more follows");
        assert_eq!(outbox.acknowledged(2), Some(entry("a2")));
        assert_eq!(outbox.acknowledged(3), None);
        assert_eq!(hand_over(&mut outbox, 3), ["r2"], "b1 is no longer in flight");
        outbox.disconnected(|entry| entry.receipt.is_none());
        assert_eq!(hand_over(&mut outbox, 9), ["b1", "b2"], "without any piece of what the broker delivers again");
        outbox.disconnected(|_| true);
        assert_eq!(outbox.discard(), Some(entry("b2")));
        assert!(outbox.is_empty());
    }

    #[test]
    fn refusals_are_bounded_and_answers_are_not() {
        let mut outbox = Outbox::default();
        let taken = (0..MAX_REFUSALS + 9).filter(|_| outbox.push_refusal(vec![entry("r")])).count();
        assert_eq!(taken, MAX_REFUSALS);
        // What the broker waits for is not dropped for all the others that wait.
        let owed = || Entry { receipt: Some(Receipt::default()), ..entry("owed") };
        assert!((0..=MAX_REFUSALS).all(|_| outbox.push_refusal(vec![owed()])));
        outbox.push(entry("answer"));
        assert_eq!(hand_over(&mut outbox, usize::MAX).len(), MAX_IN_FLIGHT);
    }
}
