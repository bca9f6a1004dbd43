//! Directory trees as boards show them to a program, with the files that the sensors read.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// A root directory that can be changed.
pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn new(files: &[(&str, &str)]) -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.write(files);
        tree
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, files: &[(&str, &str)]) {
        for (path, text) in files {
            let file = self.0.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.0.path().join(path)).unwrap();
    }

    /// Counters of four CPUs after `seconds`, with so many CPUs' worth of work by this process and by others.
    pub(crate) fn load(&self, seconds: u64, own: f64, others: f64) {
        let ticks = |cpus: f64| (cpus * 100.0 * seconds as f64) as u64;
        let busy = ticks(own + others);
        let cpus = "cpu0 0\ncpu1 0\ncpu2 0\ncpu3 0\n";
        let idle = 400 * seconds - busy;
        self.write(&[
            ("proc/stat", &format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n{cpus}intr 1 2 3\n")),
            ("proc/self/stat", &format!("77 (a (b) c) R 1 77 77 0 -1 0 9 0 40 0 {} 0 0 0 20 0 5 0", ticks(own))),
        ]);
    }
}

const MEMINFO: (&str, &str) = (
    "proc/meminfo",
    "MemTotal:        4052428 kB\nMemFree:          107060 kB\nMemAvailable:    2841544 kB\nSwapTotal:        524272 kB\n\
     SwapFree:         262144 kB\n",
);

const STATUS: (&str, &str) = (
    "proc/self/status",
    "Name:\temberd\nVmLck:\t     512 kB\nVmRSS:\t  901120 kB\nRssAnon:\t   81920 kB\nRssFile:\t  819200 kB\n",
);

/// Kernel 6.1 of Bookworm, memory controller and PSI switched off.
pub(crate) fn pi4() -> Tree {
    let tree = Tree::new(&[
        MEMINFO,
        STATUS,
        ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
        ("proc/self/cgroup", "0::/system.slice/emberd.service\n"),
        ("sys/fs/cgroup/system.slice/emberd.service/cgroup.procs", "77\n"),
        ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
        ("sys/class/thermal/thermal_zone0/temp", "51608\n"),
        ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
        ("sys/class/hwmon/hwmon0/temp1_input", "51608\n"),
        ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
        ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n"),
        ("sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware/get_throttled", "50000\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1800000\n"),
    ]);
    tree.load(10, 0.0, 0.0);
    tree
}

/// Kernel 6.6 of Bookworm with the active cooler, PSI and the memory controller switched on.
pub(crate) fn pi5_bookworm() -> Tree {
    let tree = Tree::new(&[
        MEMINFO,
        STATUS,
        ("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
        (
            "proc/pressure/cpu",
            "some avg10=12.50 avg60=3.00 avg300=0.50 total=100\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        (
            "proc/pressure/memory",
            "some avg10=1.25 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=5\n",
        ),
        (
            "proc/pressure/io",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        ),
        ("proc/self/cgroup", "0::/system.slice/emberd.service\n"),
        ("sys/fs/cgroup/system.slice/emberd.service/memory.max", "max\n"),
        ("sys/fs/cgroup/system.slice/emberd.service/memory.high", "1073741824\n"),
        ("sys/fs/cgroup/system.slice/emberd.service/memory.current", "943718400\n"),
        (
            "sys/fs/cgroup/system.slice/emberd.service/memory.stat",
            "anon 83886080\nactive_file 524288000\ninactive_file 314572800\n",
        ),
        ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
        ("sys/class/thermal/thermal_zone0/temp", "62250\n"),
        ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
        ("sys/class/hwmon/hwmon0/temp1_input", "62250\n"),
        ("sys/class/hwmon/hwmon1/name", "rp1_adc\n"),
        ("sys/class/hwmon/hwmon1/temp1_input", "48712\n"),
        ("sys/class/hwmon/hwmon2/name", "pwmfan\n"),
        ("sys/class/hwmon/hwmon2/fan1_input", "5218\n"),
        ("sys/class/hwmon/hwmon2/pwm1", "125\n"),
        ("sys/class/hwmon/hwmon3/name", "rpi_volt\n"),
        ("sys/class/hwmon/hwmon3/in0_lcrit_alarm", "1\n"),
        ("sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware/get_throttled", "0\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "2400000\n"),
    ]);
    tree.load(10, 0.0, 0.0);
    tree
}

/// Kernel 6.12 of Trixie: another name for the firmware's device, a zone of a disk before the processor's.
pub(crate) fn pi5_trixie() -> Tree {
    let tree = Tree::new(&[
        MEMINFO,
        STATUS,
        ("sys/firmware/devicetree/base/model", "Raspberry Pi 5 Model B Rev 1.1\0"),
        ("sys/class/thermal/thermal_zone0/type", "nvme\n"),
        ("sys/class/thermal/thermal_zone0/temp", "38850\n"),
        ("sys/class/thermal/thermal_zone1/type", "cpu-thermal\n"),
        ("sys/class/thermal/thermal_zone1/temp", "84150\n"),
        ("sys/bus/platform/drivers/raspberrypi-firmware/soc@107c000000:firmware/get_throttled", "e0008\n"),
    ]);
    tree.load(10, 0.0, 0.0);
    tree
}

/// A container on a PC: no sensors, a limit, the host's path in its cgroup file.
pub(crate) fn container() -> Tree {
    let tree = Tree::new(&[
        MEMINFO,
        STATUS,
        ("sys/class/thermal/thermal_zone0/type", "acpitz\n"),
        ("sys/class/thermal/thermal_zone0/temp", "27800\n"),
        ("proc/self/cgroup", "4:memory:/docker/0123456789\n1:cpu:/docker/0123456789\n0::/\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "402653184\n"),
        ("sys/fs/cgroup/memory/memory.stat", "cache 9\ntotal_inactive_file 67108864\ntotal_active_file 134217728\n"),
    ]);
    tree.load(10, 0.0, 0.0);
    tree
}
