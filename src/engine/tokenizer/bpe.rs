//! Byte-pair merges over one piece of text.
//!
//! The order of merges is that of Hugging Face `tokenizers`: lowest rank first, then leftmost; a candidate that went
//! stale still counts when the pair that stands there now gives the same token.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

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
    starts: Vec<u32>,
    rules: Vec<Rule>,
}

#[derive(Clone, Copy)]
struct Rule {
    right: u32,
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
        let rules =
            ranked.into_iter().map(|(rank, Merge { right, merged, .. })| Rule { right, rank, merged }).collect();
        Merges { starts, rules }
    }

    fn get(&self, left: u32, right: u32) -> Option<&Rule> {
        let left = left as usize;
        let rules = &self.rules[self.starts[left] as usize..self.starts[left + 1] as usize];
        rules.binary_search_by_key(&right, |rule| rule.right).ok().map(|at| &rules[at])
    }
}

/// Tokens that the merges start from.
pub(super) struct Symbols {
    /// Tokens of one character. The space is looked up as `▁`.
    pub(super) chars: HashMap<char, u32>,
    /// `<0x00>` to `<0xFF>`, for characters that have no token.
    pub(super) bytes: [u32; 256],
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
        match symbols.chars.get(&char) {
            Some(token) => push(*token),
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
