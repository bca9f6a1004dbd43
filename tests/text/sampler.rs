//! The sampler against a plain implementation that sorts everything.

use emberd::engine::sampler::{Sampler, SamplingParams};

const OFF: SamplingParams = SamplingParams {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    logit_bias: Vec::new(),
    seed: Some(1),
};

/// Probabilities [V] after all filters, with f64 and full sorts.
fn expected(params: &SamplingParams, prompt: &[u32], logits: &[f32]) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    let penalty = f64::from(params.repetition_penalty);
    let mut seen = prompt.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        let logit = &mut logits[id as usize];
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
    logits.iter_mut().for_each(|l| *l /= f64::from(params.temperature));
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let softmax = |order: &[usize]| -> Vec<f64> {
        let sum: f64 = order.iter().map(|id| logits[*id].exp()).sum();
        order.iter().map(|id| logits[*id].exp() / sum).collect()
    };
    let mut before = 0.0;
    let keep = softmax(&order)
        .iter()
        .take_while(|p| {
            let keep = before < f64::from(params.top_p);
            before += **p;
            keep
        })
        .count();
    order.truncate(keep.max(1));
    let probabilities = softmax(&order);
    let floor = f64::from(params.min_p) * probabilities[0];
    order.truncate(probabilities.iter().filter(|p| **p >= floor).count());
    let mut all = vec![0.0; logits.len()];
    for (id, p) in order.iter().zip(softmax(&order)) {
        all[*id] = p;
    }
    all
}

#[test]
fn frequencies_follow_the_exact_probabilities() {
    let mut rng = fastrand::Rng::with_seed(3);
    let logits: Vec<f32> = (0..120).map(|_| rng.f32() * 10.0 - 5.0).collect();
    let prompt = [5, 5, 17, 100];
    for params in [
        OFF,
        SamplingParams { temperature: 0.5, ..OFF },
        SamplingParams { temperature: 3.0, ..OFF },
        SamplingParams { top_k: 7, ..OFF },
        SamplingParams { top_k: 5000, ..OFF },
        SamplingParams { top_p: 0.3, ..OFF },
        SamplingParams { top_p: 0.97, ..OFF },
        SamplingParams { min_p: 0.4, ..OFF },
        SamplingParams { repetition_penalty: 1.8, ..OFF },
        SamplingParams { temperature: 1.3, top_k: 40, top_p: 0.8, min_p: 0.1, repetition_penalty: 0.7, ..OFF },
    ] {
        let exact = expected(&params, &prompt, &logits);
        let mut counts = vec![0_u32; logits.len()];
        let draws = 10_000;
        for seed in 0..draws {
            // A new sampler each time: the penalty counts what was drawn.
            let mut sampler = Sampler::new(SamplingParams { seed: Some(seed), ..params.clone() }, &prompt);
            counts[sampler.next(&mut logits.clone()) as usize] += 1;
        }
        let mut chi = 0.0;
        for (count, p) in counts.iter().zip(&exact) {
            assert!(*p > 0.0 || *count == 0, "{params:?} drew a token that is filtered out");
            let mean = p * draws as f64;
            chi += if mean > 0.0 { (f64::from(*count) - mean).powi(2) / mean } else { 0.0 };
        }
        let freedom = exact.iter().filter(|p| **p > 0.0).count() as f64 - 1.0;
        assert!(chi < freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0, "{params:?}: chi square {chi} of {freedom}");
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let params = SamplingParams { temperature: 0.0, ..OFF };
    let mut sampler = Sampler::new(params.clone(), &[]);
    assert_eq!(sampler.next(&mut [1.0, 3.0, 3.0, f32::NAN]), 1);
    let mut sampler = Sampler::new(SamplingParams { repetition_penalty: 2.0, ..params }, &[0]);
    let logits = [3.0, 2.0, 1.9, -1.0];
    let chosen: Vec<u32> = (0..3).map(|_| sampler.next(&mut logits.clone())).collect();
    assert_eq!(chosen, [1, 2, 0], "3/2 < 2, then 2/2 < 1.9, then 3/2 is the largest");
}

/// Most of a large vocabulary is passed over; what counts may stand anywhere in it.
#[test]
fn the_likeliest_are_found_in_a_large_vocabulary() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut logits: Vec<f32> = (0..1000).map(|_| rng.f32() * -5.0).collect();
    for (id, logit) in [(10, 2.0), (500, 1.0), (703, 2.0), (999, 1.0)] {
        logits[id] = logit;
    }
    let drawn = |params: &SamplingParams| -> std::collections::BTreeSet<u32> {
        let draw =
            |seed| Sampler::new(SamplingParams { seed: Some(seed), ..params.clone() }, &[]).next(&mut logits.clone());
        (0..300).map(draw).collect()
    };
    assert_eq!(drawn(&SamplingParams { top_k: 3, ..OFF }), [10, 500, 703, 999].into(), "the equals of the third stay");
    assert_eq!(drawn(&SamplingParams { top_k: 2, temperature: 5.0, ..OFF }), [10, 703].into());
    assert_eq!(drawn(&SamplingParams { temperature: 0.0, ..OFF }), [10].into(), "the first of the largest");
}

#[test]
fn what_an_answer_has_and_biases_move_logits() {
    let logits = [3.0, 2.0, 1.2, -1.0];
    let chosen = |presence_penalty, frequency_penalty, logit_bias: &[(u32, f32)]| -> Vec<u32> {
        let logit_bias = logit_bias.to_vec();
        let params = SamplingParams { temperature: 0.0, presence_penalty, frequency_penalty, logit_bias, ..OFF };
        // The prompt does not count.
        let mut sampler = Sampler::new(params, &[0, 0, 1]);
        (0..5).map(|_| sampler.next(&mut logits.clone())).collect()
    };
    assert_eq!(chosen(0.0, 0.0, &[]), [0, 0, 0, 0, 0]);
    assert_eq!(chosen(1.5, 0.0, &[]), [0, 1, 0, 0, 0], "3, 2, then 1.5 beats 1.2 and 0.5, once and for all");
    assert_eq!(chosen(0.0, 0.7, &[]), [0, 0, 1, 0, 1], "3, 2.3, 2, 1.6 and 1.3");
    assert_eq!(chosen(0.0, 0.0, &[(3, 100.0), (0, -100.0), (99, 5.0)]), [3, 3, 3, 3, 3]);
    assert_eq!(chosen(0.0, 0.0, &[(0, -100.0)]), [1, 1, 1, 1, 1]);
}

#[test]
fn a_seed_decides_the_answer() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 10) as f32).collect();
    let draw = |seed| {
        let mut sampler = Sampler::new(SamplingParams { seed, ..OFF }, &[]);
        ((0..20).map(|_| sampler.next(&mut logits.clone())).collect::<Vec<_>>(), sampler.seed())
    };
    assert_eq!(draw(Some(9)), draw(Some(9)));
    assert_ne!(draw(Some(9)).0, draw(Some(10)).0);
    let (ids, seed) = draw(None);
    assert_eq!(draw(Some(seed)).0, ids, "the random seed is reported");
}

#[test]
fn no_logits_panic() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows: [&[f32]; 7] =
        [&[], &[nan], &[nan, nan], &[-inf, -inf], &[inf, 1.0], &[f32::MAX, f32::MIN], &[nan, 0.0, -inf]];
    for row in rows {
        for temperature in [0.0, 1e-38, 1.0, 100.0] {
            for top_k in [0, 1, 2] {
                let params = SamplingParams {
                    temperature,
                    top_k,
                    top_p: 0.9,
                    min_p: 0.5,
                    repetition_penalty: 0.001,
                    presence_penalty: -2.0,
                    frequency_penalty: -2.0,
                    logit_bias: vec![(0, 100.0), (7, -100.0)],
                    seed: Some(0),
                };
                let id = Sampler::new(params, &[0, 1, 99]).next(&mut row.to_vec()) as usize;
                assert!(id == 0 || id < row.len());
                assert!(row.iter().all(|l| l.is_nan() || *l == -inf) || row[id] > -inf, "{row:?} gave {id}");
            }
        }
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    assert_eq!(SamplingParams::default().validate(), Ok(()));
    for (params, message) in [
        (SamplingParams { temperature: -1.0, ..OFF }, "temperature: expected a number from 0 to 100, found -1"),
        (SamplingParams { temperature: f32::NAN, ..OFF }, "temperature: expected a number from 0 to 100, found NaN"),
        (SamplingParams { top_p: 0.0, ..OFF }, "top_p: expected a number above 0 and at most 1, found 0"),
        (SamplingParams { min_p: 1.5, ..OFF }, "min_p: expected a number from 0 to 1, found 1.5"),
        (
            SamplingParams { repetition_penalty: 0.0, ..OFF },
            "repetition_penalty: expected a number above 0 and at most 10, found 0",
        ),
    ] {
        assert_eq!(params.validate().unwrap_err().to_string(), message);
    }
}
