//! Rotary position embedding: dimension j turns with j + d/2 (half rotation) by `position · theta^(−2j/d)`.

use crate::engine::checkpoint::config::Rope;

/// Cosines and sines of a batch's positions.
#[derive(Default)]
pub(super) struct Rotation {
    rope: Option<Rope>,
    positions: Vec<usize>,
    /// `(cos, sin)` `[T, rotated]`.
    turns: Vec<(f32, f32)>,
}

impl Rotation {
    pub(super) fn is_for(&self, rope: &Rope, positions: &[usize]) -> bool {
        self.rope == Some(*rope) && self.positions == positions
    }

    /// Angles are computed in `f64`: at position 100,000 an `f32` angle is off by 0.004.
    pub(super) fn set(&mut self, rope: &Rope, positions: &[usize]) {
        self.rope = Some(*rope);
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.turns.clear();
        let frequency = |j| rope.theta.powf(-2.0 * j as f64 / rope.head_dim as f64);
        let frequencies: Vec<f64> = (0..rope.rotary).map(frequency).collect();
        for &position in positions {
            self.turns.extend(frequencies.iter().map(|frequency| {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                (cos as f32, sin as f32)
            }));
        }
    }

    pub(super) fn drop_first(&mut self, tokens: usize) {
        if let Some(rope) = self.rope {
            self.positions.drain(..tokens);
            self.turns.drain(..tokens * rope.rotary);
        }
    }

    /// Turns one head `[d]` of token `t` in place. Pairs past the rotated ones stay as they are ("proportional" RoPE).
    pub(super) fn turn(&self, t: usize, head: &mut [f32]) {
        let Some(rope) = self.rope else { return };
        let (low, high) = head.split_at_mut(rope.head_dim / 2);
        for ((a, b), &(cos, sin)) in low.iter_mut().zip(high).zip(&self.turns[t * rope.rotary..][..rope.rotary]) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rotated_pairs_turn() {
        let rope = Rope { theta: 1e6, rotary: 2, head_dim: 16 };
        let mut rotation = Rotation::default();
        rotation.set(&rope, &[0, 3]);
        let start: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let mut x = start.clone();
        x.chunks_exact_mut(16).enumerate().for_each(|(t, head)| rotation.turn(t, head));
        assert_eq!(x[..16], start[..16], "position 0");
        let (sin, cos) = 3f64.sin_cos();
        assert!((f64::from(x[16]) - (16.0 * cos - 24.0 * sin)).abs() < 1e-5);
        assert!((f64::from(x[24]) - (24.0 * cos + 16.0 * sin)).abs() < 1e-5);
        assert_eq!(x[18..24], start[18..24]);
        rotation.drop_first(1);
        let mut last = start[16..].to_vec();
        rotation.turn(0, &mut last);
        assert_eq!(last, x[16..]);
    }
}
