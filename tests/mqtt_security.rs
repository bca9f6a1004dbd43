//! Encryption and access rules: mosquitto with the configuration and the access list that `deploy/` ships.

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::Daemon;
use common::broker::Broker;
use common::peer::Peer;
use nix::sys::signal::Signal;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::json;

#[test]
#[ignore = "started by the other tests as their daemon"]
fn daemon_child() {
    common::daemon_child();
}

/// Certificates of one authority, in files that mosquitto's user can read.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Certificates {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        let certificates = Certificates(dir);
        certificates.make("ca", &["-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE"]);
        certificates
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn make(&self, name: &str, more: &[&str]) {
        let words = "req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        let mut command = Command::new("openssl");
        command.current_dir(self.0.path()).args(words.split(' ')).args(more);
        command.args(["-out", &format!("{name}.pem"), "-keyout", &format!("{name}.key")]);
        let output = command.output().expect("openssl is needed for this test (Debian package openssl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::set_permissions(self.path(&format!("{name}.key")), fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// A certificate of the authority's for a user or, with `extension`, for a server.
    fn sign(&self, name: &str, extension: &str) {
        let subject = format!("/CN={name}");
        let leaf = "basicConstraints=critical,CA:FALSE";
        self.make(
            name,
            &["-CA", "ca.pem", "-CAkey", "ca.key", "-subj", &subject, "-addext", leaf, "-addext", extension],
        );
    }
}

/// mosquitto with the shipped configuration and access list, and a second listener without encryption for the peers.
struct Guarded {
    broker: Broker,
    port: u16,
    certificates: Certificates,
}

impl Guarded {
    /// `more` is uncommented in the shipped configuration.
    fn start(more: &[&str]) -> Guarded {
        let certificates = Certificates::new();
        certificates.sign("broker", "subjectAltName=IP:127.0.0.1");
        let at = |name: &str| certificates.path(name).display().to_string();
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        let list = fs::read_to_string(deploy.join("mosquitto.acl")).unwrap().replace("kitchen", "n");
        fs::write(at("acl"), list).unwrap();
        fs::write(at("passwords"), "").unwrap();
        for user in ["emberd-n", "alice", "mallory", "homeassistant"] {
            let made = Command::new("mosquitto_passwd").arg("-b").arg(at("passwords")).args([user, user]).status();
            assert!(made.expect("mosquitto_passwd is needed for this test").success());
        }
        fs::set_permissions(at("passwords"), fs::Permissions::from_mode(0o644)).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (plain, port) = (free(), free());
        let mut config = fs::read_to_string(deploy.join("mosquitto.conf")).unwrap();
        for (from, to) in [
            ("listener 8883", format!("listener {port} 127.0.0.1")),
            ("/etc/mosquitto/ca.pem", at("ca.pem")),
            ("/etc/mosquitto/cert.pem", at("broker.pem")),
            ("/etc/mosquitto/key.pem", at("broker.key")),
            ("/etc/mosquitto/passwords", at("passwords")),
            ("/etc/mosquitto/emberd.acl", at("acl")),
        ] {
            assert!(config.contains(from), "{from}");
            config = config.replace(from, &to);
        }
        for line in more {
            assert!(config.contains(&format!("#{line}")), "{line}");
            config = config.replace(&format!("#{line}"), line);
        }
        // mosquitto has this setting for each listener; the shipped file sets it for its own.
        let broker = Broker::start_at(plain, &format!("use_username_as_clientid true\n{config}"));
        Guarded { broker, port, certificates }
    }

    fn settings(&self, more: &str) -> String {
        let ca = self.certificates.path("ca.pem");
        let settings = self.broker.settings(&format!("tls = true\nca_file = {ca:?}\n{more}"));
        settings.replace(&format!("port = {}", self.broker.port), &format!("port = {}", self.port))
    }

    /// Settings with the daemon's password, which is put into a file.
    fn by_password(&self) -> String {
        let file = self.certificates.path("secret");
        fs::write(&file, "emberd-n\n").unwrap();
        self.settings(&format!("username = \"emberd-n\"\npassword_file = {file:?}\n"))
    }

    fn peer(&self, name: &str, filter: &str) -> Peer {
        Peer::login(self.broker.port, name, name, name, filter)
    }
}

#[test]
fn nobody_asks_cancels_or_answers_in_anothers_name() {
    let guarded = Guarded::start(&[]);
    let daemon = Daemon::start(&guarded.by_password());
    let alice = guarded.peer("alice", "emberd/n/#");
    alice.wait_state("online");
    // A client id that is alice's makes nobody alice.
    let mallory = Peer::login(guarded.broker.port, "alice", "mallory", "mallory", "#");
    mallory.wait_state("online");

    alice.send("emberd/n/req/alice/1", "mine @hold");
    daemon.wait_journal("start mine @hold");
    mallory.send("emberd/n/req/alice/1/cancel", "");
    mallory.send("emberd/n/req/alice/2", "in her name");
    mallory.send("emberd/n/res/alice/1", "a forged answer");
    mallory.send("emberd/n/state", "offline");
    let to_alice = PublishProperties { response_topic: Some("emberd/n/res/alice/1".into()), ..Default::default() };
    mallory.send_with("emberd/n/req/mallory/1", "for alice", to_alice);
    let refusal = mallory.text_on("emberd/n/res/mallory/1");
    assert!(refusal.starts_with("error bad_request: Response Topic"), "{refusal}");
    daemon.release();
    assert_eq!(alice.text_on("emberd/n/res/alice/1"), "You said: mine @hold");

    // What mallory sent before this has been dealt with when this is answered.
    mallory.send("emberd/n/req/mallory/2", "own");
    let mut seen = Vec::new();
    while seen.last().is_none_or(|topic| topic != "emberd/n/res/mallory/2") {
        let publish = mallory.inbox.recv_timeout(common::PATIENCE).unwrap();
        seen.push(String::from_utf8(publish.topic.to_vec()).unwrap());
    }
    assert!(seen.iter().all(|topic| !topic.contains("alice") && !topic.contains("/req/")), "{seen:?}");
    alice.send("emberd/n/req/alice/3", "after all that");
    let mut words = Vec::new();
    while words.last().is_none_or(|word| word != "You said: after all that") {
        let publish = alice.inbox.recv_timeout(common::PATIENCE).unwrap();
        if publish.topic == "emberd/n/state" || !publish.topic.ends_with(b"/ev") {
            words.push(String::from_utf8(publish.payload.to_vec()).unwrap());
        }
    }
    assert_eq!(words, ["You said: after all that"], "a forged state or answer came through");
    let starts: Vec<_> = daemon.journal().lines().filter(|line| line.starts_with("start")).map(str::to_owned).collect();
    assert_eq!(starts, ["start mine @hold", "start own", "start after all that"]);
}

#[test]
fn a_client_certificate_opens_the_door_and_nothing_else_does() {
    let guarded = Guarded::start(&["require_certificate true", "use_identity_as_username true"]);
    let (certificates, broker) = (&guarded.certificates, &guarded.broker);
    certificates.sign("emberd-n", "extendedKeyUsage=clientAuth");
    let at = |name: &str| certificates.path(name);
    let identity = |cert: &str, key: &str| format!("cert_file = {:?}\nkey_file = {:?}\n", at(cert), at(key));
    let own = identity("emberd-n.pem", "emberd-n.key");
    let mut daemon = Daemon::start(&guarded.settings(&own));
    daemon.wait_notified("STATUS=serving the socket and MQTT");
    let alice = guarded.peer("alice", "emberd/n/#");
    alice.wait_state("online");
    // Several TLS records each way.
    let long = "long ".repeat(10_000);
    alice.send("emberd/n/req/alice/1", json!({"prompt": long, "raw": true}).to_string());
    let words = alice.json_on("emberd/n/res/alice/1")["error"]["message"].as_str().unwrap().to_owned();
    assert!(words.contains("50000 tokens"), "{words}");
    alice.send("emberd/n/req/alice/2", "@long");
    assert!(alice.text_on("emberd/n/res/alice/2").ends_with("word1023 "));
    daemon.signal(Signal::SIGTERM);
    alice.wait_state("offline");
    assert_eq!(daemon.wait().code(), Some(0));

    let stranger = Certificates::new();
    stranger.sign("emberd-n", "extendedKeyUsage=clientAuth");
    let foreign =
        format!("cert_file = {:?}\nkey_file = {:?}\n", stranger.path("emberd-n.pem"), stranger.path("emberd-n.key"));
    let authority =
        guarded.settings(&own).replace(&format!("{:?}", at("ca.pem")), &format!("{:?}", stranger.path("ca.pem")));
    let name = guarded.settings(&own).replace("127.0.0.1", "localhost");
    let plain = guarded.settings(&own).replace(&format!("port = {}", guarded.port), &format!("port = {}", broker.port));
    for (settings, words) in [
        (guarded.settings(""), "TLS: "),
        (guarded.settings(&foreign), "TLS: "),
        (authority, "invalid peer certificate"),
        (name, "not valid for name"),
        (plain, "TLS: "),
    ] {
        let daemon = Daemon::start(&settings);
        daemon.wait_logged("no connection to the MQTT broker");
        let log = daemon.log();
        assert!(log.contains(words) && !log.contains("connected to the MQTT broker host"), "{words}: {log}");
    }
}

#[test]
fn a_key_of_another_certificate_is_refused_at_the_start() {
    let certificates = Certificates::new();
    certificates.sign("one", "extendedKeyUsage=clientAuth");
    certificates.sign("two", "extendedKeyUsage=clientAuth");
    let at = |name: &str| certificates.path(name);
    let load = |cert: &str, key: &str| {
        emberd::transport::mqtt::Tls::load(Some(&at("ca.pem")), Some((&at(cert), &at(key)))).map(drop)
    };
    load("one.pem", "one.key").unwrap();
    let error = load("one.pem", "two.key").unwrap_err();
    assert_eq!(error.path, at("two.key"));
    assert!(error.reason.contains("not the key of") && error.reason.contains("one.pem"), "{error}");
    assert!(load("one.pem", "one.pem").unwrap_err().reason.contains("expected a private key"));
}
