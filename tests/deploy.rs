//! What `deploy/` has for fleets and for Home Assistant fits the code: topics, fields, configuration, names of packages, units and
//! credentials. `tests/home-assistant/check` holds the package against Home Assistant itself.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::binary::{emberd, run, stdout};
use emberd::transport::wire::{Asked, Form, Key, Topics, WireRequest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of every block scalar (`|` or `>-`) of `yaml`, each under the line before it that names it.
fn blocks<'a>(yaml: &'a str, named: &str, style: &str) -> Vec<(&'a str, String)> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = yaml.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_end().ends_with(&format!(": {style}"))) {
        let before = lines[..at].iter().rev().find_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(named));
        let block: Vec<&str> =
            lines[at + 1..].iter().copied().take_while(|l| l.is_empty() || indent(l) > indent(line)).collect();
        let margin = block.iter().filter(|line| !line.is_empty()).map(|line| indent(line)).min().unwrap_or_default();
        let text = block.iter().map(|line| format!("{}\n", line.get(margin..).unwrap_or_default())).collect::<String>();
        found.push((before.unwrap_or_default(), format!("{}\n", text.trim_end())));
    }
    found
}

const USER_DATA: &str = "deploy/cloud-init/user-data.yaml";

/// A file that the user data write.
fn written(path: &str) -> String {
    let yaml = read(USER_DATA);
    let blocks = blocks(&yaml, "path: ", "|");
    let found = blocks.into_iter().find(|(name, _)| *name == path);
    found.unwrap_or_else(|| panic!("{USER_DATA} does not write {path}")).1
}

#[test]
fn the_fleets_configuration_and_names_are_those_of_the_packages() {
    let yaml = read(USER_DATA);
    assert!(yaml.starts_with("#cloud-config\n"));
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, written("/etc/emberd/conf.d/20-mqtt.toml")).unwrap();
    let effective = stdout(run(emberd().arg("check-config").arg("--config").arg(&config)));
    assert!(effective.contains("username = \"emberd\"") && effective.contains("enabled = true"), "{effective}");
    // The broker's listener is where the daemon looks for it.
    let listener = written("/etc/mosquitto/conf.d/emberd.conf");
    let listener = listener.lines().find_map(|line| line.strip_prefix("listener ")).unwrap();
    let (port, host) = listener.split_once(' ').unwrap();
    let has = |line: String| assert!(effective.lines().any(|found| found == line), "{line}: {effective}");
    has(format!("host = \"{}\"", if host == "127.0.0.1" { "localhost" } else { host }));
    // A port that is not set is the standard's.
    assert!(port == "1883" && !effective.lines().any(|line| line.starts_with("port = ")), "{effective}");

    let unit = read("systemd/emberd.service");
    let install = written("/opt/emberd/install");
    for (text, credential) in
        [(&yaml, "/etc/credstore/emberd.mqtt-password"), (&install, "/etc/credstore/emberd.mqtt-password")]
    {
        assert!(text.contains(credential));
        let name = credential.rsplit('/').next().unwrap();
        assert!(unit.contains(&format!("LoadCredential=mqtt-password:{name}\n")));
    }
    let enabled = install.lines().find_map(|line| line.strip_prefix("systemctl enable --now ")).unwrap();
    for unit in enabled.split(' ') {
        assert!(read(&format!("systemd/{unit}")).contains("[Install]"), "{unit}");
    }
    let version = env!("CARGO_PKG_VERSION");
    let sums = written("/opt/emberd/SHA256SUMS");
    let names: Vec<&str> = sums.lines().map(|line| line.split_once("  ./").unwrap().1).collect();
    assert_eq!(names, [format!("emberd-model-home_{version}-1_all.deb"), format!("emberd_{version}-1_arm64.deb")]);
    assert!(yaml.contains("\nruncmd:\n  - [/opt/emberd/install]\n"));
}

/// Runs the script of the user data with directories of its own; what it made apt install.
struct Fleet {
    dir: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Fleet {
        let fleet = Fleet { dir: tempfile::tempdir().unwrap() };
        for name in ["bin", "boot", "served", "opt", "etc", "etc/mosquitto"] {
            fs::create_dir(fleet.at(name)).unwrap();
        }
        for program in ["apt-get", "systemctl", "mosquitto_passwd", "chown"] {
            // The password file is the one thing that the script looks for afterwards.
            let makes = if program == "mosquitto_passwd" { "touch \"$3\"\n" } else { "" };
            let script = format!("#!/bin/sh\necho {program} \"$@\" >>{}\n{makes}", fleet.at("calls").display());
            fs::write(fleet.at("bin").join(program), script).unwrap();
            fs::set_permissions(fleet.at("bin").join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let sums: String = ["emberd-model-home_1_all.deb", "emberd_1_arm64.deb"]
            .map(|name| {
                let sum: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{sum}  ./{name}\n")
            })
            .concat();
        fs::write(fleet.at("opt/SHA256SUMS"), sums).unwrap();
        fleet
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A package, whose contents are its name here.
    fn put(&self, place: &str, name: &str, contents: &str) {
        fs::write(self.at(place).join(name), contents).unwrap();
    }

    fn run(&self) -> (Output, String) {
        let mut script = written("/opt/emberd/install");
        for (from, to) in [
            ("/boot/firmware/emberd", self.at("boot").display().to_string()),
            ("https://packages.example/emberd", format!("file://{}", self.at("served").display())),
            ("/opt/emberd", self.at("opt").display().to_string()),
            ("/etc/", format!("{}/", self.at("etc").display())),
        ] {
            assert!(script.contains(from), "{from}");
            script = script.replace(from, &to);
        }
        let path = format!("{}:/usr/bin:/bin", self.at("bin").display());
        let output = run(Command::new("sh").arg("-c").arg(script).env("PATH", path));
        let calls = fs::read_to_string(self.at("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.at("calls"));
        (output, calls)
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "needs no architecture")]
fn the_fleets_script_installs_what_has_the_right_checksum_and_nothing_else() {
    const MODEL: &str = "emberd-model-home_1_all.deb";
    const DAEMON: &str = "emberd_1_arm64.deb";
    let fleet = Fleet::new();
    // One on the boot partition, the other on the server.
    fleet.put("boot", DAEMON, DAEMON);
    fleet.put("boot", "emberd_0_arm64.deb", "an older one");
    fleet.put("served", MODEL, MODEL);
    let (output, calls) = fleet.run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let installs = format!("apt-get install -y --no-install-recommends ./{MODEL} ./{DAEMON}\n");
    assert!(
        calls.contains(&installs) && calls.contains("systemctl enable --now emberd.socket emberd.service\n"),
        "{calls}"
    );
    let password = fleet.at("etc/credstore/emberd.mqtt-password");
    let kept = fs::read_to_string(&password).unwrap();
    assert_eq!((kept.trim().len(), fs::metadata(&password).unwrap().permissions().mode() & 0o777), (32, 0o600));
    assert!(calls.contains(&format!("passwd emberd {}\n", kept.trim())), "{calls}");

    // Again: the password stays.
    let (output, calls) = fleet.run();
    assert!(output.status.success() && calls.contains(&installs) && !calls.contains("mosquitto_passwd"), "{calls}");
    assert_eq!(fs::read_to_string(&password).unwrap(), kept);

    // Where the first run ended before the broker had it, too.
    fs::remove_file(fleet.at("etc/mosquitto/passwd")).unwrap();
    let (output, calls) = fleet.run();
    assert!(output.status.success() && calls.contains(&format!("passwd emberd {}\n", kept.trim())), "{calls}");

    // Another content, or none at all.
    fleet.put("served", MODEL, "damaged");
    let (output, calls) = fleet.run();
    assert!(!output.status.success() && calls.is_empty(), "{calls}");
    fs::remove_file(fleet.at("served").join(MODEL)).unwrap();
    let (output, calls) = fleet.run();
    assert!(!output.status.success() && calls.is_empty(), "{calls}");
}

const PACKAGE: &str = "deploy/home-assistant/emberd.yaml";

/// The package's topics, with a number where a template makes one.
fn topics(yaml: &str) -> Vec<String> {
    let lines = yaml.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("topic: "));
    let topics = lines.map(|topic| match topic.trim_matches('"').split_once("{{") {
        Some((fixed, template)) => {
            assert!(template.ends_with("| int }}"), "{topic}");
            format!("{fixed}1764100000")
        }
        None => topic.trim_matches('"').to_owned(),
    });
    topics.collect()
}

#[test]
fn home_assistants_package_uses_the_topics_and_fields_of_the_daemon() {
    let yaml = read(PACKAGE);
    let daemon = Topics::new("emberd", "kitchen");
    let key = Key { shared: false, client: "homeassistant".into(), id: "ID".into() };
    let answers = daemon.response(&key).replace("ID", "+");
    let mut asked = BTreeSet::new();
    let mut heard = 0;
    for topic in topics(&yaml) {
        if topic == answers {
            heard += 1;
            continue;
        }
        let Some(Asked::Answer(key)) = daemon.asked(&topic) else { panic!("{topic} is no request") };
        assert_eq!(key.client, "homeassistant");
        asked.insert(key.id.strip_suffix("1764100000").unwrap().to_owned());
    }
    assert_eq!(heard, 1, "{answers}");
    // What is asked is waited for.
    assert!(!asked.is_empty());
    for id in &asked {
        assert!(yaml.contains(&format!("id.startswith('{id}')")), "{id}");
    }
    // The user may do so: mosquitto.acl's patterns are for every user's own name.
    let acl = read("deploy/mosquitto.acl");
    assert!(acl.contains("pattern write emberd/+/req/%u/+\n") && acl.contains("pattern read emberd/+/res/%u/#\n"));
}

/// What Home Assistant makes of the package's templates, kept by `tests/home-assistant/check`, is taken by the daemon as it is.
#[test]
fn the_daemon_takes_the_requests_that_home_assistant_makes() {
    let rendered: Vec<Value> = serde_json::from_str(include_str!("home-assistant/requests.json")).unwrap();
    assert_eq!(rendered.len(), blocks(&read(PACKAGE), "topic: ", ">-").len());
    for request in &rendered {
        let form = Form::of(None, request.to_string().as_bytes());
        assert!(form == Form::Json);
        WireRequest::parse(form, request.to_string().as_bytes()).unwrap_or_else(|error| panic!("{request}: {error:?}"));
        // Every field is one that is read: what is unknown is ignored, and would only look as if it did something.
        for field in request.as_object().unwrap().keys() {
            assert!(
                ["system", "prompt", "max_tokens", "timeout_s", "response_format"].contains(&field.as_str()),
                "{field}"
            );
        }
        let mut wrong = request.clone();
        wrong["timeout_s"] = json!("soon");
        assert!(WireRequest::parse(form, wrong.to_string().as_bytes()).is_err());
    }
}
