//! How likely the tokens of an answer were to the model, before anything chose among them.

use std::cmp::Ordering;

/// Most alternatives that are told of a token.
pub const MAX_TOP: usize = 20;

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability, of all tokens at temperature 1: no filter, penalty, bias or grammar counts.
    pub logprob: f32,
    /// The likeliest tokens at its place, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// The logits of one place, as they were before they were changed. Its memory is used again for the next place.
#[derive(Debug, Default)]
pub struct Scores {
    logits: Vec<f32>,
    /// Logarithm of the sum of all exponentials.
    total: f64,
}

impl Scores {
    /// Keeps `logits` [V]. NaN counts as impossible.
    pub fn keep(&mut self, logits: &[f32]) {
        self.logits.clear();
        self.logits.extend(logits.iter().map(|logit| if logit.is_nan() { f32::NEG_INFINITY } else { *logit }));
        let max = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = self.logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        self.total = f64::from(max) + sum.ln();
    }

    /// What is told of `id`, with up to `top` alternatives, itself among them where it is one of the likeliest.
    pub fn of(&self, id: u32, top: usize) -> Logprob {
        let logprob = |logit: f32| (f64::from(logit) - self.total) as f32;
        let own = self.logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
        for (id, logit) in (0..).zip(&self.logits) {
            // Lower ids come first among equals.
            if best.len() == top && best.last().is_none_or(|last| logit.total_cmp(&last.1) != Ordering::Greater) {
                continue;
            }
            let at = best.partition_point(|other| other.1.total_cmp(logit) != Ordering::Less);
            best.insert(at, (id, *logit));
            best.truncate(top);
        }
        Logprob { id, logprob: logprob(own), top: best.into_iter().map(|(id, logit)| (id, logprob(logit))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_the_likeliest_come_first() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut scores = Scores::default();
        for vocab in [1, 2, 19, 20, 21, 500] {
            let mut logits: Vec<f32> = (0..vocab).map(|_| (rng.f32() - 0.5) * 40.0).collect();
            // Equals, and one that cannot be.
            logits[vocab / 2] = logits[0];
            if vocab > 2 {
                logits[1] = f32::NAN;
            }
            scores.keep(&logits);
            let all: Vec<(u32, f32)> = (0..vocab as u32).map(|id| (id, scores.of(id, 0).logprob)).collect();
            let sum: f64 = all.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{vocab}: {sum}");
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            for top in [0, 1, 20] {
                let found = scores.of(0, top);
                assert_eq!((found.logprob, &found.top[..]), (all[0].1, &sorted[..top.min(vocab)]), "{vocab} {top}");
            }
        }
        scores.keep(&[0.0, 0.0]);
        assert_eq!(scores.of(7, 1), Logprob { id: 7, logprob: f32::NEG_INFINITY, top: vec![(0, 0.5f32.ln())] });
    }
}
