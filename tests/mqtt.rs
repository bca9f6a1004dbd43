//! The MQTT door, with a real mosquitto.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::broker::Broker;
use common::peer::Peer;
use common::{Daemon, PATIENCE};
use nix::sys::signal::Signal;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

#[test]
#[ignore = "started by the other tests as their daemon"]
fn daemon_child() {
    common::daemon_child();
}

/// A cable between the daemon and the broker that can be pulled.
struct Cable {
    port: u16,
    pulled: Arc<AtomicBool>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    fn plug(port: u16, broker: u16) -> Cable {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (pulled, ends): (Arc<AtomicBool>, Arc<Mutex<Vec<TcpStream>>>) = Default::default();
        let (stop, kept) = (Arc::clone(&pulled), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let Ok((near, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                near.set_nonblocking(false).unwrap();
                let far = TcpStream::connect(("127.0.0.1", broker)).unwrap();
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
                kept.lock().unwrap().extend([near, far]);
            }
        });
        Cable { port, pulled, ends, thread: Some(thread) }
    }

    fn pull(mut self) -> u16 {
        self.pulled.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
        self.port
    }
}

fn both(more: &str) -> (Broker, Daemon, Peer) {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings(more));
    let peer = Peer::connect(broker.port, "peer", "#");
    peer.wait_state("online");
    (broker, daemon, peer)
}

#[test]
fn text_for_text_and_json_for_json() {
    let (broker, daemon, peer) = both("");
    peer.send("emberd/n/req/peer/1", "Grüß dich");
    let answer = peer.next_on("emberd/n/res/peer/1");
    assert_eq!(answer.payload, "You said: Grüß dich".as_bytes());
    assert!(!answer.retain && answer.qos == QoS::AtLeastOnce);
    peer.send("emberd/n/req/peer/2", json!({"prompt": "@think", "system": "short", "seed": 5}).to_string());
    let answer = peer.json_on("emberd/n/res/peer/2");
    assert_eq!((&answer["id"], &answer["text"]), (&"2".into(), &"You said: short|@think".into()));
    assert_eq!((&answer["thought"], &answer["seed"]), (&"let me see".into(), &5.into()));
    assert_eq!((&answer["finish_reason"], &answer["usage"]["prompt_tokens"]), (&"stop".into(), &12.into()));
    // QoS 0 by a program of mosquitto's, as a small device would do it.
    let port = broker.port.to_string();
    let sent = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port, "-t", "emberd/n/req/esp/a", "-m", "on or off?", "-q", "0"])
        .status();
    assert!(sent.expect("mosquitto_pub is needed for this test (Debian package mosquitto-clients)").success());
    assert_eq!(peer.text_on("emberd/n/res/esp/a"), "You said: on or off?");
    // Both doors lead to the same model.
    assert_eq!(daemon.post("/v1/prompt", "over there").body, "You said: over there");
}

#[test]
fn events_and_pieces() {
    let (_broker, daemon, peer) = both("");
    peer.send("emberd/n/req/peer/1", r#"{"prompt":"one @hold","stream":true}"#);
    daemon.wait_journal("start one @hold");
    peer.send("emberd/n/req/peer/2", r#"{"prompt":"two"}"#);
    daemon.wait_waiting(1);
    daemon.release();
    let (mut text, mut events, mut answers) = (String::new(), Vec::new(), Vec::new());
    while answers.len() < 2 {
        let publish = peer.inbox.recv_timeout(PATIENCE).unwrap();
        let value = || serde_json::from_slice::<Value>(&publish.payload).unwrap();
        match std::str::from_utf8(&publish.topic).unwrap() {
            "emberd/n/res/peer/1/tok" => text.push_str(value()["text"].as_str().unwrap()),
            "emberd/n/res/peer/2/ev" => events.push(value()),
            "emberd/n/res/peer/1" | "emberd/n/res/peer/2" => answers.push(value()["id"].as_str().unwrap().to_owned()),
            "emberd/n/res/peer/2/tok" => panic!("nobody asked for pieces"),
            _ => {}
        }
    }
    assert_eq!(text, "You said: one @hold");
    assert_eq!(answers, ["1", "2"]);
    assert_eq!(events[0], json!({"event": "queued", "position": 1}));
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| **name == "started").count(), 1, "{names:?}");
    assert!(names.contains(&"prefill") && names.last() == Some(&"ended"), "{names:?}");
}

#[test]
fn pieces_are_numbered_from_nought_without_gaps() {
    let (_broker, _daemon, peer) = both("events = false");
    for id in ["1", "2"] {
        let prompt = format!("@think @slow {id} {}", "words ".repeat(40));
        peer.send(&format!("emberd/n/req/peer/{id}"), json!({"prompt": prompt, "stream": true}).to_string());
        let (mut numbers, mut text, mut thought) = (Vec::new(), String::new(), String::new());
        let answer = loop {
            let publish = peer.inbox.recv_timeout(PATIENCE).unwrap();
            let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
            let Some(kind) = topic.strip_prefix(&format!("emberd/n/res/peer/{id}")) else { continue };
            let value: Value = serde_json::from_slice(&publish.payload).unwrap();
            if kind.is_empty() {
                break value;
            }
            assert_eq!(kind, "/tok");
            numbers.push(value["seq"].as_u64().unwrap());
            text.push_str(value["text"].as_str().unwrap());
            thought.push_str(value["thought"].as_str().unwrap_or_default());
        };
        assert!(numbers.len() > 3 && numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
        assert_eq!((&answer["text"], &answer["thought"]), (&text.into(), &thought.into()));
    }
}

#[test]
fn response_topic_and_correlation_data_are_honoured() {
    let (_broker, _daemon, peer) = both("");
    let properties = |topic: &str| PublishProperties {
        response_topic: Some(topic.into()),
        correlation_data: Some(vec![0, 255, 7].into()),
        ..PublishProperties::default()
    };
    peer.send_with("emberd/n/req/peer/1", "hi", properties("my/inbox"));
    let answer = peer.next_on("my/inbox");
    assert_eq!(answer.payload, b"You said: hi"[..]);
    let answered = answer.properties.unwrap();
    assert_eq!(answered.correlation_data.unwrap()[..], [0, 255, 7]);
    assert_eq!(answered.content_type.unwrap(), "text/plain; charset=utf-8");

    for (id, hostile) in ["emberd/n/req/peer/loop", "emberd/n/state", "$SYS/x", "other/m/req/a/b"].iter().enumerate() {
        peer.send_with(&format!("emberd/n/req/peer/h{id}"), "hi", properties(hostile));
        let refusal = peer.next_on(&format!("emberd/n/res/peer/h{id}"));
        assert!(refusal.payload.starts_with(b"error bad_request: Response Topic"), "{refusal:?}");
        assert!(refusal.properties.unwrap().user_properties.contains(&("error".into(), "bad_request".into())));
    }
    let long = PublishProperties { correlation_data: Some(vec![1; 2000].into()), ..PublishProperties::default() };
    peer.send_with("emberd/n/req/peer/long", "hi", long);
    assert!(peer.text_on("emberd/n/res/peer/long").starts_with("error bad_request: Correlation Data"));
}

#[test]
fn malformed_requests_are_refused() {
    let (_broker, _daemon, peer) = both("");
    for (id, payload, param) in
        [("a", "{\"prompt\":", Value::Null), ("b", "{\"prompt\":3}", "prompt".into()), ("c", "{}", "prompt".into())]
    {
        peer.send(&format!("emberd/n/req/peer/{id}"), payload);
        let answer = peer.json_on(&format!("emberd/n/res/peer/{id}"));
        assert_eq!((&answer["error"]["code"], &answer["error"]["param"]), (&"bad_request".into(), &param), "{payload}");
    }
    peer.send("emberd/n/req/peer/d", &b"\xff\xfe"[..]);
    assert!(peer.text_on("emberd/n/res/peer/d").starts_with("error bad_request"));
    peer.send("emberd/n/req/peer/e", "x".repeat(5000));
    assert!(peer.text_on("emberd/n/res/peer/e").starts_with("error too_large"));
}

#[test]
fn retained_requests_are_ignored() {
    let broker = Broker::start();
    let early = Peer::connect(broker.port, "early", "none");
    early.client.publish("emberd/n/req/early/1", QoS::AtLeastOnce, true, "before the start").unwrap();
    let daemon = Daemon::start(&broker.settings(""));
    let peer = Peer::connect(broker.port, "peer", "#");
    peer.wait_state("online");
    peer.client.publish("emberd/n/req/peer/2", QoS::AtLeastOnce, true, "while it runs").unwrap();
    peer.send("emberd/n/req/peer/3", "a real one");
    assert_eq!(peer.text_on("emberd/n/res/peer/3"), "You said: a real one");
    assert_eq!(daemon.journal(), "start a real one\nend a real one Ok(Stop)\n");
}

#[test]
fn state_and_info_are_retained_and_the_will_says_offline() {
    let (broker, daemon, peer) = both("max_packet_bytes = 5000");
    let late = Peer::connect(broker.port, "late", "emberd/n/+");
    let (mut info, mut state) = (Value::Null, String::new());
    while info.is_null() || state.is_empty() {
        let publish = late.inbox.recv_timeout(PATIENCE).unwrap();
        assert!(publish.retain);
        match std::str::from_utf8(&publish.topic).unwrap() {
            "emberd/n/info" => info = serde_json::from_slice(&publish.payload).unwrap(),
            "emberd/n/state" => state = String::from_utf8(publish.payload.to_vec()).unwrap(),
            topic => assert_eq!(topic, "emberd/n/stats"),
        }
    }
    assert_eq!(state, "online");
    assert_eq!(
        (&info["model"], &info["max_packet_bytes"], &info["queue_depth"]),
        (&"fake".into(), &5000.into(), &8.into())
    );
    daemon.kill();
    peer.wait_state("offline");
}

#[test]
fn sigterm_finishes_the_running_request_and_keeps_the_waiting_one() {
    let (broker, mut daemon, peer) = both("");
    peer.send("emberd/n/req/peer/1", "one @hold");
    daemon.wait_journal("start one @hold");
    peer.send("emberd/n/req/peer/2", "two");
    daemon.wait_waiting(1);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_notified("STOPPING=1");
    daemon.release();
    assert_eq!(peer.text_on("emberd/n/res/peer/1"), "You said: one @hold");
    peer.wait_state("offline");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.journal().contains("two"));
    let again = Daemon::start_in(daemon.into_dir(), &broker.settings(""), &[]);
    assert_eq!(peer.text_on("emberd/n/res/peer/2"), "You said: two");
    peer.send("emberd/n/req/peer/3", "three");
    assert_eq!(peer.text_on("emberd/n/res/peer/3"), "You said: three");
    let journal = again.journal();
    assert_eq!(journal.matches("start one").count(), 1, "what was answered does not run again: {journal}");
}

#[test]
fn a_killed_daemon_gets_its_requests_again() {
    let (broker, daemon, peer) = both("");
    peer.send("emberd/n/req/peer/1", "one @hold");
    peer.send("emberd/n/req/peer/2", "two");
    daemon.wait_journal("start one @hold");
    daemon.wait_waiting(1);
    let again = Daemon::start_in(daemon.kill(), &broker.settings(""), &[]);
    again.release();
    assert_eq!(peer.text_on("emberd/n/res/peer/1"), "You said: one @hold");
    assert_eq!(peer.text_on("emberd/n/res/peer/2"), "You said: two");
}

#[test]
fn the_broker_may_come_later_and_go_in_between() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = format!("[mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nport = {port}\nnode = \"n\"\n");
    let daemon = Daemon::start(&settings);
    daemon.wait_logged("no connection to the MQTT broker");
    assert_eq!(daemon.post("/v1/prompt", "alone").body, "You said: alone");

    let broker = Broker::start_at(port, "");
    let peer = Peer::connect(port, "peer", "#");
    peer.wait_state("online");
    peer.send("emberd/n/req/peer/1", "one @hold");
    daemon.wait_journal("start one @hold");
    drop(broker);
    drop(peer);
    daemon.wait_notified("STATUS=serving the socket; no connection");
    daemon.release();
    daemon.wait_journal("end one @hold Ok(Stop)");
    let _broker = Broker::start_at(port, "");
    let peer = Peer::connect(port, "peer", "#");
    peer.wait_state("online");
    peer.send("emberd/n/req/peer/2", "two");
    assert_eq!(peer.text_on("emberd/n/res/peer/2"), "You said: two");
}

#[test]
fn an_answer_that_was_made_without_a_connection_is_delivered_later() {
    let broker = Broker::start();
    let cable = Cable::plug(0, broker.port);
    let settings = broker.settings("").replace(&broker.port.to_string(), &cable.port.to_string());
    let daemon = Daemon::start(&settings);
    let peer = Peer::connect(broker.port, "peer", "#");
    peer.wait_state("online");
    peer.send("emberd/n/req/peer/1", "one @hold");
    daemon.wait_journal("start one @hold");
    let port = cable.pull();
    peer.wait_state("offline");
    daemon.release();
    daemon.wait_journal("end one @hold Ok(Stop)");
    let _cable = Cable::plug(port, broker.port);
    assert_eq!(peer.text_on("emberd/n/res/peer/1"), "You said: one @hold");
    // Its redelivery is not taken for a new request.
    peer.send("emberd/n/req/peer/2", "two");
    assert_eq!(peer.text_on("emberd/n/res/peer/2"), "You said: two");
    assert_eq!(daemon.journal().lines().filter(|line| line.starts_with("start")).count(), 2, "{}", daemon.journal());
}

#[test]
fn oversized_packets_do_not_break_the_connection() {
    let (_broker, daemon, peer) = both("max_packet_bytes = 4096");
    peer.send("emberd/n/req/peer/big", "x".repeat(100_000));
    peer.send("emberd/n/req/peer/1", "small");
    // The broker knows the limit and keeps the large one to itself.
    let until_answer = std::iter::from_fn(|| {
        let topic = peer.inbox.recv_timeout(PATIENCE).unwrap().topic;
        (topic != "emberd/n/res/peer/1").then_some(topic)
    });
    assert_eq!(until_answer.filter(|topic| topic.starts_with(b"emberd/n/res/peer/big")).count(), 0);
    assert!(!daemon.log().contains("no connection"), "{}", daemon.log());
}

#[test]
fn an_answer_that_the_broker_would_not_take_becomes_an_error() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let broker = Broker::start_at(port, "max_packet_size 3000");
    let daemon = Daemon::start(&broker.settings(""));
    let peer = Peer::connect(port, "peer", "#");
    peer.wait_state("online");
    peer.send("emberd/n/req/peer/1", r#"{"prompt":"@long","stream":true}"#);
    assert_eq!(peer.json_on("emberd/n/res/peer/1")["error"]["code"], "too_large");
    // Pieces above the limit are dropped; they do not cost the connection.
    assert!(!daemon.log().contains("no connection"), "{}", daemon.log());
}

#[test]
fn a_full_queue_is_said_and_cancelled_requests_make_room() {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings("[queue]\ndepth = 1"));
    let peer = Peer::connect(broker.port, "peer", "#");
    peer.wait_state("online");
    peer.send("emberd/n/req/peer/1", "one @hold");
    daemon.wait_journal("start one @hold");
    peer.send("emberd/n/req/peer/2", "two");
    daemon.wait_waiting(1);
    // More than the broker may have unacknowledged: refusals must give their places back.
    for n in 0..100 {
        peer.send(&format!("emberd/n/req/peer/b{n}"), r#"{"prompt":"three"}"#);
        let busy = peer.json_on(&format!("emberd/n/res/peer/b{n}"));
        assert_eq!(busy["error"]["code"], "busy");
        assert!(busy["error"]["retry_after_s"].as_u64().unwrap() >= 1);
    }
    peer.send("emberd/n/req/peer/2/cancel", "");
    assert_eq!(peer.text_on("emberd/n/res/peer/2"), "error cancelled: the request was taken back");
    peer.send("emberd/n/req/peer/1/cancel", "");
    assert_eq!(peer.text_on("emberd/n/res/peer/1"), "error cancelled: the request was taken back");
    daemon.wait_journal("end one @hold Ok(Cancelled)");
    peer.send("emberd/n/req/peer/4", "four");
    assert_eq!(peer.text_on("emberd/n/res/peer/4"), "You said: four");
}

#[test]
fn the_same_name_is_not_started_twice() {
    let (_broker, daemon, peer) = both("");
    peer.send("emberd/n/req/peer/1", "one @hold");
    daemon.wait_journal("start one @hold");
    peer.send("emberd/n/req/peer/1", "one @hold");
    peer.send("emberd/n/req/peer/1", "something else");
    assert!(peer.text_on("emberd/n/res/peer/1").starts_with("error duplicate_mismatch"));
    daemon.release();
    assert_eq!(peer.text_on("emberd/n/res/peer/1"), "You said: one @hold");
    peer.send("emberd/n/req/peer/2", "two");
    assert_eq!(peer.text_on("emberd/n/res/peer/2"), "You said: two");
    let starts = daemon.journal().lines().filter(|line| line.starts_with("start")).count();
    assert_eq!(starts, 2, "{}", daemon.journal());
}

#[test]
fn deadlines_of_message_and_body_count() {
    let (_broker, daemon, peer) = both("");
    peer.send("emberd/n/req/peer/1", r#"{"prompt":"one @hold","timeout_s":1}"#);
    assert_eq!(peer.json_on("emberd/n/res/peer/1")["error"]["code"], "expired");
    let expiry = PublishProperties { message_expiry_interval: Some(1), ..PublishProperties::default() };
    peer.send_with("emberd/n/req/peer/2", "two @hold", expiry);
    assert!(peer.text_on("emberd/n/res/peer/2").starts_with("error expired"));
    daemon.wait_journal("end two @hold Ok(Cancelled)");
}

#[test]
fn no_deadline_is_later_than_the_configured_one() {
    let broker = Broker::start();
    let settings = broker.settings("[limits]\nrequest_timeout_s = 1");
    let mut daemon = Daemon::start(&settings);
    let peer = Peer::connect(broker.port, "peer", "#");
    peer.wait_state("online");
    let asked = Instant::now();
    let hour = || PublishProperties { message_expiry_interval: Some(3600), ..PublishProperties::default() };
    peer.send_with("emberd/n/req/peer/1", r#"{"prompt":"one @hold","timeout_s":3600}"#, hour());
    assert_eq!(peer.json_on("emberd/n/res/peer/1")["error"]["code"], "expired");
    assert!(asked.elapsed() >= Duration::from_secs(1));
    peer.send_with("emberd/n/req/peer/2", "two @hold", hour());
    assert!(peer.text_on("emberd/n/res/peer/2").starts_with("error expired"));
    // Nor after a restart.
    peer.send_with("emberd/n/req/peer/3", "three @stall", hour());
    daemon.wait_journal("start three @stall");
    let dir = daemon.kill();
    std::thread::sleep(Duration::from_millis(1100));
    daemon = Daemon::start_in(dir, &settings, &[]);
    assert_eq!(peer.text_on("emberd/n/res/peer/3"), "error expired: the deadline passed while the daemon was away");
    assert_eq!(runs(&daemon, "three"), 1);
}

#[test]
fn a_password_from_a_credential_opens_the_door() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let passwords = dir.path().join("passwords");
    let made = Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&passwords).args(["ember", "gl0w"]).status();
    assert!(made.expect("mosquitto_passwd is needed for this test").success());
    // mosquitto started as root reads it as another user.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&passwords, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let broker = Broker::start_at(port, &format!("password_file {}\nallow_anonymous false", passwords.display()));
    let credentials = tempfile::tempdir().unwrap();
    std::fs::write(credentials.path().join("mqtt-password"), "gl0w\n").unwrap();
    let environment = [("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap())];
    let settings = broker.settings("username = \"ember\"");
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &settings, &environment);
    daemon.wait_notified("STATUS=serving the socket and MQTT");
    assert!(!daemon.log().contains("gl0w"));

    let locked_out = Daemon::start(&broker.settings("username = \"ember\"\nclient_id = \"other\""));
    locked_out.wait_logged("refused user name and password");
    assert_eq!(locked_out.post("/v1/prompt", "still here").body, "You said: still here");
}

#[test]
fn prompts_and_answers_do_not_reach_the_log() {
    // The daemon of the tests logs at the level debug.
    let (_broker, daemon, peer) = both("");
    peer.send("emberd/n/req/peer/1", r#"{"prompt":"my diagnosis","stream":true}"#);
    assert_eq!(peer.json_on("emberd/n/res/peer/1")["text"], "You said: my diagnosis");
    daemon.post("/v1/prompt?system=diagnosis", "my diagnosis");
    daemon.post("/v1/chat/completions", &daemon.chat("diagnosis @fail", ""));
    daemon.post("/v1/chat/completions", r#"{"messages":"diagnosis"}"#);
    daemon.wait_logged("no answer");
    assert!(!daemon.log().contains("diagnosis"), "{}", daemon.log());
}

#[test]
fn repetitions_give_back_their_places() {
    let (_broker, daemon, peer) = both("events = false");
    // Far more than the broker may have unacknowledged; most come while the disk is still asked about the first one.
    for _ in 0..500 {
        peer.send("emberd/n/req/peer/1", "again");
    }
    peer.send("emberd/n/req/peer/2", "another");
    while peer.text_on("emberd/n/res/peer/2") != "You said: another" {}
    assert_eq!(daemon.journal().matches("start again").count(), 1);
}

#[test]
fn every_refusal_of_a_flood_is_told() {
    // Room for more messages than refusals that nobody waits for may wait.
    let broker = Broker::start_at(common::broker::free_port(), "max_inflight_messages 0\nmax_queued_messages 0");
    let _daemon = Daemon::start(&broker.settings("events = false\n[queue]\ndepth = 200"));
    let peer = Peer::connect(broker.port, "peer", "emberd/n/res/peer/+");
    let watch = Peer::connect(broker.port, "watch", "emberd/n/state");
    watch.wait_state("online");
    for n in 0..1200 {
        peer.send(&format!("emberd/n/req/peer/{n}"), r#"{"prompt":7}"#);
    }
    let mut told: Vec<usize> = Vec::new();
    while told.len() < 1200 {
        let topic = String::from_utf8(peer.inbox.recv_timeout(PATIENCE).expect("a refusal").topic.to_vec()).unwrap();
        told.push(topic.rsplit('/').next().unwrap().parse().unwrap());
    }
    told.sort_unstable();
    assert_eq!(told, (0..1200).collect::<Vec<_>>());
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "ten thousand messages are too many for an emulated CPU")]
fn what_is_dropped_of_a_flood_is_asked_for_again() {
    // More wait for the daemon than it keeps refusals for, and this broker sends all at once.
    const MESSAGES: usize = 10_000;
    let broker = Broker::start_at(common::broker::free_port(), "max_inflight_messages 0\nmax_queued_messages 0");
    let settings = broker.settings("events = false");
    let daemon = Daemon::start(&settings);
    let watch = Peer::connect(broker.port, "watch", "emberd/n/state");
    watch.wait_state("online");
    let dir = daemon.kill();
    let peer = Peer::connect(broker.port, "peer", "emberd/n/res/peer/+");
    for n in 0..MESSAGES {
        peer.send(&format!("emberd/n/req/peer/{n}"), r#"{"prompt":7}"#);
    }
    let daemon = Daemon::start_in(dir, &settings, &[]);
    let mut told = vec![false; MESSAGES];
    while told.contains(&false) {
        let topic = String::from_utf8(peer.inbox.recv_timeout(PATIENCE).expect("a refusal").topic.to_vec()).unwrap();
        told[topic.rsplit('/').next().unwrap().parse::<usize>().unwrap()] = true;
    }
    println!("{} times dropped", daemon.log().matches("one is dropped").count());
}

/// What nobody waits for is dropped, and nothing is gained by a new connection.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "thousands of messages are too many for an emulated CPU")]
fn a_flood_that_nobody_waits_for_costs_no_connection() {
    let (broker, daemon, peer) = both("events = false");
    let flood = Peer::connect(broker.port, "flood", "none");
    // All at once, however fast it is.
    daemon.signal(Signal::SIGSTOP);
    for _ in 0..2000 {
        let (topic, prompt) = ("emberd/n/req/flood/x", r#"{"prompt":7}"#);
        flood.client.publish(topic, QoS::AtMostOnce, false, prompt).unwrap();
    }
    flood.send("none", "behind them");
    flood.next_on("none");
    daemon.signal(Signal::SIGCONT);
    daemon.wait_logged("one is dropped");
    // Whether it has to reconnect is asked once a second.
    std::thread::sleep(Duration::from_secs(3));
    peer.send("emberd/n/req/peer/1", "hi");
    assert_eq!(peer.text_on("emberd/n/res/peer/1"), "You said: hi");
    assert_eq!(daemon.log().matches("connected to the MQTT broker").count(), 1);
}

/// A member of a fleet; all share the requests below `emberd/pool`.
fn member(broker: &Broker, node: &str, dir: tempfile::TempDir, more: &str) -> Daemon {
    let settings = broker.settings(&format!("share = \"pool\"\nevents = false\n{more}\n[queue]\ndepth = 200"));
    let daemon = Daemon::start_in(dir, &settings.replace("\"n\"", &format!("{node:?}")), &[]);
    daemon.wait_notified("STATUS=serving the socket and MQTT");
    daemon
}

/// How often its model began a prompt that starts so, in all its lives.
fn runs(daemon: &Daemon, prompt: &str) -> usize {
    daemon.journal().lines().filter(|line| line.starts_with(&format!("start {prompt}"))).count()
}

/// A client of a fleet that counts what it is told.
struct Asker {
    peer: Peer,
    told: BTreeMap<String, Vec<String>>,
}

impl Asker {
    fn connect(broker: &Broker) -> Asker {
        Asker { peer: Peer::connect(broker.port, "peer", "emberd/+/res/peer/+"), told: BTreeMap::new() }
    }

    fn ask(&self, id: &str, prompt: &str) {
        self.peer.send(&format!("emberd/pool/req/peer/{id}"), prompt);
    }

    fn wait(&mut self, ids: &[String]) {
        while !ids.iter().all(|id| self.told.contains_key(id)) {
            let publish = self.peer.inbox.recv_timeout(PATIENCE).expect("an answer");
            let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
            let text = String::from_utf8(publish.payload.to_vec()).unwrap();
            self.told.entry(topic.rsplit('/').next().unwrap().to_owned()).or_default().push(text);
        }
    }

    /// Each was answered once, and as `expected` says. A last question to every member's own tree comes after what it had to say.
    fn told_once(mut self, nodes: &[&str], expected: impl Fn(&str) -> String) {
        for node in nodes {
            self.peer.send(&format!("emberd/{node}/req/peer/last-{node}"), "last");
        }
        self.wait(&nodes.iter().map(|node| format!("last-{node}")).collect::<Vec<_>>());
        for (id, said) in self.told.iter().filter(|(id, _)| !id.starts_with("last-")) {
            assert!(said.len() == 1 && said[0].starts_with(&expected(id)), "{id}: {said:?}");
        }
    }
}

fn ids(prefix: &str, number: usize) -> Vec<String> {
    (0..number).map(|n| format!("{prefix}{n}")).collect()
}

#[test]
fn a_fleet_of_two_answers_each_request_once() {
    a_member_dies_during_its_request(&["one", "two"]);
}

#[test]
fn a_fleet_of_three_answers_each_request_once() {
    a_member_dies_during_its_request(&["one", "two", "three"]);
}

fn a_member_dies_during_its_request(nodes: &[&str]) {
    let broker = Broker::start();
    let start = |node: &str| member(&broker, node, tempfile::tempdir().unwrap(), "");
    let mut fleet: Vec<(&str, Daemon)> = nodes.iter().map(|node| (*node, start(node))).collect();
    let mut asker = Asker::connect(&broker);
    let all_run =
        |fleet: &[(&str, Daemon)], prompt: &str| fleet.iter().map(|(_, daemon)| runs(daemon, prompt)).sum::<usize>();
    let first = ids("a", 20);
    first.iter().for_each(|id| asker.ask(id, &format!("first {id}")));
    asker.wait(&first);
    assert_eq!(all_run(&fleet, "first"), 20);
    assert!(fleet.iter().all(|(_, daemon)| runs(daemon, "first") > 0), "nobody is left out");

    // Each has one in progress. Everybody hears of a cancellation, and one of them has the request.
    let held = ids("h", nodes.len());
    held.iter().for_each(|id| asker.ask(id, &format!("held {id} @hold")));
    common::wait_for("a request for each", || (all_run(&fleet, "held") == nodes.len()).then_some(()));
    assert!(fleet.iter().all(|(_, daemon)| runs(daemon, "held") == 1), "they take turns");
    let at = fleet.iter().position(|(_, daemon)| runs(daemon, "held h0") == 1).unwrap();
    let (node, dies) = fleet.remove(at);
    let dir = dies.kill();
    held[1..].iter().for_each(|id| asker.peer.send(&format!("emberd/pool/req/peer/{id}/cancel"), ""));
    asker.wait(&held[1..]);
    // While it is away. Whose turn these are is the broker's business; they are answered once all the same.
    let later = ids("b", 6);
    later.iter().for_each(|id| asker.ask(id, &format!("later {id}")));
    common::wait_for("some of them", || (all_run(&fleet, "later") > 0).then_some(()));
    let back = member(&broker, node, dir, "");
    back.release();
    asker.wait(&later);
    asker.wait(&held);
    assert_eq!((runs(&back, "held h0"), all_run(&fleet, "held h0")), (2, 0), "it has its own spool");
    assert_eq!(runs(&back, "later") + all_run(&fleet, "later"), 6);
    assert_eq!(asker.told.len(), 20 + nodes.len() + 6);
    // The members' own topics are still there.
    asker.told_once(nodes, |id| match id.split_at(1) {
        ("a", _) => format!("You said: first {id}"),
        ("b", _) => format!("You said: later {id}"),
        (_, "0") => "You said: held h0 @hold".to_owned(),
        _ => "error cancelled".to_owned(),
    });
}

#[test]
fn members_leave_and_come_while_requests_flow() {
    let broker = Broker::start();
    let nodes = ["one", "two"];
    let start = |node: &str, dir| member(&broker, node, dir, "");
    let mut fleet: VecDeque<(&str, Daemon)> =
        nodes.iter().map(|node| (*node, start(node, tempfile::tempdir().unwrap()))).collect();
    let mut asker = Asker::connect(&broker);
    let flow = ids("f", 120);
    let (client, ids) = (asker.peer.client.clone(), flow.clone());
    let flowing = std::thread::spawn(move || {
        for id in ids {
            let topic = format!("emberd/pool/req/peer/{id}");
            client.publish(topic, QoS::AtLeastOnce, false, format!("{id} at @slow work")).unwrap();
            std::thread::sleep(Duration::from_millis(25));
        }
    });
    let mut rounds = 0;
    while !flowing.is_finished() || rounds < nodes.len() {
        let (node, mut leaves) = fleet.pop_front().unwrap();
        leaves.signal(Signal::SIGTERM);
        assert_eq!(leaves.wait().code(), Some(0), "it drains");
        fleet.push_back((node, start(node, leaves.into_dir())));
        rounds += 1;
    }
    flowing.join().unwrap();
    asker.wait(&flow);
    println!("{rounds} times one left and came back");
    for (node, daemon) in &fleet {
        println!("{node} ran {}", runs(daemon, "f"));
    }
    for id in &flow {
        let times: usize = fleet.iter().map(|(_, daemon)| runs(daemon, &format!("{id} "))).sum();
        assert_eq!(times, 1, "{id}");
    }
    asker.told_once(&nodes, |id| format!("You said: {id} at @slow work"));
}

/// The members "one" and "two", which have both answered some of six requests.
fn taking_turns(broker: &Broker, more: &str) -> (Daemon, Daemon, Asker) {
    let [one, two] = ["one", "two"].map(|node| member(broker, node, tempfile::tempdir().unwrap(), more));
    let mut asker = Asker::connect(broker);
    let ids = ids("a", 6);
    ids.iter().for_each(|id| asker.ask(id, id));
    asker.wait(&ids);
    assert!(runs(&one, "a") > 0 && runs(&two, "a") > 0, "they take turns");
    (one, two, asker)
}

#[test]
fn those_who_stay_get_everything_once_the_session_of_one_who_left_has_ended() {
    let broker = Broker::start_at(common::broker::free_port(), "sys_interval 1");
    let watch = Peer::connect(broker.port, "watch", "$SYS/broker/clients/expired");
    let (mut leaves, stays, mut asker) = taking_turns(&broker, "session_expiry_s = 1");
    leaves.signal(Signal::SIGTERM);
    assert_eq!(leaves.wait().code(), Some(0));
    while watch.text_on("$SYS/broker/clients/expired") == "0" {}
    let after = ids("b", 20);
    after.iter().for_each(|id| asker.ask(id, id));
    asker.wait(&after);
    assert_eq!((runs(&leaves, "b"), runs(&stays, "b")), (0, 20));
    asker.told_once(&["two"], |id| format!("You said: {id}"));
}

/// Its session at the broker still has the subscription.
#[test]
fn a_member_that_leaves_by_its_configuration_refuses_what_still_comes_and_nothing_is_lost() {
    let broker = Broker::start();
    let (mut leaves, stays, mut asker) = taking_turns(&broker, "");
    leaves.signal(Signal::SIGTERM);
    assert_eq!(leaves.wait().code(), Some(0));
    let alone = broker.settings("events = false").replace("\"n\"", "\"one\"");
    let alone = Daemon::start_in(leaves.into_dir(), &alone, &[]);
    alone.wait_notified("STATUS=serving the socket and MQTT");
    let after = ids("b", 10);
    after.iter().for_each(|id| asker.ask(id, id));
    asker.wait(&after);
    let refused: Vec<String> = after
        .into_iter()
        .filter(|id| asker.told[id][0].starts_with("error busy: this daemon does not serve"))
        .collect();
    assert!(!refused.is_empty() && alone.log().contains("of a tree that is not served here any more"));
    for id in &refused {
        asker.told.remove(id);
        asker.ask(id, id);
    }
    asker.wait(&refused);
    assert_eq!((runs(&alone, "b"), runs(&stays, "b")), (0, 10));
    asker.told_once(&["one", "two"], |id| format!("You said: {id}"));
}

/// What the options of a subscription are on the wire, and not what somebody makes of them.
#[test]
fn subscriptions_ask_for_no_retained_messages_and_no_own_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _daemon = Daemon::start(&format!(
        "[mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nport = {port}\nnode = \"n\"\nshare = \"pool\"\n"
    ));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(packet(&mut stream).0, 0x10, "CONNECT");
    stream.write_all(&[0x20, 3, 0, 0, 0]).unwrap();
    let (kind, body) = packet(&mut stream);
    assert_eq!((kind, body[2]), (0x82, 0), "SUBSCRIBE, and no properties after its packet id");
    let mut rest = &body[3..];
    let mut found = Vec::new();
    while let [high, low, more @ ..] = rest {
        let (filter, more) = more.split_at(u16::from_be_bytes([*high, *low]).into());
        found.push((std::str::from_utf8(filter).unwrap(), more[0]));
        rest = &more[1..];
    }
    // Retain Handling 2 and Retain As Published; No Local, but for the shared one, where MQTT forbids it; QoS 1.
    let (own, shared) = (0b10_1101, 0b10_1001);
    let expected = [
        ("emberd/n/req/+/+", own),
        ("emberd/n/req/+/+/cancel", own),
        ("$share/pool/emberd/pool/req/+/+", shared),
        ("emberd/pool/req/+/+/cancel", own),
        ("homeassistant/status", own),
    ];
    assert_eq!(found, expected);
}

/// The next packet's first byte and what follows its length.
fn packet(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut byte = || {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        byte[0]
    };
    let kind = byte();
    let mut length = 0;
    for shift in (0..28).step_by(7) {
        let digit = byte();
        length |= usize::from(digit & 0x7f) << shift;
        if digit < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (kind, body)
}
