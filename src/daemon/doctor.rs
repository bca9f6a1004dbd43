//! What this machine offers the daemon, what it lacks, and how to get it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::geteuid;
use serde::Serialize;

use super::config::Config;
use crate::engine::bytes;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::checkpoint::summary::Summary;
use crate::governor::sensors::Sensors;
use crate::governor::{Sample, Work};
use crate::kernels;

/// Bytes that the measurement of the storage reads, and how long it may take.
const STORAGE_BYTES: usize = 64 << 20;
const STORAGE_TIME: Duration = Duration::from_secs(10);

/// Slower storage than this makes a cold start and every page fault felt; megabytes per second.
const SLOW_STORAGE: f64 = 80.0;

/// What a Pi 5 wants of its supply, in milliamperes.
const PI5_SUPPLY: u32 = 5000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something is not to be had, and the daemon does without.
    Note,
    /// It works worse than it could.
    Warning,
    /// It does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is about.
    pub about: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

fn finding(about: &'static str, verdict: Verdict, found: impl Into<String>, remedy: &str) -> Finding {
    Finding { about, verdict, found: found.into(), remedy: (!remedy.is_empty()).then(|| remedy.to_owned()) }
}

fn ok(about: &'static str, found: impl Into<String>) -> Finding {
    finding(about, Verdict::Ok, found, "")
}

/// Looks at the machine below `root` and at the model of `config`.
pub fn examine(root: &Path, config: &Config) -> Vec<Finding> {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let mut sensors = Sensors::new(root, cpus);
    let sample = sensors.read(Instant::now(), Work::default());
    let found = sensors.found();
    let pi = found.board.as_ref().is_some_and(|board| board.starts_with("Raspberry Pi"));
    let mut all = vec![ok("board", format!("{}, {cpus} CPUs", found.board.as_deref().unwrap_or("no device tree")))];
    all.push(instruction_set());
    all.extend(page_size(root));
    all.push(match (&found.temperature, sample.temperature.celsius()) {
        (Some((file, kind)), Some(celsius)) => {
            let text = format!("{celsius:.1} °C from {} ({kind})", shown(root, file));
            if celsius < config.governor.set_point_c {
                ok("temperature", text)
            } else {
                finding("temperature", Verdict::Warning, text, "The processor is above its set point: cool it better.")
            }
        }
        (Some((file, _)), None) => finding(
            "temperature",
            Verdict::Problem,
            format!("{} gives nothing sensible", shown(root, file)),
            "The engine runs at a fixed, cautious share. Reboot; if it stays, the sensor or its driver is broken.",
        ),
        (None, _) if pi => finding(
            "temperature",
            Verdict::Problem,
            "no sensor, though this is a Raspberry Pi",
            "Let the process see /sys/class/thermal (containers: mount /sys read-only).",
        ),
        (None, _) => finding("temperature", Verdict::Note, "no sensor of the processor", "Heat is not watched here."),
    });
    all.extend(power(&sample, pi, &found.throttled.as_ref().map(|file| shown(root, file))));
    all.extend(supply(root, found.board.as_deref()));
    all.push(match (sample.fan, &found.fan) {
        (Some(fan), Some(device)) => {
            let rpm = fan.rpm.map_or("not measured".to_owned(), |rpm| format!("{rpm} rpm"));
            ok("fan", format!("{rpm}, {}", shown(root, device)))
        }
        _ => finding("fan", Verdict::Note, "none that the kernel knows", ""),
    });
    all.push(clock(root, &sample));
    all.extend(kernel_options(root, &sample));
    all.extend(model(config, &sample));
    all
}

/// A path as it is outside of tests.
fn shown(root: &Path, file: &Path) -> String {
    Path::new("/").join(file.strip_prefix(root).unwrap_or(file)).display().to_string()
}

fn instruction_set() -> Finding {
    let names: Vec<&str> = kernels::available().iter().map(|set| set.name()).collect();
    match kernels::select(None) {
        Ok(best) if best.name() == "scalar" => finding(
            "kernels",
            Verdict::Warning,
            "scalar only",
            "This CPU has none of the instruction sets that emberd has kernels for; it will be slow.",
        ),
        Ok(best) => ok("kernels", format!("{}, of {}", best.name(), names.join(", "))),
        Err(error) => finding("kernels", Verdict::Problem, error.to_string(), ""),
    }
}

fn page_size(root: &Path) -> Option<Finding> {
    let maps = read(root, "proc/self/smaps")?;
    let line = maps.lines().find_map(|line| line.strip_prefix("KernelPageSize:"))?;
    Some(ok("page size", line.trim()))
}

/// At most 64 KiB of a file, as text.
fn read(root: &Path, path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(root.join(path)).ok()?.take(64 << 10).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn power(sample: &Sample, pi: bool, file: &Option<String>) -> Vec<Finding> {
    let weak = "Use the official supply (5 V, 3 A for a Pi 4, 5 A for a Pi 5) and a short, thick cable; take what it \
                feeds over USB away. Until then at most two threads compute.";
    let hot =
        "Cool it better: a heat sink, a fan, a case with openings. emberd keeps below the limit by computing less.";
    let mut all = Vec::new();
    let Some(bits) = sample.firmware else {
        if pi {
            all.push(finding(
                "throttling",
                Verdict::Note,
                "the kernel shows no get_throttled",
                "Update the kernel, or let the process see /sys/bus/platform/drivers/raspberrypi-firmware. The engine's \
                 own speed is watched instead.",
            ));
        }
        if sample.under_voltage == Some(true) {
            all.push(finding("power", Verdict::Problem, "the supply is too weak now", weak));
        }
        return all;
    };
    all.push(match (sample.under_voltage == Some(true), bits.under_voltage_seen()) {
        (true, _) => finding("power", Verdict::Problem, "the supply is too weak now", weak),
        (false, true) => finding("power", Verdict::Warning, "the supply was too weak since boot", weak),
        (false, false) => ok("power", "no under-voltage since boot"),
    });
    let from = file.as_deref().unwrap_or_default();
    all.push(match (bits.throttled(), bits.throttled_seen()) {
        (true, _) => finding("throttling", Verdict::Warning, format!("now, says {from}"), hot),
        (false, true) => finding("throttling", Verdict::Warning, format!("since boot, says {from}"), hot),
        (false, false) => ok("throttling", format!("none since boot, says {from}")),
    });
    all
}

/// What a Pi 5 negotiated with its supply.
fn supply(root: &Path, board: Option<&str>) -> Option<Finding> {
    if !board?.starts_with("Raspberry Pi 5") {
        return None;
    }
    let bytes = std::fs::read(root.join("proc/device-tree/chosen/power/max_current")).ok()?;
    let milliamperes = u32::from_be_bytes(bytes.try_into().ok()?);
    let text = format!("{milliamperes} mA negotiated");
    Some(if milliamperes >= PI5_SUPPLY {
        ok("supply", text)
    } else {
        finding(
            "supply",
            Verdict::Warning,
            text,
            "Use a supply of 5 V and 5 A; for one that cannot tell, set PSU_MAX_CURRENT=5000 in the EEPROM: \
             sudo rpi-eeprom-config --edit.",
        )
    })
}

fn clock(root: &Path, sample: &Sample) -> Finding {
    let governor = read(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    match (sample.clock_mhz, governor.as_deref().map(str::trim)) {
        (Some(mhz), Some("powersave")) => finding(
            "clock",
            Verdict::Warning,
            format!("{mhz:.0} MHz, held at the lowest by cpufreq's powersave"),
            "echo ondemand | sudo tee /sys/devices/system/cpu/cpufreq/policy0/scaling_governor",
        ),
        (Some(mhz), governor) => ok("clock", format!("{mhz:.0} MHz, {}", governor.unwrap_or("governor not known"))),
        (None, _) => finding("clock", Verdict::Note, "not shown by this kernel", ""),
    }
}

fn kernel_options(root: &Path, sample: &Sample) -> Vec<Finding> {
    let controllers = read(root, "sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let v1 = root.join("sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
    let limits = v1 || controllers.split_whitespace().any(|name| name == "memory");
    vec![
        if sample.memory_pressure.is_some() {
            ok("memory pressure", "measured by the kernel (PSI)")
        } else {
            finding(
                "memory pressure",
                Verdict::Note,
                "not measured by this kernel",
                "Add psi=1 to /boot/firmware/cmdline.txt and reboot; MemAvailable and page faults are watched until then.",
            )
        },
        if limits {
            ok("memory limits", "the memory controller is on")
        } else {
            finding(
                "memory limits",
                Verdict::Note,
                "the memory controller is off: MemoryMax= in the unit has no effect",
                "Add cgroup_enable=memory cgroup_memory=1 to /boot/firmware/cmdline.txt and reboot.",
            )
        },
    ]
}

fn model(config: &Config, sample: &Sample) -> Vec<Finding> {
    let path = &config.model.path;
    let checkpoint = match Checkpoint::open(path) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            return vec![finding("model", Verdict::Problem, error.to_string(), "Set `path` in the section [model].")];
        }
    };
    let summary = Summary::new(&checkpoint.config, checkpoint.prefix);
    let need = summary.memory(config.model.context);
    let mb = |bytes: u64| bytes.div_ceil(1 << 20);
    let mut all =
        vec![ok("model", format!("{}, {} MB read for every token", path.display(), mb(summary.weights_per_token)))];
    if let Some(memory) = sample.memory {
        let most = memory.limit.map_or(memory.total, |limit| limit.min(memory.total));
        let text = format!(
            "{} MB needed for a context of {}, {} MB available, {} MB in all",
            mb(need.total),
            config.model.context,
            mb(memory.available),
            mb(most)
        );
        let reserve = config.governor.reserve_mb << 20;
        all.push(if need.total > most {
            finding("memory", Verdict::Problem, text, "This machine cannot hold the model: take a smaller one.")
        } else if need.total + reserve > memory.available {
            let remedy = "Stop what is not needed, or lower `context` in the section [model]. (A daemon that runs \
                          already has its share.)";
            finding("memory", Verdict::Warning, text, remedy)
        } else {
            ok("memory", text)
        });
    }
    all.extend(cached(path));
    all.extend(storage(path, need.weights));
    all
}

/// How much of the model's largest file is in memory already. The kernel tells it to the file's owner only.
fn cached(model: &Path) -> Option<Finding> {
    let file = File::open(largest(model)?).ok()?;
    let (length, owner) = file.metadata().map(|data| (data.len(), data.uid())).ok()?;
    let user = geteuid();
    if length == 0 || !(user.is_root() || user.as_raw() == owner) {
        return None;
    }
    let there = bytes::map(file).ok()?.cached().ok()?;
    let mb = |bytes: u64| bytes.div_ceil(1 << 20);
    Some(ok("page cache", format!("{} of the file's {} MB are in memory", mb(there), mb(length))))
}

/// Reads a part of the model's largest file past the page cache.
fn storage(model: &Path, weights: u64) -> Option<Finding> {
    let file = largest(model)?;
    let measured = read_speed(&file);
    Some(match measured {
        Ok(speed) => {
            let seconds = weights as f64 / 1e6 / speed;
            let text = format!("{speed:.0} MB/s, {seconds:.0} s for all weights of a token");
            if speed >= SLOW_STORAGE {
                ok("storage", text)
            } else {
                finding("storage", Verdict::Warning, text, "A cold start takes that long. Use an SSD, or an A2 card.")
            }
        }
        Err(error) => finding("storage", Verdict::Problem, format!("{}: {error}", file.display()), ""),
    })
}

fn largest(model: &Path) -> Option<PathBuf> {
    if model.is_file() {
        return Some(model.to_path_buf());
    }
    let files = std::fs::read_dir(model).ok()?.flatten().map(|entry| entry.path());
    files.filter(|path| path.is_file()).max_by_key(|path| path.metadata().map_or(0, |data| data.len()))
}

/// Megabytes per second.
fn read_speed(path: &Path) -> std::io::Result<f64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let part = length.min(STORAGE_BYTES as u64);
    let from = (length - part) / 2;
    // What nobody has mapped leaves the cache; a running daemon keeps its weights, and then this is the speed of memory.
    let _ = posix_fadvise(&file, from as i64, part as i64, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    file.seek(SeekFrom::Start(from))?;
    let mut buffer = vec![0; 1 << 20];
    let (began, mut done) = (Instant::now(), 0);
    while done < part && began.elapsed() < STORAGE_TIME {
        match file.read(&mut buffer)? {
            0 => break,
            more => done += more as u64,
        }
    }
    Ok(done as f64 / 1e6 / began.elapsed().as_secs_f64().max(1e-6))
}
