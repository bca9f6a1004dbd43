//! What this machine can do at most, measured on the engine's own threads; and what this process holds.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};

use crate::engine::bytes::huge_pages;
use crate::engine::ops::Compute;

/// Bytes that one reading goes over: more than any cache of these machines.
const BUFFER: usize = 256 << 20;

/// How long a reading of the peak should take.
const PEAK_TIME: Duration = Duration::from_millis(40);

/// Bytes a second at which all workers together read memory.
///
/// # Errors
///
/// When there is no memory for what is read.
pub(super) fn read_bandwidth(on: &Compute) -> std::io::Result<f64> {
    let mut buffer = MmapMut::map_anon(BUFFER)?;
    if huge_pages() {
        // As the weights may have them. A hint: without, it is read in small pages.
        let _ = buffer.advise(Advice::HugePage);
    }
    // Written, so that every page is one of its own.
    buffer.fill(1);
    let words: &[u64] = bytemuck::cast_slice(&buffer);
    let began = Instant::now();
    on.pool.rows(words.len(), 4096, |_, range| {
        let mut sums = [0u64; 32];
        for words in words[range].chunks_exact(32) {
            sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
        }
        black_box(sums);
    });
    Ok(BUFFER as f64 / began.elapsed().as_secs_f64())
}

/// Integer multiply-adds a second that all workers together reach in registers.
pub(super) fn peak(on: &Compute) -> f64 {
    let mut rounds = 1 << 12;
    loop {
        let began = Instant::now();
        // Every worker does the same number.
        on.pool.run(&|_| {
            black_box(on.kernels.peak(rounds));
        });
        let took = began.elapsed();
        if took >= PEAK_TIME {
            let each = on.kernels.peak(1) as f64 * rounds as f64;
            return each * on.pool.width() as f64 / took.as_secs_f64();
        }
        rounds *= 2;
    }
}

/// Resident bytes and how many of them are anonymous, from `/proc/self/status`.
pub(super) fn memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| kb * 1024)
    };
    Some((field("VmRSS:")?, field("RssAnon:")?))
}
