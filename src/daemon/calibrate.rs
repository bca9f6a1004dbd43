//! How fast the engine is with 1, 2, … threads: measured at the first start, kept in a file.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::engine::checkpoint::output;
use crate::engine::runner::{RunError, Runner};
use crate::governor::{Phase, Speeds, TYPICAL_CHUNK};

/// The measurement ends after so long; what is missing is expected in proportion.
const LIMIT: Duration = Duration::from_secs(60);

/// Tokens of an answer that are timed for each number of threads.
const STEPS: usize = 6;

/// Largest file that is read, and most boards and models in it.
const MAX_BYTES: u64 = 256 * 1024;
const MAX_ENTRIES: usize = 64;

type Table = BTreeMap<String, Speeds>;

/// What `file` knows of `key` with so many threads.
pub(super) fn known(file: &Path, key: &str, threads: usize) -> Option<Speeds> {
    read(file).remove(key).filter(|speeds| speeds.complete() && speeds.threads() == threads)
}

/// Writes what is known of `key` to `file`. A failure costs a calibration at the next start, no more.
pub(super) fn keep(file: &Path, key: &str, speeds: Speeds) {
    if !speeds.complete() {
        return;
    }
    let mut table = read(file);
    table.insert(key.to_owned(), speeds);
    while table.len() > MAX_ENTRIES {
        let Some(other) = table.keys().find(|other| *other != key).cloned() else { break };
        table.remove(&other);
    }
    let written = serde_json::to_vec_pretty(&table)
        .map_err(std::io::Error::other)
        .and_then(|json| output::atomically(file, |out| out.write_all(&json)));
    if let Err(error) = written {
        warn!(file = %file.display(), %error, "cannot keep the measured speeds; they are measured again at the next start");
    }
}

fn read(file: &Path) -> Table {
    let read = || -> std::io::Result<Table> {
        if std::fs::metadata(file)?.len() > MAX_BYTES {
            return Err(std::io::Error::other(format!("longer than {MAX_BYTES} bytes")));
        }
        Ok(serde_json::from_slice(&std::fs::read(file)?)?)
    };
    match read() {
        Ok(table) => table,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Table::new(),
        Err(error) => {
            warn!(file = %file.display(), %error, "the measured speeds cannot be read; measuring again");
            Table::new()
        }
    }
}

/// Measures both phases with every number of threads, the largest first.
pub(super) fn measure(runner: &mut Runner) -> Speeds {
    let threads = runner.compute().pool.threads();
    let mut speeds = Speeds::unknown(threads);
    let began = Instant::now();
    let knobs = runner.knobs().clone();
    // The first pass brings the weights into memory and counts for nothing.
    let result = pass(runner, &mut |_, _, _| {}).and_then(|()| {
        for threads in (1..=threads).rev() {
            knobs.set(threads, threads, 0);
            if began.elapsed() > LIMIT {
                debug!(threads, "calibration takes too long; the rest is estimated");
                break;
            }
            pass(runner, &mut |phase, tokens, time| speeds.learn(phase, threads, tokens as f64 / time.as_secs_f64()))?;
        }
        Ok(())
    });
    knobs.set(0, 0, 0);
    runner.release();
    if let Err(error) = result {
        debug!(%error, "no calibration");
    }
    info!(took_ms = began.elapsed().as_millis() as u64, ?speeds, "calibrated");
    speeds
}

/// A short prompt and a few tokens of an answer, each phase told once with its best time.
fn pass(runner: &mut Runner, tell: &mut dyn FnMut(Phase, usize, Duration)) -> Result<(), RunError> {
    runner.reset();
    let prompt = TYPICAL_CHUNK.min(runner.context() / 2).max(2);
    let vocab = runner.config().vocab_size as u64;
    // Ids spread over the tables, the same every time.
    let ids: Vec<u32> = (0..prompt as u64).map(|i| ((i * 7919 + 13) % vocab) as u32).collect();
    let mut run = |tokens: &[u32]| -> Result<Duration, RunError> {
        let began = Instant::now();
        runner.run(tokens, &mut |_| ControlFlow::Continue(()))?;
        Ok(began.elapsed().max(Duration::from_nanos(1)))
    };
    tell(Phase::Prefill, prompt, run(&ids)?);
    let mut best = Duration::MAX;
    for &token in ids.iter().take(STEPS) {
        best = best.min(run(&[token])?);
    }
    tell(Phase::Decode, 1, best);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speeds(first: f64) -> Speeds {
        let mut speeds = Speeds::unknown(2);
        for (threads, factor) in [(1, 1.0), (2, 1.8)] {
            speeds.learn(Phase::Prefill, threads, first * factor);
            speeds.learn(Phase::Decode, threads, first * factor / 10.0);
        }
        speeds
    }

    #[test]
    fn speeds_are_kept_by_board_and_model() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("speeds.json");
        assert_eq!(known(&file, "a", 2), None);
        keep(&file, "a", speeds(100.0));
        keep(&file, "b", speeds(50.0));
        keep(&file, "b", Speeds::unknown(2));
        assert_eq!((known(&file, "a", 2), known(&file, "b", 2)), (Some(speeds(100.0)), Some(speeds(50.0))));
        // Of another number of threads: measured again.
        assert_eq!(known(&file, "a", 4), None);
        for entry in 0..2 * MAX_ENTRIES {
            keep(&file, &format!("entry {entry}"), speeds(1.0));
        }
        assert!(read(&file).len() <= MAX_ENTRIES);
    }

    #[test]
    fn a_file_that_is_no_table_is_measured_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("speeds.json");
        for nonsense in
            ["", "[]", r#"{"a":{"prefill":[-1,2],"decode":[1,"x"]}}"#, r#"{"a":{"prefill":[-1],"decode":[1]}}"#]
        {
            std::fs::write(&file, nonsense).unwrap();
            assert_eq!(known(&file, "a", 1), None, "{nonsense}");
            keep(&file, "a", speeds(7.0));
            assert_eq!(known(&file, "a", 2), Some(speeds(7.0)), "{nonsense}");
        }
    }
}
