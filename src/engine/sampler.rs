//! Logits to the next token.
//!
//! The order and the meaning of the filters are those of Hugging Face transformers' logits processors: repetition
//! penalty, temperature, top-k, top-p, min-p. The presence and frequency penalties and the biases are those of OpenAI's API; they
//! come after the repetition penalty.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Drawn seeds stay below this: JSON readers that know only doubles can give them back.
const MAX_DRAWN_SEED: u64 = 1 << 53;

/// Logits that are passed over together when the largest of them is too small.
const PART: usize = 64;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; above, logits are divided by it. 0 to 100.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0 is all.
    pub top_k: u32,
    /// Only the likeliest tokens that together reach this probability. Above 0, at most 1; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this likely relative to the likeliest. 0 to 1; 0 is all.
    pub min_p: f32,
    /// Divides the positive logits of tokens that are in the prompt or the answer, multiplies the negative ones. Above 0
    /// and at most 10; 1 is none.
    pub repetition_penalty: f32,
    /// Taken off the logits of all tokens that the answer has.
    pub presence_penalty: f32,
    /// Taken off a token's logit for every time that the answer has it.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens; ids that the vocabulary does not have count for nothing.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same answer; a random one when absent.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    /// The published defaults of Gemma 4: temperature 1, top-k 64, top-p 0.95.
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 64,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// A parameter outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: expected a number {range}, found {found}")]
pub struct SamplingError {
    /// Name of the parameter.
    pub field: &'static str,
    /// Its range in words.
    pub range: &'static str,
    /// What was given.
    pub found: f32,
}

impl SamplingParams {
    /// # Errors
    ///
    /// The first parameter that is outside its range or not a number.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |field, found: f32, good: bool, range| {
            if good { Ok(()) } else { Err(SamplingError { field, range, found }) }
        };
        let Self { temperature, top_p, min_p, repetition_penalty: penalty, .. } = *self;
        check("temperature", temperature, (0.0..=100.0).contains(&temperature), "from 0 to 100")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        check("repetition_penalty", penalty, penalty > 0.0 && penalty <= 10.0, "above 0 and at most 10")
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Likelier first, lower id first among equals.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Chooses the tokens of one answer.
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    rng: fastrand::Rng,
    /// Tokens of the prompt and the answer; empty when there is no penalty.
    seen: HashSet<u32>,
    /// How often the answer has each token; empty when that costs nothing.
    counts: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// For an answer to `prompt_ids`. Parameters outside their ranges do not panic; what they choose is unspecified.
    pub fn new(params: SamplingParams, prompt_ids: &[u32]) -> Sampler {
        let seed = params.seed.unwrap_or_else(|| fastrand::u64(..MAX_DRAWN_SEED));
        let penalized = if params.repetition_penalty == 1.0 { &[] } else { prompt_ids };
        let seen = penalized.iter().copied().collect();
        Sampler {
            params,
            seed,
            rng: fastrand::Rng::with_seed(seed),
            seen,
            counts: HashMap::new(),
            candidates: Vec::new(),
        }
    }

    /// The seed in use: the given one, or the random one that was drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next token. `logits` [V] are overwritten; NaN counts as impossible, an infinity as the largest number. Of no
    /// logits, or only impossible ones, the answer is 0.
    pub fn next(&mut self, logits: &mut [f32]) -> u32 {
        for logit in logits.iter_mut() {
            *logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
        }
        self.penalize(logits);
        let id = if self.params.temperature > 0.0 { self.sample(logits) } else { greedy(logits) };
        self.saw(id);
        id
    }

    /// Counts `id`, which something else has chosen, as part of the answer.
    pub fn saw(&mut self, id: u32) {
        if self.params.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
        if self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0 {
            *self.counts.entry(id).or_default() += 1;
        }
    }

    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.params.repetition_penalty;
        for id in &self.seen {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { (*logit / penalty).min(f32::MAX) };
            }
        }
        let (presence, frequency) = (self.params.presence_penalty, self.params.frequency_penalty);
        let repeated = self.counts.iter().map(|(id, count)| (*id, -presence - frequency * *count as f32));
        for (id, more) in repeated.chain(self.params.logit_bias.iter().copied()) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = (*logit + more).min(f32::MAX);
            }
        }
    }

    fn sample(&mut self, logits: &[f32]) -> u32 {
        let max = largest(logits);
        if max == f32::NEG_INFINITY {
            return 0;
        }
        // Relative to the largest, so that no temperature overflows: scaled logits are at most 0.
        let scale = |logit: f32| if logit == max { 0.0 } else { (logit - max) / self.params.temperature };
        let kth = match self.params.top_k as usize {
            k @ 1.. if k < logits.len() => kth_largest(logits, k),
            _ => f32::NEG_INFINITY,
        };
        let threshold = scale(kth);
        // What is below this is below the threshold too, whatever the scaling rounds: most of a vocabulary is never divided.
        let surely = kth - (kth.abs() + max.abs()) / 1e6 - 1e-36;
        self.candidates.clear();
        for (part, logits) in logits.chunks(PART).enumerate().filter(|(_, logits)| largest(logits) >= surely) {
            let ids = (part * PART) as u32..;
            let scaled = ids.zip(logits).map(|(id, logit)| Candidate { id, logit: scale(*logit) });
            // Equals of the k-th stay, as in the reference.
            self.candidates.extend(scaled.filter(|c| c.logit >= threshold && c.logit > f32::NEG_INFINITY));
        }
        if self.params.top_p < 1.0 {
            let kept = nucleus(&mut self.candidates, f64::from(self.params.top_p));
            self.candidates.truncate(kept);
        }
        if self.params.min_p > 0.0 {
            // The likeliest has weight 1, whatever the others sum up to.
            let min_p = f64::from(self.params.min_p);
            self.candidates.retain(|c| weight(c) >= min_p);
        }
        let total: f64 = self.candidates.iter().map(weight).sum();
        let mut left = self.rng.f64() * total;
        for candidate in &self.candidates {
            left -= weight(candidate);
            if left < 0.0 {
                return candidate.id;
            }
        }
        self.candidates.last().map_or(0, |candidate| candidate.id)
    }
}

fn weight(candidate: &Candidate) -> f64 {
    f64::from(candidate.logit).exp()
}

/// The largest logit, the first among equals; NaN is none. 0 when all are impossible.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (part, logits) in logits.chunks(PART).enumerate() {
        let largest = largest(logits);
        if largest > best.1 {
            best = (part, largest);
        }
    }
    if best.1 == f32::NEG_INFINITY {
        return 0;
    }
    let first = best.0 * PART;
    logits.iter().skip(first).position(|logit| *logit == best.1).map_or(0, |at| (first + at) as u32)
}

/// The largest of `logits`, `-inf` if there is none; in lanes, which become registers.
fn largest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, logit)| *lane = larger(*lane, *logit));
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// The `k`-th largest of more than `k` numbers, none of them NaN: a heap of `k` sees few changes after the first ones.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    // Order of floats as order of integers: negative ones reversed.
    let key = |logit: f32| {
        let bits = logit.to_bits() as i32;
        bits ^ ((bits >> 31) as u32 >> 1) as i32
    };
    let value = |key: i32| f32::from_bits((key ^ ((key >> 31) as u32 >> 1) as i32) as u32);
    let (head, tail) = logits.split_at(k);
    let mut heap: BinaryHeap<Reverse<i32>> = head.iter().map(|logit| Reverse(key(*logit))).collect();
    for part in tail.chunks(PART) {
        if heap.peek().is_some_and(|smallest| largest(part) <= value(smallest.0)) {
            continue;
        }
        for logit in part {
            let key = key(*logit);
            if let Some(mut smallest) = heap.peek_mut()
                && key > smallest.0
            {
                *smallest = Reverse(key);
            }
        }
    }
    heap.peek().map_or(f32::NEG_INFINITY, |smallest| value(smallest.0))
}

/// Sorts the likeliest of `candidates` to the front and counts how many of them reach `top_p` together.
///
/// Sorts in growing portions: the nucleus rarely needs more than the first of a large vocabulary.
fn nucleus(candidates: &mut [Candidate], top_p: f64) -> usize {
    let target = top_p * candidates.iter().map(weight).sum::<f64>();
    let (mut sorted, mut reached) = (0, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let portion = (sorted * 4).clamp(256, rest.len().max(256)).min(rest.len());
        if portion < rest.len() {
            rest.select_nth_unstable_by(portion, likelier);
        }
        rest[..portion].sort_unstable_by(likelier);
        for (index, candidate) in rest[..portion].iter().enumerate() {
            reached += weight(candidate);
            if reached >= target {
                return sorted + index + 1;
            }
        }
        sorted += portion;
    }
    candidates.len()
}
