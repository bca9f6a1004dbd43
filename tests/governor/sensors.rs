//! What the sensors make of recorded boards.

use std::path::Path;
use std::time::{Duration, Instant};

use emberd::governor::sensors::Found;
use emberd::governor::{Fan, Firmware, Memory, Pressure, Process, Sample, Sensors, Temperature, Work};

use super::boards::{Tree, container, pi4, pi5_bookworm, pi5_trixie};

const KB: u64 = 1024;

fn read(tree: &Tree) -> (Found, Sample) {
    let mut sensors = Sensors::new(tree.root(), 4);
    (sensors.found(), sensors.read(Instant::now(), Work::default()))
}

#[test]
fn a_pi_4_without_pressure_and_memory_controller() {
    let tree = pi4();
    let (found, sample) = read(&tree);
    assert_eq!(found.board.as_deref(), Some("Raspberry Pi 4 Model B Rev 1.4"));
    assert_eq!(sample.temperature, Temperature::Celsius(51.608));
    let bits = sample.firmware.unwrap();
    assert!(bits.under_voltage_seen() && bits.throttled_seen() && !bits.under_voltage() && !bits.throttled());
    assert_eq!((sample.under_voltage, sample.fan, sample.clock_mhz), (Some(false), None, Some(1800.0)));
    let free = Some(Memory { total: 4_052_428 * KB, available: 2_841_544 * KB, swap_free: 262_144 * KB, limit: None });
    assert_eq!(sample.memory, free);
    assert_eq!((sample.cpu_pressure, sample.memory_pressure, sample.io_pressure), (None, None, None));
    let process = Process { major_faults: 40, resident: 901_120 * KB, resident_file: 819_200 * KB, locked: 512 * KB };
    assert_eq!(sample.process, process);
}

#[test]
fn a_pi_5_on_bookworm_with_everything_switched_on() {
    let tree = pi5_bookworm();
    let (found, sample) = read(&tree);
    assert!(found.fan.unwrap().ends_with("hwmon2"));
    assert_eq!(sample.temperature, Temperature::Celsius(62.25), "and not the 48.7 of the I/O controller");
    assert_eq!(sample.fan, Some(Fan { rpm: Some(5218), pwm: Some(125) }));
    // The alarm sees it before the firmware's bit does.
    assert_eq!((sample.firmware, sample.under_voltage), (Some(Firmware(0)), Some(true)));
    assert_eq!(sample.cpu_pressure, Some(Pressure { some: 12.5, full: 0.0 }));
    assert_eq!(sample.memory_pressure, Some(Pressure { some: 1.25, full: 0.75 }));
    // 1024 MiB are allowed, 900 are used, 800 of them for files.
    let memory = sample.memory.unwrap();
    assert_eq!((memory.limit, memory.available), (Some(1024 * KB * KB), 924 * KB * KB));
}

#[test]
fn a_pi_5_on_trixie_that_is_throttled() {
    let tree = pi5_trixie();
    let (found, sample) = read(&tree);
    assert_eq!(found.temperature.unwrap().1, "cpu-thermal");
    assert_eq!(sample.temperature, Temperature::Celsius(84.15), "and not the disk's");
    let bits = sample.firmware.unwrap();
    assert!(bits.throttled() && bits.throttled_seen() && !bits.under_voltage_seen());
    assert_eq!(sample.under_voltage, Some(false));
}

#[test]
fn a_container_has_a_limit_and_no_sensor() {
    let (found, sample) = read(&container());
    assert_eq!(found, Found { board: None, temperature: None, throttled: None, under_voltage: None, fan: None });
    assert_eq!(sample.temperature, Temperature::None, "ACPI's constant is no processor");
    assert_eq!((sample.firmware, sample.under_voltage), (None, None));
    let memory = sample.memory.unwrap();
    assert_eq!((memory.limit, memory.available), (Some(512 * KB * KB), (512 - 384 + 192) * KB * KB));
}

#[test]
fn nothing_at_all_is_no_error() {
    let tree = Tree::new(&[]);
    let (_, sample) = read(&tree);
    assert_eq!(sample, Sample { cpus: 4, ..Sample::default() });
}

/// Gone, absurd or not a number: lost. A Pi that never showed one has lost it, too.
#[test]
fn a_sensor_that_gives_nonsense_is_lost_and_can_come_back() {
    const TEMP: &str = "sys/class/thermal/thermal_zone0/temp";
    let tree = pi4();
    let mut sensors = Sensors::new(tree.root(), 4);
    let mut now = Instant::now();
    let mut read = || {
        now += Duration::from_secs(60);
        sensors.read(now, Work::default()).temperature
    };
    assert_eq!(read(), Temperature::Celsius(51.608));
    for nonsense in ["-273150\n", "999000\n", "", "warm\n", "NaN\n"] {
        tree.write(&[(TEMP, nonsense)]);
        assert_eq!(read(), Temperature::Lost, "{nonsense:?}");
    }
    tree.write(&[(TEMP, "60000\n")]);
    assert_eq!(read(), Temperature::Celsius(60.0));
    tree.remove(TEMP);
    // The other file of the same sensor.
    assert_eq!(read(), Temperature::Celsius(51.608));
    tree.remove("sys/class/hwmon/hwmon0/temp1_input");
    assert_eq!(read(), Temperature::Lost);
    assert_eq!(Sensors::new(tree.root(), 4).read(now, Work::default()).temperature, Temperature::Lost);
}

/// Drivers come late at boot, whatever can be read by then.
#[test]
fn power_sensors_that_come_late_are_found() {
    const BITS: &str = "sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware/get_throttled";
    const ALARM: &str = "sys/class/hwmon/hwmon1/in0_lcrit_alarm";
    let tree = pi4();
    tree.remove(BITS);
    tree.remove(ALARM);
    let mut sensors = Sensors::new(tree.root(), 4);
    let mut now = Instant::now();
    let mut read = || {
        now += Duration::from_secs(60);
        let sample = sensors.read(now, Work::default());
        (sample.firmware, sample.under_voltage)
    };
    assert_eq!(read(), (None, None));
    tree.write(&[(BITS, "50000\n"), (ALARM, "0\n")]);
    read();
    assert_eq!(read(), (Some(Firmware(0x50000)), Some(false)));
}

#[test]
fn loads_are_told_apart() {
    let tree = pi4();
    let mut sensors = Sensors::new(tree.root(), 4);
    let mut read = || {
        let sample = sensors.read(Instant::now(), Work::default());
        (sample.own_load, sample.other_load)
    };
    assert_eq!(read(), (0.0, 0.0));
    // Over all twenty seconds, so twice as much over the last ten.
    tree.load(20, 1.0, 0.5);
    assert_eq!(read(), (2.0, 1.0));
    assert_eq!(read(), (0.0, 0.0), "no time has passed");
}

/// This machine, whatever it is.
#[test]
fn the_real_files_can_be_read() {
    let sample = Sensors::new(Path::new("/"), 1).read(Instant::now(), Work::default());
    let memory = sample.memory.unwrap();
    assert!(memory.available > 0 && memory.available <= memory.total, "{memory:?}");
    assert!(sample.process.resident > 1 << 20, "{:?}", sample.process);
}
