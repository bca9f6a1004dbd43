//! What the doctor says about recorded boards.

use std::path::Path;

use emberd::daemon::Config;
use emberd::daemon::doctor::{Finding, Verdict, examine};

use super::boards::{Tree, container, pi4, pi5_bookworm, pi5_trixie};

fn config() -> Config {
    let mut config = Config::default();
    config.model.path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    config.model.context = 512;
    config
}

fn verdicts(tree: &Tree) -> Vec<Finding> {
    examine(tree.root(), &config())
}

fn of<'a>(findings: &'a [Finding], about: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.about == about).unwrap_or_else(|| panic!("{about}: {findings:#?}"))
}

#[test]
fn what_was_just_read_is_in_the_page_cache() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
    {
        // A copy belongs to whoever runs this, and its pages have just been written.
        std::fs::copy(config().model.path.join(file), dir.path().join(file)).unwrap();
    }
    let mut config = config();
    config.model.path = dir.path().to_path_buf();
    let findings = examine(pi4().root(), &config);
    let finding = of(&findings, "page cache");
    let length = std::fs::metadata(dir.path().join("model.safetensors")).unwrap().len().div_ceil(1 << 20);
    assert_eq!(finding.found, format!("{length} of the file's {length} MB are in memory"));
}

#[test]
fn a_pi_4_is_told_of_its_past_and_of_kernel_options() {
    let findings = verdicts(&pi4());
    assert!(of(&findings, "board").found.starts_with("Raspberry Pi 4"));
    assert_eq!(of(&findings, "temperature").verdict, Verdict::Ok);
    for (about, remedy) in [("power", "supply"), ("throttling", "heat sink")] {
        let finding = of(&findings, about);
        assert_eq!(finding.verdict, Verdict::Warning, "{finding:?}");
        assert!(finding.found.contains("since boot") && finding.remedy.as_ref().unwrap().contains(remedy));
    }
    for (about, option) in [("memory pressure", "psi=1"), ("memory limits", "cgroup_enable=memory")] {
        assert!(of(&findings, about).remedy.as_ref().unwrap().contains(option));
    }
    assert_eq!((of(&findings, "model").verdict, of(&findings, "memory").verdict), (Verdict::Ok, Verdict::Ok));
    assert!(of(&findings, "throttling").found.contains("/sys/bus/platform/drivers/raspberrypi-firmware/"));
}

#[test]
fn a_pi_5_with_a_weak_supply_and_a_hot_processor() {
    let tree = pi5_bookworm();
    tree.write(&[("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")]);
    std::fs::create_dir_all(tree.root().join("proc/device-tree/chosen/power")).unwrap();
    std::fs::write(tree.root().join("proc/device-tree/chosen/power/max_current"), 3000_u32.to_be_bytes()).unwrap();
    let findings = verdicts(&tree);
    assert_eq!(of(&findings, "power").verdict, Verdict::Problem);
    assert!(of(&findings, "supply").remedy.as_ref().unwrap().contains("PSU_MAX_CURRENT"));
    assert!(of(&findings, "fan").found.contains("5218"));
    for about in ["memory pressure", "memory limits"] {
        assert_eq!(of(&findings, about).verdict, Verdict::Ok);
    }
    let findings = verdicts(&pi5_trixie());
    assert_eq!(
        (of(&findings, "temperature").verdict, of(&findings, "throttling").verdict),
        (Verdict::Warning, Verdict::Warning)
    );
}

#[test]
fn what_cannot_work_is_a_problem() {
    let tree = pi4();
    tree.write(&[
        ("sys/class/thermal/thermal_zone0/temp", "-273150\n"),
        ("proc/meminfo", "MemTotal: 1024 kB\nMemAvailable: 512 kB\n"),
    ]);
    let findings = verdicts(&tree);
    assert_eq!(of(&findings, "temperature").verdict, Verdict::Problem);
    assert_eq!(of(&findings, "memory").verdict, Verdict::Problem);
    let mut config = config();
    config.model.path = "/nowhere/model".into();
    let findings = examine(container().root(), &config);
    assert_eq!(of(&findings, "model").verdict, Verdict::Problem);
    assert_eq!(of(&findings, "temperature").verdict, Verdict::Note, "no Pi, no matter");
}

#[test]
fn storage_is_measured_on_the_model_itself() {
    let findings = verdicts(&pi4());
    assert!(of(&findings, "storage").found.contains("MB/s"));
}
