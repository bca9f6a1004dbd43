//! What is known of prompts that begin alike, so that the beginning is computed once.
//!
//! The [`State`] of the latest request stays where it is and is cut to what the next prompt shares with it. Where that is not
//! possible, because a sliding layer has overwritten its rows or because the prompt belongs to another conversation, one of
//! the copies in [`Prefixes`] takes its place. A copy is complete: it serves every prompt that shares its tokens, up to its
//! end or [`REACH`](crate::engine::kv_cache::REACH) tokens before it.
//!
//! Nothing of this changes an answer. Keys and values of a position depend on the tokens up to it and on nothing else: not on
//! how a prompt is cut into batches, nor on the number of threads, nor on the instruction set (`tests/golden.rs`).

use std::collections::HashSet;

use crate::engine::kv_cache::{KvCache, REACH};

/// Tokens below which a copy is not worth its memory.
const WORTH: usize = 32;

/// Tokens in a row that count as the same text in another place.
const SHINGLE: usize = 8;

/// Tokens, and the keys and values of each.
#[derive(Debug)]
pub struct State {
    tokens: Vec<u32>,
    cache: KvCache,
}

/// Tokens that both begin with.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl State {
    /// Of no tokens.
    pub(super) fn new(cache: KvCache) -> State {
        State { tokens: Vec::new(), cache }
    }

    /// Of `tokens`, whose keys and values `cache` holds.
    pub(super) fn of(tokens: Vec<u32>, cache: KvCache) -> State {
        State { tokens, cache }
    }

    /// The tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Bytes of memory that keys and values take.
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Tokens at the beginning of `prompt` that need not be computed again; never all, since the last one has to run to give
    /// logits.
    pub fn covers(&self, prompt: &[u32]) -> usize {
        let shared = self.shares(prompt);
        if shared >= self.cache.lowest() { shared } else { 0 }
    }

    /// Tokens that `prompt` begins with as well.
    fn shares(&self, prompt: &[u32]) -> usize {
        common(&self.tokens, &prompt[..prompt.len().saturating_sub(1)])
    }

    /// Notes tokens that are about to run.
    pub(super) fn seen(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    pub(super) fn cache(&self) -> &KvCache {
        &self.cache
    }

    pub(super) fn cache_mut(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    /// Forgets all but the first `len` tokens, a number that [`State::covers`] gave, or 0.
    pub(super) fn cut(&mut self, len: usize) {
        self.tokens.truncate(len);
        match len {
            0 => self.cache.clear(),
            len => self.cache.cut(len),
        }
    }

    /// Forgets all tokens and gives their memory back.
    pub(super) fn release(&mut self) {
        self.tokens = Vec::new();
        self.cache.release();
    }

    fn restore(&mut self, copy: &State) {
        self.tokens.clone_from(&copy.tokens);
        self.cache.restore(&copy.cache);
    }

    fn copy(&self) -> State {
        State { tokens: self.tokens.as_slice().to_vec(), cache: self.cache.copy() }
    }

    fn copy_bytes(&self) -> usize {
        size_of_val(&self.tokens[..]) + self.cache.copy_bytes()
    }
}

/// A copy and when it was of use.
#[derive(Debug)]
struct Kept {
    state: State,
    bytes: usize,
    /// Whether other prompts than this conversation's may begin so.
    root: bool,
    /// Number of the request that used it last.
    used: u64,
}

/// Where a request begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Tokens of the prompt that need not be computed.
    pub cached: usize,
    /// Tokens that it shares with an earlier one, though they have to be computed again: a copy there will be of use.
    pub branch: usize,
    /// Where it leaves the latest request's tokens, when most of it is the same text nevertheless: something near its
    /// beginning changes from request to request.
    pub broken_at: Option<usize>,
}

/// Copies of states within a budget of memory, those that were of use last.
#[derive(Debug, Default)]
pub struct Prefixes {
    budget: usize,
    kept: Vec<Kept>,
    request: u64,
}

impl Prefixes {
    /// Keeps at most `budget` bytes from now on.
    pub fn limit(&mut self, budget: usize) {
        self.budget = budget;
        while self.bytes() > self.budget {
            self.drop_oldest(u64::MAX);
        }
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.bytes).sum()
    }

    /// Tokens of `prompt` that need not be computed, of `live` and all copies.
    pub(super) fn covers(&self, live: &State, prompt: &[u32]) -> usize {
        let known = self.kept.iter().map(|kept| &kept.state).chain([live]);
        known.map(|state| state.covers(prompt)).max().unwrap_or(0)
    }

    /// Puts `state`, which was found elsewhere, into the place of `live`, and keeps both as far as there is room.
    pub(super) fn replace(&mut self, live: &mut State, state: State) {
        self.request += 1;
        self.keep(&state, true);
        self.keep(live, false);
        *live = state;
    }

    /// Brings `live` to the longest beginning of `prompt` that is known. What it held before is kept where it would be lost.
    pub(super) fn begin(&mut self, live: &mut State, prompt: &[u32]) -> Start {
        self.request += 1;
        let known = self.kept.iter().map(|kept| &kept.state).chain([&*live]);
        let branch = known.map(|state| state.shares(prompt)).max().unwrap_or(0);
        let broken_at = broken(live.tokens(), prompt);
        let own = live.covers(prompt);
        let best = self.kept.iter().enumerate().max_by_key(|(_, kept)| kept.state.covers(prompt));
        let best = best.map(|(at, kept)| (at, kept.state.covers(prompt))).filter(|(_, covers)| *covers > own);
        for (at, kept) in self.kept.iter_mut().enumerate() {
            let begins = kept.root && kept.state.covers(prompt) + REACH >= kept.state.len();
            if begins || best.is_some_and(|(best, _)| best == at) {
                kept.used = self.request;
            }
        }
        let cached = best.map_or(own, |(_, covers)| covers);
        // What lies behind a short cut is computed again soon enough.
        if best.is_some() || live.len() > own + REACH {
            self.keep(live, false);
        }
        // Keeping may have dropped older copies, but none that this request uses.
        let best = self.kept.iter().filter(|_| best.is_some()).max_by_key(|kept| kept.state.covers(prompt));
        if let Some(kept) = best {
            live.restore(&kept.state);
        }
        live.cut(cached);
        Start { cached, branch, broken_at }
    }

    /// Keeps a copy of `state` unless there is one that serves as well or no room for it. Copies that the request in progress
    /// has used or made stay. A `root` is of use to other conversations too, and so every request that begins with it uses it.
    pub(super) fn keep(&mut self, state: &State, root: bool) {
        let (len, bytes) = (state.len(), state.copy_bytes());
        let has = |kept: &Kept| common(&kept.state.tokens, &state.tokens) == len && kept.state.cache.lowest() <= len;
        if let Some(kept) = self.kept.iter_mut().find(|kept| has(kept)) {
            kept.used = self.request;
            kept.root |= root;
            return;
        }
        let settled: usize = self.kept.iter().filter(|kept| kept.used == self.request).map(|kept| kept.bytes).sum();
        if len < WORTH || settled + bytes > self.budget {
            return;
        }
        while self.bytes() + bytes > self.budget {
            self.drop_oldest(self.request);
        }
        self.kept.push(Kept { state: state.copy(), bytes, root, used: self.request });
    }

    /// Drops the copy that was of use longest ago, before request `before`.
    fn drop_oldest(&mut self, before: u64) {
        let old = self.kept.iter().enumerate().filter(|(_, kept)| kept.used < before);
        if let Some((at, _)) = old.min_by_key(|(_, kept)| kept.used) {
            self.kept.remove(at);
        }
    }
}

/// Where `prompt` leaves `before`, if that is in its first half and at least half of it can be found behind that place.
fn broken(before: &[u32], prompt: &[u32]) -> Option<usize> {
    let at = common(before, prompt);
    if at >= prompt.len() / 2 || prompt.len() < WORTH {
        return None;
    }
    let known: HashSet<&[u32]> = before[at..].windows(SHINGLE).collect();
    let same = prompt[at..].windows(SHINGLE).filter(|shingle| known.contains(shingle)).count();
    (same >= prompt.len() / 2).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stamp_at_the_head_is_noticed_and_another_text_is_not() {
        let prompt =
            |stamp: u32, text: u32| -> Vec<u32> { [2, 105, stamp].into_iter().chain(text..text + 100).collect() };
        assert_eq!(broken(&prompt(7, 1000), &prompt(8, 1000)), Some(2));
        assert_eq!(broken(&prompt(7, 1000), &prompt(7, 1000)), None);
        assert_eq!(broken(&prompt(7, 1000), &prompt(8, 3000)), None);
        assert_eq!(broken(&[], &prompt(8, 3000)), None);
        // A conversation that goes on, and one with another end.
        let longer: Vec<u32> = prompt(7, 1000).into_iter().chain(5000..5050).collect();
        assert_eq!(broken(&prompt(7, 1000), &longer), None);
        assert_eq!(broken(&longer, &prompt(7, 1000)), None);
    }
}
