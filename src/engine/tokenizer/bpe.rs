//! Byte-pair merges over one piece of text.
//!
//! The order of merges is that of Hugging Face `tokenizers`: lowest rank first, then leftmost; a candidate that went
//! stale still counts when the pair that stands there now gives the same token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::engine::bytes::Bytes;

const NONE: u32 = u32::MAX;

/// One rule: `left` and `right`, side by side, become `merged`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    pub(super) left: u32,
    pub(super) right: u32,
    pub(super) merged: u32,
}

/// All rules, grouped by their left token and sorted by their right one.
pub(super) struct Merges {
    /// Rules of left token `t` are `rules[starts[t]..starts[t + 1]]`.
    pub(super) starts: Bytes,
    /// Three words each: right, rank, merged.
    pub(super) rules: Bytes,
}

#[derive(Clone, Copy)]
struct Rule {
    rank: u32,
    merged: u32,
}

impl Merges {
    /// From (rank, rule), with `vocab_size` above every id. Of rules for the same pair the last rank wins, as in
    /// the reference.
    pub(super) fn new(mut ranked: Vec<(u32, Merge)>, vocab_size: usize) -> Merges {
        ranked.sort_unstable_by_key(|(rank, merge)| (merge.left, merge.right, Reverse(*rank)));
        ranked.dedup_by_key(|(_, merge)| (merge.left, merge.right));
        let mut starts = vec![0; vocab_size + 1];
        for (_, merge) in &ranked {
            starts[merge.left as usize + 1] += 1;
        }
        for token in 0..vocab_size {
            starts[token + 1] += starts[token];
        }
        let rules = ranked.into_iter().flat_map(|(rank, Merge { right, merged, .. })| [right, rank, merged]).collect();
        Merges { starts: starts.into_iter().collect(), rules }
    }

    fn get(&self, left: u32, right: u32) -> Option<Rule> {
        let left = left as usize;
        let (start, end) = (self.starts.word(left)? as usize, self.starts.word(left + 1)? as usize);
        let rules = self.rules.as_chunks::<12>().0.get(start..end)?;
        let word = |rule: &[u8; 12], i: usize| u32::from_le_bytes(rule.as_chunks().0[i]);
        let at = rules.binary_search_by_key(&right, |rule| word(rule, 0)).ok()?;
        Some(Rule { rank: word(&rules[at], 1), merged: word(&rules[at], 2) })
    }
}

/// Tokens that the merges start from.
pub(super) struct Symbols {
    /// Tokens of one character, two words each: character, token; sorted. The space is looked up as `▁`.
    pub(super) chars: Bytes,
    /// The same for ASCII, [`NONE`] where there is none.
    ascii: [u32; 128],
    /// `<0x00>` to `<0xFF>`, for characters that have no token.
    pub(super) bytes: [u32; 256],
}

impl Symbols {
    pub(super) fn new(chars: Bytes, bytes: [u32; 256]) -> Symbols {
        let mut symbols = Symbols { chars, ascii: [NONE; 128], bytes };
        for char in 0..128_u8 {
            symbols.ascii[char as usize] = symbols.look_up(char.into()).unwrap_or(NONE);
        }
        symbols
    }

    fn get(&self, char: char) -> Option<u32> {
        match self.ascii.get(char as usize) {
            Some(&token) => (token != NONE).then_some(token),
            None => self.look_up(char),
        }
    }

    fn look_up(&self, char: char) -> Option<u32> {
        let chars = self.chars.as_chunks::<8>().0;
        let word = |entry: &[u8; 8], i: usize| u32::from_le_bytes(entry.as_chunks().0[i]);
        let at = chars.binary_search_by_key(&(char as u32), |entry| word(entry, 0)).ok()?;
        Some(word(&chars[at], 1))
    }
}

#[derive(Clone, Copy)]
struct Node {
    token: u32,
    previous: u32,
    next: u32,
}

/// Appends the ids of `text`. Time is O(n log n) in its length.
pub(super) fn encode(text: &str, symbols: &Symbols, merges: &Merges, ids: &mut Vec<u32>) {
    // Positions are 32 bits wide: longer texts are cut, at a space where there is one. Nothing in the daemon accepts so much.
    const LONGEST: usize = 1 << 30;
    let mut rest = text;
    while rest.len() > LONGEST {
        let head = &rest[..rest.floor_char_boundary(LONGEST)];
        let cut = head.rfind(' ').filter(|at| *at > 0).unwrap_or(head.len());
        merge(&rest[..cut], symbols, merges, ids);
        rest = &rest[cut..];
    }
    merge(rest, symbols, merges, ids);
}

fn merge(text: &str, symbols: &Symbols, merges: &Merges, ids: &mut Vec<u32>) {
    let mut nodes = Vec::with_capacity(text.len());
    let mut push = |token| {
        let at = nodes.len() as u32;
        nodes.push(Node { token, previous: at.wrapping_sub(1), next: at + 1 });
    };
    for char in text.chars() {
        let char = if char == ' ' { '▁' } else { char };
        match symbols.get(char) {
            Some(token) => push(token),
            None => char.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push(symbols.bytes[byte as usize])),
        }
    }
    let Some(last) = nodes.last_mut() else { return };
    last.next = NONE;

    let candidate = |nodes: &[Node], at: u32| {
        let left = nodes[at as usize];
        let right = nodes.get(left.next as usize)?;
        let rule = merges.get(left.token, right.token)?;
        Some(Reverse((rule.rank, at, rule.merged)))
    };
    let mut heap: BinaryHeap<_> = (0..nodes.len() as u32).filter_map(|at| candidate(&nodes, at)).collect();
    while let Some(Reverse((_, at, merged))) = heap.pop() {
        let left = nodes[at as usize];
        if left.token == NONE || candidate(&nodes, at).is_none_or(|Reverse((_, _, now))| now != merged) {
            continue;
        }
        let right = nodes[left.next as usize];
        nodes[left.next as usize].token = NONE;
        nodes[at as usize] = Node { token: merged, next: right.next, ..left };
        if let Some(after) = nodes.get_mut(right.next as usize) {
            after.previous = at;
        }
        if left.previous != NONE {
            heap.extend(candidate(&nodes, left.previous));
        }
        heap.extend(candidate(&nodes, at));
    }
    ids.extend(nodes.iter().map(|node| node.token).filter(|token| *token != NONE));
}
