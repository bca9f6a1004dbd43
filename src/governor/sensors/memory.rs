//! Memory of the machine, of the control group and of this process, and the pressure on it.

use std::path::Path;

use super::super::sample::{Memory, Pressure, Process};
use super::files::{field, number, text};

/// Pages of version 1 groups without a limit give a number near this one.
const NO_LIMIT: u64 = 1 << 60;

/// What the machine has and can give, or the group if that is less.
pub(super) fn memory(root: &Path) -> Option<Memory> {
    let info = text(&root.join("proc/meminfo"))?;
    let kilobytes = |key: &str| field(&info, key).map(|kilobytes| kilobytes * 1024);
    let mut memory = Memory {
        total: kilobytes("MemTotal")?,
        available: kilobytes("MemAvailable")?,
        swap_free: kilobytes("SwapFree").unwrap_or(0),
        limit: None,
    };
    for (limit, free) in groups(root) {
        memory.available = memory.available.min(free);
        memory.limit = Some(memory.limit.map_or(limit, |other| other.min(limit)));
    }
    Some(memory)
}

/// Limit and free bytes of the groups that hold this process and have a limit.
fn groups(root: &Path) -> Vec<(u64, u64)> {
    let Some(groups) = text(&root.join("proc/self/cgroup")) else { return Vec::new() };
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, names) = match controllers {
            "" => ("sys/fs/cgroup", &V2),
            list if list.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", &V1),
            _ => continue,
        };
        let top = root.join(mount);
        let own = top.join(path.trim_start_matches('/'));
        // In a container the path may be the host's, while the group is mounted as the root.
        let own = if own.is_dir() { own } else { top.clone() };
        found.extend(own.ancestors().take_while(|dir| dir.starts_with(&top)).filter_map(|dir| names.of(dir)));
    }
    found
}

/// How a version of control groups names its files.
struct Names {
    limits: &'static [&'static str],
    usage: &'static str,
    file: &'static [&'static str],
}

const V2: Names =
    Names { limits: &["memory.max", "memory.high"], usage: "memory.current", file: &["active_file", "inactive_file"] };

const V1: Names = Names {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    file: &["total_active_file", "total_inactive_file"],
};

impl Names {
    /// Limit of the group at `dir` and what is free below it; what is cached of files can be had.
    fn of(&self, dir: &Path) -> Option<(u64, u64)> {
        let limits = self.limits.iter().filter_map(|name| number::<u64>(&dir.join(name)));
        let limit = limits.min().filter(|&limit| limit < NO_LIMIT)?;
        let used: u64 = number(&dir.join(self.usage))?;
        let stat = text(&dir.join("memory.stat")).unwrap_or_default();
        let cached: u64 = self.file.iter().filter_map(|key| field(&stat, key)).sum();
        Some((limit, limit.saturating_sub(used.saturating_sub(cached))))
    }
}

/// The stalls over `resource`: `cpu`, `memory` or `io`.
pub(super) fn pressure(root: &Path, resource: &str) -> Option<Pressure> {
    // Kernels that were built with PSI but started without it have the files and refuse to be read.
    let text = text(&root.join("proc/pressure").join(resource))?;
    let average = |kind: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
    };
    Some(Pressure { some: average("some")?, full: average("full").unwrap_or(0.0) })
}

/// This process; zeros where the kernel does not say.
pub(super) fn process(root: &Path) -> Process {
    let status = text(&root.join("proc/self/status")).unwrap_or_default();
    let kilobytes = |key: &str| field(&status, key).map_or(0, |kilobytes| kilobytes * 1024);
    let stat = text(&root.join("proc/self/stat")).unwrap_or_default();
    // Field 12 of proc(5), the tenth after the name.
    let faults = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(9)?.parse().ok());
    Process {
        major_faults: faults.unwrap_or(0),
        resident: kilobytes("VmRSS"),
        resident_file: kilobytes("RssFile"),
        locked: kilobytes("VmLck"),
    }
}
