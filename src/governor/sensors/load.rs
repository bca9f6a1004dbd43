//! Who keeps the CPUs busy: this process or others.

use std::path::Path;

use super::files::text;

/// Counters of the last look, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    last: Option<Ticks>,
}

#[derive(Clone, Copy, Debug)]
struct Ticks {
    /// One CPU's share of all ticks: the time that has passed.
    passed: f64,
    busy: u64,
    own: u64,
}

impl Load {
    /// CPUs that this process and all others kept busy since the last call; 0 at the first.
    pub(super) fn read(&mut self, root: &Path, cpus: usize) -> (f64, f64) {
        let Some(now) = Ticks::read(root) else { return (0.0, 0.0) };
        let Some(last) = self.last.replace(now) else { return (0.0, 0.0) };
        let passed = now.passed - last.passed;
        if passed <= 0.0 {
            return (0.0, 0.0);
        }
        let own = now.own.saturating_sub(last.own) as f64 / passed;
        let all = now.busy.saturating_sub(last.busy) as f64 / passed;
        // The two files are read one after the other.
        (own, (all - own).clamp(0.0, cpus.max(1) as f64))
    }
}

impl Ticks {
    fn read(root: &Path) -> Option<Ticks> {
        let stat = text(&root.join("proc/stat"))?;
        let cpus = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
        let numbers = |line: &str| line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
        // user nice system idle iowait irq softirq steal; guests are part of user.
        let fields = numbers(stat.lines().find_map(|line| line.strip_prefix("cpu "))?);
        let idle: u64 = fields.iter().skip(3).take(2).sum();
        let all: u64 = fields.iter().take(8).sum();
        let stolen = fields.get(7).copied().unwrap_or(0);
        let own = text(&root.join("proc/self/stat"))?;
        // The name in parentheses may hold anything; fields 14 and 15 of proc(5) are the 12th and 13th after it.
        let own = numbers_after_name(&own)?;
        Some(Ticks {
            passed: all as f64 / cpus.max(1) as f64,
            busy: all.saturating_sub(idle + stolen),
            own: own.get(11)?.saturating_add(*own.get(12)?),
        })
    }
}

/// The fields of `/proc/PID/stat` that follow the name; what is no number counts as 0.
fn numbers_after_name(stat: &str) -> Option<Vec<u64>> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
}
