//! What MQTT promises: a request that was acknowledged is answered, once, whatever happens to the daemon or the broker.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::binary::Served;
use common::broker::Broker;
use common::proxy::{Proxy, Way};
use common::{Daemon, PATIENCE, wait_for};
use emberd::spool::{Admission, Limits, Spool};
use nix::sys::signal::Signal;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Connection, Event, MqttOptions};
use serde_json::{Value, json};

#[test]
#[ignore = "started by the other tests as their daemon"]
fn daemon_child() {
    common::daemon_child();
}

/// A client that keeps count of every answer it ever got.
struct Peer {
    client: Client,
    connection: Connection,
    answers: BTreeMap<String, Vec<String>>,
    acknowledged: usize,
    online: bool,
}

impl Peer {
    fn connect(port: u16) -> Peer {
        let mut options = MqttOptions::new("peer", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(60)).set_max_packet_size(Some(1 << 20)).set_clean_start(false);
        options.set_session_expiry_interval(Some(3600));
        let (client, connection) = Client::new(options, 1000);
        client.subscribe("emberd/n/res/peer/+", QoS::AtLeastOnce).unwrap();
        client.subscribe("emberd/n/state", QoS::AtLeastOnce).unwrap();
        let (answers, acknowledged, online) = Default::default();
        Peer { client, connection, answers, acknowledged, online }
    }

    fn ask(&self, id: &str, prompt: &str) {
        self.client.publish(format!("emberd/n/req/peer/{id}"), QoS::AtLeastOnce, false, prompt.to_owned()).unwrap();
    }

    /// As [`Peer::ask`], for many: what is asked waits in the client, which takes no more than a thousand.
    fn ask_in_between(&mut self, id: &str, prompt: &str) {
        let topic = format!("emberd/n/req/peer/{id}");
        while self.client.try_publish(&topic, QoS::AtLeastOnce, false, prompt.to_owned()).is_err() {
            self.run(Duration::from_millis(20), |_| false);
        }
    }

    /// Takes part in the connection until `done` or for so long.
    fn run(&mut self, time: Duration, mut done: impl FnMut(&Peer) -> bool) -> bool {
        let until = Instant::now() + time;
        loop {
            if done(self) {
                return true;
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            match self.connection.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => {
                    let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                    let text = String::from_utf8(publish.payload.to_vec()).unwrap();
                    match topic.strip_prefix("emberd/n/res/peer/") {
                        Some(id) => self.answers.entry(id.to_owned()).or_default().push(text),
                        None => self.online = text == "online",
                    }
                }
                Ok(Ok(Event::Incoming(Packet::PubAck(_)))) => self.acknowledged += 1,
                Ok(Err(_)) => std::thread::sleep(Duration::from_millis(50)),
                _ => {}
            }
        }
    }

    fn wait_online(&mut self) {
        assert!(self.run(PATIENCE, |client| client.online), "the daemon comes online");
    }

    fn answer(&mut self, id: &str) -> String {
        assert!(self.run(PATIENCE, |client| client.answers.contains_key(id)), "no answer to {id}");
        self.answers[id].last().unwrap().clone()
    }

    fn answered(&self, id: &str) -> usize {
        self.answers.get(id).map_or(0, Vec::len)
    }
}

/// A broker that forgets nothing: what is tested is the daemon.
fn broker() -> Broker {
    Broker::start_at(common::broker::free_port(), "max_queued_messages 0\nmax_inflight_messages 0")
}

fn starts(journal: &str, prompt: &str) -> usize {
    let line = format!("start {prompt}");
    journal.lines().filter(|found| **found == line).count()
}

/// Lets the daemon die at the n-th time that it reaches a place, starts the next one, and looks at what a client saw.
fn dies_at(place: &str, id: &str, broker: &Broker, client: &mut Peer, dir: tempfile::TempDir) -> tempfile::TempDir {
    client.online = false;
    let mut first = Daemon::start_in(dir, &broker.settings(""), &[("EMBERD_FAIL", place)]);
    client.wait_online();
    let prompt = format!("prompt {id}");
    client.ask(id, &prompt);
    client.run(PATIENCE, |_| !first.running());
    assert!(!first.running(), "{place} was never reached");
    let before = client.answered(id);
    let second = Daemon::start_in(first.into_dir(), &broker.settings(""), &[]);
    assert_eq!(client.answer(id), format!("You said: {prompt}"), "{place}");
    // A repetition gets the same answer and is not run again.
    wait_for("the end of the request", || second.idle().then_some(()));
    let runs = starts(&second.journal(), &prompt);
    let seen = client.answered(id);
    client.ask(id, &prompt);
    assert!(client.run(PATIENCE, |client| client.answered(id) > seen), "{place}: no answer to the repetition");
    assert_eq!(starts(&second.journal(), &prompt), runs, "{place}: ran again after its answer existed");
    let allowed =
        2 - usize::from(before > 0 || place.starts_with("mqtt.stored") || place.starts_with("mqtt.completed"));
    assert!((1..=allowed).contains(&runs), "{place}: ran {runs} times");
    let texts: BTreeSet<_> = client.answers[id].iter().collect();
    assert_eq!(texts.len(), 1, "{place}: {texts:?}");
    second.kill()
}

#[test]
fn dying_at_every_step_loses_nothing() {
    let (broker, mut dir) = (broker(), tempfile::tempdir().unwrap());
    let mut client = Peer::connect(broker.port);
    let places = [
        "mqtt.arrived",
        "spool.before-commit:3",
        "spool.after-commit:3",
        "mqtt.admitted",
        "mqtt.acknowledged",
        "mqtt.started",
        "mqtt.ended",
        "mqtt.stored",
        "mqtt.completed",
    ];
    for (number, place) in places.iter().enumerate() {
        dir = dies_at(place, &format!("s{number}"), &broker, &mut client, dir);
    }
}

#[test]
fn an_answer_in_pieces_is_sent_again_whole() {
    let (broker, more) = (broker(), "[[mqtt.clients]]\nnames = [\"peer\"]\npacket_bytes = 64\n");
    let mut client = Peer::connect(broker.port);
    let settings = broker.settings(more);
    // The text that the pieces from the last number 1 on make, once there is an end mark.
    let whole = |client: &Peer, id: &str| {
        let pieces = client.answers.get(id)?;
        let first = pieces.iter().rposition(|piece| piece.starts_with("1:"))?;
        let mut text = String::new();
        for (at, piece) in pieces[first..].iter().enumerate() {
            let rest = piece.strip_prefix(&(at + 1).to_string())?;
            text.push_str(&rest[1..]);
            if rest.starts_with('.') {
                return Some(text);
            }
        }
        None
    };
    let prompt = |id: &str, place: &str| format!("{id} {place} {}", "long enough for several packets ".repeat(6));
    let mut dir = tempfile::tempdir().unwrap();
    // Without a name a request is kept under its own one; with a name it can be repeated.
    for (id, place) in [("a", "mqtt.stored"), ("b", "mqtt.completed"), ("-", "mqtt.acknowledged"), ("-", "mqtt.stored")]
    {
        client.online = false;
        client.answers.clear();
        let mut first = Daemon::start_in(dir, &settings, &[("EMBERD_FAIL", place)]);
        client.wait_online();
        client.ask(id, &prompt(id, place));
        client.run(PATIENCE, |_| !first.running());
        assert!(!first.running(), "{place} was never reached");
        client.answers.clear();
        let second = Daemon::start_in(first.into_dir(), &settings, &[]);
        let expected = Some(format!("You said: {}", prompt(id, place)));
        assert!(client.run(PATIENCE, |client| whole(client, id) == expected), "{id}, {place}: {:?}", client.answers);
        if id != "-" {
            client.answers.clear();
            client.ask(id, &prompt(id, place));
            assert!(client.run(PATIENCE, |client| whole(client, id) == expected), "{id}, {place}: no repetition");
        }
        // A request without a name whose acknowledgement was lost comes again as another one.
        let runs = starts(&second.journal(), prompt(id, place).as_str());
        assert!(runs <= 2, "{id}, {place}: ran {runs} times");
        dir = second.kill();
    }
}

#[test]
fn a_request_that_kills_the_daemon_twice_is_given_up() {
    let broker = broker();
    let mut client = Peer::connect(broker.port);
    client.client.subscribe("emberd/n/dead", QoS::AtLeastOnce).unwrap();
    let mut daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &broker.settings(""), &[]);
    client.wait_online();
    client.ask("deadly", "@stall");
    client.ask("other", "harmless");
    client.run(PATIENCE, |client| starts(&daemon.journal(), "@stall") == 1 && client.acknowledged == 2);
    daemon = Daemon::start_in(daemon.kill(), &broker.settings(""), &[]);
    wait_for("the second attempt", || (starts(&daemon.journal(), "@stall") == 2).then_some(()));
    daemon = Daemon::start_in(daemon.kill(), &broker.settings(""), &[]);
    assert!(client.answer("deadly").starts_with("error internal: the daemon died 2 times"));
    assert_eq!(client.answer("other"), "You said: harmless");
    assert_eq!(starts(&daemon.journal(), "@stall"), 2);
}

#[test]
fn another_body_is_refused_and_cancelling_takes_the_right_one() {
    let broker = broker();
    let mut client = Peer::connect(broker.port);
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &broker.settings(""), &[]);
    client.wait_online();
    client.ask("1", "one @hold");
    client.run(PATIENCE, |_| starts(&daemon.journal(), "one @hold") == 1);
    client.ask("2", "two");
    client.ask("1", "something else");
    assert!(client.answer("1").starts_with("error duplicate_mismatch"));
    client.client.publish("emberd/n/req/peer/2/cancel", QoS::AtLeastOnce, false, "").unwrap();
    assert!(client.answer("2").starts_with("error cancelled"));
    daemon.release();
    assert!(client.run(PATIENCE, |client| client.answered("1") == 2));
    assert_eq!(client.answers["1"][1], "You said: one @hold");
    // What was cancelled stays so, and an answered id still refuses another body.
    client.ask("2", "two");
    client.ask("1", "something else");
    assert!(client.run(PATIENCE, |client| client.answered("1") == 3 && client.answered("2") == 2));
    assert!(client.answers["1"][2].starts_with("error duplicate_mismatch"));
    assert_eq!(starts(&daemon.journal(), "two"), 0);
}

#[test]
fn a_disk_that_takes_nothing_admits_nothing_and_what_is_held_is_served() {
    let broker = broker();
    let mut client = Peer::connect(broker.port);
    let settings = broker.settings("[queue]\ndepth = 100");
    let mut daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &settings, &[]);
    client.wait_online();
    client.ask("held", "held @hold");
    client.run(PATIENCE, |_| starts(&daemon.journal(), "held @hold") == 1);
    // A limit of the file size is a full disk to the process.
    let size = std::fs::metadata(daemon.dir.path().join("spool.redb")).unwrap().len();
    daemon.limit_file_size(size);
    let large = "x".repeat(100_000);
    let full = |client: &Peer| {
        let refused = client.answers.iter().find(|(_, said)| said[0].starts_with("error busy: the spool"));
        refused.map(|(id, _)| id.clone())
    };
    let mut asked = 0;
    while full(&client).is_none() {
        assert!(asked < 60, "{size} bytes never get full");
        client.ask(&asked.to_string(), &large);
        client.run(Duration::from_millis(200), |client| full(client).is_some());
        asked += 1;
    }
    let refused = full(&client).unwrap();
    daemon.release();
    assert_eq!(client.answer("held"), "You said: held @hold");
    daemon.limit_file_size(u64::MAX);
    for attempt in 0.. {
        client.answers.remove(&refused);
        client.ask(&refused, &large);
        // Admitted: the fake model finds it too large.
        if client.answer(&refused).starts_with("error too_large") {
            break;
        }
        assert!(attempt < 100, "{:?}", client.answers[&refused]);
        client.run(Duration::from_millis(100), |_| false);
    }
    for number in 0..asked {
        assert!(client.answer(&number.to_string()).starts_with("error"), "{number}");
    }
    // What could not be written was written since.
    daemon = Daemon::start_in(daemon.kill(), &settings, &[]);
    client.answers.clear();
    client.ask("held", "held @hold");
    assert_eq!(client.answer("held"), "You said: held @hold");
    assert_eq!(starts(&daemon.journal(), "held @hold"), 1);
}

/// By a full disk, or by a cut of the power in the first moments of the first start.
#[test]
fn a_spool_whose_making_was_cut_off_is_made_again() {
    let (broker, dir) = (broker(), tempfile::tempdir().unwrap());
    let mut client = Peer::connect(broker.port);
    let file = std::fs::File::create(dir.path().join("spool.redb")).unwrap();
    file.set_len(1 << 20).unwrap();
    let _daemon = Daemon::start_in(dir, &broker.settings(""), &[]);
    client.wait_online();
    client.ask("1", "hello");
    assert_eq!(client.answer("1"), "You said: hello");
}

/// A file system in a namespace of its own, which can turn read-only under the programs that run in there.
struct Disk {
    holder: Child,
    path: PathBuf,
}

impl Disk {
    /// None where there are no namespaces.
    fn mount(path: PathBuf) -> Option<Disk> {
        std::fs::create_dir_all(&path).unwrap();
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs -o size=8m tmpfs \"$0\" && echo mounted && exec cat";
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(&path);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare of util-linux");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let disk = Disk { holder, path };
        (said == "mounted\n").then_some(disk)
    }

    /// What a command line begins with that is to run in there.
    fn runner(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["nsenter", "--user", "--mount", "--preserve-credentials", "--target", &pid].map(str::to_owned).into()
    }

    /// Runs a line of shell in there, where `$0` is where the disk is.
    fn run(&self, script: &str) -> bool {
        let runner = self.runner();
        let mut command = Command::new(&runner[0]);
        command.args(&runner[1..]).args(["sh", "-c", script]).arg(&self.path);
        command.stderr(Stdio::null()).status().unwrap().success()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "mounts a file system in a namespace of its own")]
fn a_disk_that_turns_read_only_admits_nothing_and_what_is_held_is_served() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(place.path().join("disk")) else {
        println!("skipped: no namespace for a file system that turns read-only here");
        return;
    };
    let broker = broker();
    let mut client = Peer::connect(broker.port);
    let settings = broker.settings("[queue]\ndepth = 100");
    let spool = disk.path.join("spool.redb");
    let start = |dir| {
        let environment = [("EMBERD__SPOOL__PATH", spool.to_str().unwrap())];
        let daemon = Daemon::launch_by(&disk.runner(), dir, &settings, &environment);
        daemon.wait_notified("READY=1");
        daemon
    };
    let refused = |client: &mut Peer, id: &str, prompt: &str| {
        client.answers.remove(id);
        client.ask(id, prompt);
        client.answer(id).starts_with("error busy: the spool cannot be written:")
    };
    let read_only = |client: &Peer, id: &str| client.answers[id][0].contains("Read-only file system");
    let mut daemon = start(tempfile::tempdir().unwrap());
    client.wait_online();
    client.ask("held", "held @hold");
    client.run(PATIENCE, |_| starts(&daemon.journal(), "held @hold") == 1);

    // It can only turn so while nobody has a file open for writing: after a write that failed, for a second.
    assert!(!disk.run("mount -o remount,ro \"$0\""), "the spool is open");
    assert!(!disk.run("head -c 20M /dev/zero > \"$0/filler\""), "it is full now");
    let large = "x".repeat(100_000);
    let until = Instant::now() + PATIENCE;
    for n in 0.. {
        assert!(Instant::now() < until, "it cannot be made read-only");
        if refused(&mut client, &format!("large{n}"), &large) && disk.run("mount -o remount,ro \"$0\"") {
            break;
        }
    }
    while !(refused(&mut client, "small", "small") && read_only(&client, "small")) {
        assert!(Instant::now() < until, "{:?}", client.answers["small"]);
    }
    daemon.release();
    assert_eq!(client.answer("held"), "You said: held @hold");
    daemon.wait_logged("Read-only file system");

    // What could not be written then is written later.
    assert!(disk.run("mount -o remount,rw \"$0\" && rm \"$0/filler\""));
    daemon.wait_logged("the spool can be written again");
    daemon = start(daemon.kill());
    client.answers.clear();
    client.ask("held", "held @hold");
    assert_eq!(client.answer("held"), "You said: held @hold");
    assert_eq!(starts(&daemon.journal(), "held @hold"), 1);

    // A start on such a disk: what it holds is taken up when it can be written.
    daemon.hold();
    client.ask("later", "later @hold");
    client.run(PATIENCE, |_| starts(&daemon.journal(), "later @hold") == 1);
    let dir = daemon.kill();
    assert!(disk.run("mount -o remount,ro \"$0\""));
    client.online = false;
    daemon = start(dir);
    client.wait_online();
    assert!(refused(&mut client, "small", "small") && read_only(&client, "small"), "{:?}", client.answers["small"]);
    assert!(disk.run("mount -o remount,rw \"$0\""));
    daemon.release();
    assert_eq!(client.answer("later"), "You said: later @hold");
    assert_eq!(starts(&daemon.journal(), "later @hold"), 2);
    assert!(!refused(&mut client, "small", "small") && client.answers["small"] == ["You said: small"]);
}

#[test]
fn clients_take_turns_and_priorities_go_first() {
    let broker = broker();
    let mut client = Peer::connect(broker.port);
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &broker.settings("[queue]\ndepth = 150"), &[]);
    client.wait_online();
    client.ask("0", "first @hold");
    client.run(PATIENCE, |_| starts(&daemon.journal(), "first @hold") == 1);
    for number in 1..=100 {
        client.ask(&number.to_string(), &format!("many {number}"));
    }
    client.run(PATIENCE, |_| daemon.waiting() == 100);
    let other = |id: &str, body: Value| {
        client.client.publish(format!("emberd/n/req/{id}"), QoS::AtLeastOnce, false, body.to_string()).unwrap();
    };
    other("second/1", json!({"prompt": "single"}));
    other("third/1", json!({"prompt": "later", "priority": "low"}));
    other("third/2", json!({"prompt": "now", "priority": "high"}));
    client.run(PATIENCE, |_| daemon.waiting() == 103);
    daemon.release();
    client.run(PATIENCE, |_| daemon.idle());
    let journal = daemon.journal();
    let order: Vec<&str> = journal.lines().filter_map(|line| line.strip_prefix("start ")).collect();
    let many = (1..=100).map(|number| format!("many {number}"));
    let expected: Vec<String> = ["first @hold", "now", "single"]
        .map(str::to_owned)
        .into_iter()
        .chain(many)
        .chain(["later".to_owned()])
        .collect();
    assert_eq!(order, expected);
}

#[test]
fn a_hundred_clients_get_an_answer_or_busy() {
    let broker = broker();
    let mut client = Peer::connect(broker.port);
    let listener = common::peer::Peer::connect(broker.port, "listener", "emberd/n/res/+/1");
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &broker.settings("[queue]\ndepth = 32"), &[]);
    client.wait_online();
    client.ask("hold", "@hold");
    client.run(PATIENCE, |_| starts(&daemon.journal(), "@hold") == 1);
    let mut command = Command::new("sh");
    let script = format!(
        "for n in $(seq 100); do mosquitto_pub -h 127.0.0.1 -p {} -q 1 -t emberd/n/req/c$n/1 -m hello & done; wait",
        broker.port
    );
    assert!(command.arg("-c").arg(script).status().unwrap().success());
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut hear = || {
        let publish = listener.inbox.recv_timeout(PATIENCE).expect("an answer or `busy`");
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let text = String::from_utf8(publish.payload.to_vec()).unwrap();
        let name = topic.split('/').nth(3).unwrap().to_owned();
        told.entry(name.clone()).or_default().push(text);
        name
    };
    // Those that the queue has no room for hear of it at once.
    (0..68).for_each(|_| drop(hear()));
    daemon.wait_waiting(32);
    daemon.release();
    (0..32).for_each(|_| drop(hear()));
    // What another one is told comes after all that there was to say.
    listener.send("emberd/n/req/last/1", "last");
    while hear() != "last" {}
    let clients: BTreeSet<String> = (1..=100).map(|n| format!("c{n}")).chain(["last".to_owned()]).collect();
    assert!(told.keys().eq(&clients) && told.values().all(|said| said.len() == 1), "{told:?}");
    let said = |words: &str| told.values().flatten().filter(|text| text.starts_with(words)).count();
    assert_eq!((said("You said: hello"), said("error busy: "), starts(&daemon.journal(), "hello")), (32, 68, 32));
}

#[test]
fn a_broker_that_is_killed_frozen_or_wiped_costs_no_acknowledged_request() {
    let port = common::broker::free_port();
    let mut broker = Broker::start_at(port, "");
    let mut client = Peer::connect(port);
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &broker.settings("keep_alive_s = 5"), &[]);
    client.wait_online();
    for round in 0..3 {
        let id = format!("r{round}");
        daemon.hold();
        client.ask(&id, &format!("{id} @hold"));
        client.run(PATIENCE, |_| starts(&daemon.journal(), &format!("{id} @hold")) == 1);
        client.online = false;
        match round {
            // Sessions, subscriptions and queues of the broker are gone afterwards: its persistence is off.
            0 => {
                drop(broker);
                daemon.release();
                daemon.wait_journal(&format!("end {id} @hold Ok(Stop)"));
                broker = Broker::start_at(port, "");
                client = Peer { answers: client.answers, ..Peer::connect(port) };
            }
            // Frozen for longer than the daemon waits for it.
            1 => {
                let broker = nix::unistd::Pid::from_raw(broker.child.id().cast_signed());
                nix::sys::signal::kill(broker, Signal::SIGSTOP).unwrap();
                daemon.release();
                wait_for("the daemon to notice", || daemon.log().contains("no connection to the MQTT").then_some(()));
                // EMBERD_FREEZE_S=60 for a long one.
                let more = std::env::var("EMBERD_FREEZE_S").map_or(0, |text| text.parse().unwrap());
                std::thread::sleep(Duration::from_secs(more));
                nix::sys::signal::kill(broker, Signal::SIGCONT).unwrap();
            }
            // Another client takes the daemon's id over, once.
            _ => {
                let mut options = MqttOptions::new("emberd-n", "127.0.0.1", port);
                options.set_keep_alive(Duration::from_secs(30));
                let (thief, mut connection) = Client::new(options, 10);
                wait_for("the take-over", || {
                    matches!(connection.recv(), Ok(Ok(Event::Incoming(Packet::ConnAck(_))))).then_some(())
                });
                daemon.release();
                daemon.wait_journal(&format!("end {id} @hold Ok(Stop)"));
                drop((thief, connection));
            }
        }
        assert_eq!(client.answer(&id), format!("You said: {id} @hold"));
        assert_eq!(starts(&daemon.journal(), &format!("{id} @hold")), 1);
    }
    assert!(TcpStream::connect(("127.0.0.1", broker.port)).is_ok());
}

/// mosquitto acknowledges what its full queue drops; the client asks again, and what had arrived is not run again.
#[test]
fn what_the_broker_drops_of_a_full_queue_is_answered_when_it_is_asked_again() {
    const ASKED: usize = 60;
    let broker = Broker::start_at(common::broker::free_port(), "max_queued_messages 10");
    let settings = broker.settings("[queue]\ndepth = 200");
    let mut client = Peer::connect(broker.port);
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &settings, &[]);
    client.wait_online();
    let dir = daemon.kill();
    let before = client.acknowledged;
    (0..ASKED).for_each(|id| client.ask(&id.to_string(), &format!("p{id}")));
    assert!(client.run(PATIENCE, |client| client.acknowledged == before + ASKED), "acknowledged, also what is dropped");
    let daemon = Daemon::start_in(dir, &settings, &[]);
    assert!(client.run(PATIENCE, |client| !client.answers.is_empty() && daemon.idle()));
    let kept = client.answers.len();
    assert!(kept < ASKED, "nothing was dropped");
    let until = Instant::now() + PATIENCE;
    while client.answers.len() < ASKED {
        assert!(Instant::now() < until, "{} of {ASKED} answered", client.answers.len());
        let missing: Vec<usize> = (0..ASKED).filter(|id| client.answered(&id.to_string()) == 0).take(8).collect();
        missing.iter().for_each(|id| client.ask(&id.to_string(), &format!("p{id}")));
        client.run(Duration::from_secs(1), |client| missing.iter().all(|id| client.answered(&id.to_string()) > 0));
    }
    let journal = daemon.journal();
    for id in 0..ASKED {
        assert!(client.answers[&id.to_string()].iter().all(|text| *text == format!("You said: p{id}")), "{id}");
        assert_eq!(starts(&journal, &format!("p{id}")), 1, "{id}");
    }
}

/// What a take-over looks like where the broker does not say why: the connection is accepted and closed, again and again.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "it waits for pauses and says nothing of the processor")]
fn a_connection_that_is_closed_without_a_reason_is_no_tight_loop() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let settings = format!("[mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nport = {port}\nnode = \"n\"\n");
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &settings, &[]);
    let mut closed: Option<Instant> = None;
    for attempt in 0..5 {
        let (mut stream, _) = listener.accept().unwrap();
        // Half a second at first, twice as long each time, with jitter half of that.
        if let (Some(closed), 1..) = (closed, attempt) {
            let least = Duration::from_millis(250 << (attempt - 1));
            assert!(closed.elapsed() >= least, "attempt {attempt} after {:?}", closed.elapsed());
        }
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).unwrap() > 0);
        stream.write_all(&[0x20, 3, 0, 0, 0]).unwrap();
        assert!(stream.read(&mut buffer).unwrap() > 0);
        stream.write_all(&[0x90, 6, 0, 1, 0, 1, 1, 1]).unwrap();
        // It is up: it says so.
        assert!(stream.read(&mut buffer).unwrap() > 0);
        closed = Some(Instant::now());
    }
    assert_eq!(daemon.log().matches("connected to the MQTT broker").count(), 5);
    assert!(!daemon.log().contains("another client uses this client id"));
}

/// Cuts in the middle of a packet, each way, and a line that goes dead without a word, all with latency.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "it waits for time-outs and says nothing of the processor")]
fn a_bad_line_loses_nothing_acknowledged() {
    let broker = broker();
    let proxy = Proxy::start(broker.port);
    let settings = broker.settings("keep_alive_s = 5\nevents = false\nhomeassistant = \"\"");
    let settings = settings.replace(&broker.port.to_string(), &proxy.port.to_string());
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &settings, &[]);
    let mut client = Peer::connect(broker.port);
    client.wait_online();
    let connections = || daemon.log().matches("connected to the MQTT broker").count();
    let prompt = |id: &str| format!("{id} {}", "a line to tear ".repeat(20));
    // In the middle of the first request, of its acknowledgement, of an answer, and the line goes dead.
    let cuts = [Some((Way::ToDaemon, 100)), Some((Way::FromDaemon, 2)), Some((Way::FromDaemon, 150)), None];
    for (round, cut) in cuts.into_iter().enumerate() {
        let before = connections();
        match cut {
            Some((way, bytes)) => proxy.cut_after(way, bytes),
            None => proxy.freeze(),
        }
        let ids: Vec<String> = (0..5).map(|n| format!("r{round}n{n}")).collect();
        ids.iter().for_each(|id| client.ask(id, &prompt(id)));
        for id in &ids {
            assert_eq!(client.answer(id), format!("You said: {}", prompt(id)), "round {round}");
        }
        assert!(cut.is_none_or(|(way, _)| proxy.has_cut(way)), "round {round}: nothing was cut");
        wait_for("another connection", || (connections() > before).then_some(()));
        for id in &ids {
            assert_eq!(starts(&daemon.journal(), &prompt(id)), 1, "round {round}, {id}");
        }
    }
    assert!(client.answers.values().flatten().all(|text| text.starts_with("You said")));
}

/// A number of a campaign of kills, from the environment or as it is in the suite.
fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What a campaign of kills asks, and how it looks at the daemon.
struct Campaign<'a, D> {
    kills: usize,
    requests: usize,
    /// Between two kills, at most.
    pause: Duration,
    prompt: &'a dyn Fn(usize) -> String,
    /// What the answer has to be, where that is known.
    expected: &'a dyn Fn(usize) -> Option<String>,
    /// Kills the daemon and starts the next one in its place.
    again: &'a dyn Fn(D) -> D,
    /// How often each request was run.
    runs: &'a dyn Fn(&D) -> BTreeMap<usize, usize>,
}

impl<D> Campaign<'_, D> {
    /// Kills at random, and says what came of it.
    fn run(&self, client: &mut Peer, mut daemon: D) {
        let mut random = fastrand::Rng::with_seed(number("EMBERD_SEED", 1) as u64);
        // Requests that the broker has, and answers that existed at each kill.
        let (mut asked, mut killed, mut refused) = (0, 0, 0);
        let mut runs_when_answered: BTreeMap<usize, usize> = BTreeMap::new();
        let error = |text: &String| text.starts_with("error ");
        let ran = |runs: &BTreeMap<usize, usize>, n: usize| runs.get(&n).copied().unwrap_or(0);
        let finished =
            |client: &Peer, n: usize| client.answers.get(&n.to_string()).is_some_and(|said| !said.iter().all(error));
        let (mut most, mut since) = (0, Instant::now());
        loop {
            let open: Vec<usize> = (0..asked).filter(|n| !finished(client, *n)).collect();
            if killed >= self.kills && asked >= self.requests && open.is_empty() {
                break;
            }
            // While it is killed again and again, a slow machine may get nowhere.
            if killed < self.kills || open.is_empty() || asked - open.len() > most {
                (most, since) = (asked - open.len(), Instant::now());
            }
            let told = || open.iter().map(|n| (*n, client.answers.get(&n.to_string()))).collect::<Vec<_>>();
            assert!(since.elapsed() < PATIENCE, "{killed} kills, {most} answered, and not {:?}", told());
            let burst = (self.requests - asked).min(self.requests.div_ceil(self.kills.max(1)));
            for n in asked..asked + burst {
                client.ask_in_between(&n.to_string(), &(self.prompt)(n));
            }
            asked += burst;
            // Every other kill comes some time after a connection, the others whenever they come.
            if random.bool() {
                client.wait_online();
            }
            client.run(Duration::from_micros(random.u64(..self.pause.as_micros() as u64)), |_| false);
            // A client that was told to come later asks again, and now and then one that has its answer does: about ten
            // each time, or a slow machine would be busy with repetitions for ever.
            let later = |said: &&String| {
                let code = said.strip_prefix("error ").and_then(|text| text.split(':').next());
                assert!(matches!(code, None | Some("busy" | "low_memory" | "overheated")), "{said}");
                code.is_some()
            };
            for n in 0..asked {
                let Some(said) = client.answers.get_mut(&n.to_string()) else { continue };
                if said.last().filter(later).is_some() {
                    refused += 1;
                    said.retain(|text| !error(text));
                } else if said.is_empty() || random.usize(..asked) >= 10 {
                    continue;
                }
                client.ask_in_between(&n.to_string(), &(self.prompt)(n));
            }
            if killed < self.kills {
                killed += 1;
                client.online = false;
                daemon = (self.again)(daemon);
                // The runs of what the client has an answer to; they may not grow any more.
                let runs = (self.runs)(&daemon);
                for n in (0..asked).filter(|n| finished(client, *n)) {
                    runs_when_answered.entry(n).or_insert_with(|| ran(&runs, n));
                }
                if killed % 100 == 0 {
                    println!("{killed} kills, {asked} asked, {most} answered");
                }
            }
        }
        client.run(Duration::from_millis(300), |_| false);
        let runs = (self.runs)(&daemon);
        let (mut different, mut again) = (0, 0);
        for n in 0..asked {
            let texts: BTreeSet<&String> = client.answers[&n.to_string()].iter().filter(|text| !error(text)).collect();
            let wrong = (self.expected)(n).is_some_and(|expected| !texts.contains(&expected));
            different += usize::from(texts.len() != 1 || wrong);
            again += usize::from(runs_when_answered.get(&n).is_some_and(|before| ran(&runs, n) > *before));
        }
        let twice = runs.values().filter(|&&runs| runs > 1).count();
        println!(
            "{killed} kills, {asked} requests: 0 lost, {different} answered with two texts, {again} run again after \
             their answer; {twice} run more than once, {refused} times busy"
        );
        assert_eq!((different, again), (0, 0));
    }
}

/// Kills at random; `EMBERD_KILLS` and `EMBERD_REQUESTS` set the numbers. The long run:
/// `EMBERD_KILLS=1000 EMBERD_REQUESTS=10000 cargo test --release --test durability random_kills_lose -- --nocapture`.
#[test]
fn random_kills_lose_nothing_and_repeat_nothing() {
    let fast = cfg!(target_arch = "x86_64");
    let broker = broker();
    let mut client = Peer::connect(broker.port);
    let settings = broker.settings("[queue]\ndepth = 64\n[spool]\nattempts = 100\nmax_requests = 100000");
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &settings, &[]);
    client.wait_online();
    let campaign = Campaign {
        kills: number("EMBERD_KILLS", if fast { 12 } else { 3 }),
        requests: number("EMBERD_REQUESTS", if fast { 200 } else { 40 }),
        pause: Duration::from_millis(if fast { 60 } else { 600 }),
        prompt: &|n| format!("p{n}"),
        expected: &|n| Some(format!("You said: p{n}")),
        again: &|daemon: Daemon| Daemon::start_in(daemon.kill(), &settings, &[]),
        runs: &|daemon| count(daemon.journal().lines().filter_map(|line| line.strip_prefix("start p"))),
    };
    campaign.run(&mut client, daemon);
}

/// The same with the binary and a real model, the bundled one or `EMBERD_MODEL`, on the prompts of its held-out cases.
/// Runs that came to their end are what its log tells, unless it died between an answer and the line about it. The long run:
/// `EMBERD_KILLS=1000 EMBERD_REQUESTS=10000 cargo test --release --test durability model -- --nocapture`.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the same code as with the fake model, and slow")]
fn random_kills_of_the_binary_with_its_model_lose_nothing() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ember-home");
    let model = std::env::var_os("EMBERD_MODEL").map_or_else(|| home.clone(), Into::into);
    let cases = std::fs::read_to_string(home.join("cases/heldout.jsonl")).unwrap();
    let prompt = |case: &str| serde_json::from_str::<Value>(case).unwrap()["prompt"].as_str().map(str::to_owned);
    let prompts: Vec<String> = cases.lines().filter_map(prompt).collect();
    let (broker, dir) = (broker(), tempfile::tempdir().unwrap());
    let mut client = Peer::connect(broker.port);
    let more = [
        ("EMBERD__QUEUE__DEPTH", "64"),
        ("EMBERD__SPOOL__ATTEMPTS", "100"),
        ("EMBERD__SPOOL__MAX_REQUESTS", "100000"),
        ("EMBERD__LIMITS__MAX_TOKENS", "100"),
    ];
    let settings = broker.settings("");
    let start = || Served::start(dir.path(), &model, &settings, &more);
    let daemon = start();
    client.wait_online();
    let ended = |served: &Served| {
        let log = served.log();
        let answered = log.lines().filter(|line| line.contains(" answered id="));
        count(answered.filter_map(|line| line.split_once("id=\"peer/")?.1.split('"').next()))
    };
    let campaign = Campaign {
        kills: number("EMBERD_KILLS", 4),
        requests: number("EMBERD_REQUESTS", 40),
        pause: Duration::from_millis(if cfg!(debug_assertions) { 3000 } else { 300 }),
        prompt: &|n| prompts[n % prompts.len()].clone(),
        expected: &|_| None,
        again: &|served| {
            drop(served);
            start()
        },
        runs: &ended,
    };
    campaign.run(&mut client, daemon);
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    println!("{} requests taken up again after a start", log.matches("taken up again").count());
}

fn count<'a>(ids: impl Iterator<Item = &'a str>) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(id.parse().unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn a_request_that_another_version_kept_is_refused_and_not_lost() {
    let (broker, dir) = (Broker::start(), tempfile::tempdir().unwrap());
    let mut peer = Peer::connect(broker.port);
    // The broker has the subscription when it takes part.
    peer.client.publish("emberd/n/res/peer/probe", QoS::AtLeastOnce, false, "").unwrap();
    peer.answer("probe");
    let limits = Limits { requests: 10, bytes: 1 << 20, keep_s: 1000 };
    let spool = Spool::start(dir.path().join("spool.redb"), limits, |held| assert!(held.is_empty()));
    let (told, kept) = std::sync::mpsc::channel();
    spool.admit("peer/old".into(), [7; 32], 900, Some(b"\xffof another version".to_vec()), move |admission| {
        told.send(admission).unwrap();
    });
    assert_eq!(kept.recv_timeout(PATIENCE).unwrap(), Admission::Accepted);
    drop(spool);
    let daemon = Daemon::start_in(dir, &broker.settings(""), &[]);
    let answer: Value = serde_json::from_str(&peer.answer("old")).unwrap();
    assert!(answer.to_string().contains("another version") && answer.to_string().contains("internal"), "{answer}");
    daemon.wait_logged("does not know; it is given up");
}
