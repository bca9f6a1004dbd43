//! An MQTT client for the tests.

use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{Client, Event, MqttOptions};
use serde_json::Value;

use super::PATIENCE;

/// A client that has subscribed.
pub struct Peer {
    pub client: Client,
    pub inbox: Receiver<Publish>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    pub fn connect(port: u16, name: &str, filter: &str) -> Peer {
        Peer::connect_with(MqttOptions::new(name, "127.0.0.1", port), filter)
    }

    /// A client with a user name, its client id, and a password.
    pub fn login(port: u16, id: &str, user: &str, password: &str, filter: &str) -> Peer {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_credentials(user, password);
        Peer::connect_with(options, filter)
    }

    pub fn connect_with(mut options: MqttOptions, filter: &str) -> Peer {
        options.set_keep_alive(Duration::from_secs(60)).set_max_packet_size(Some(1 << 20)).set_connection_timeout(60);
        let (client, mut connection) = Client::new(options, 64);
        let (sender, inbox) = channel();
        let (subscribed, ready) = channel();
        let thread = std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::Publish(publish))) => drop(sender.send(publish)),
                    Ok(Event::Incoming(Packet::SubAck(_))) => drop(subscribed.send(())),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        client.subscribe(filter, QoS::AtLeastOnce).unwrap();
        ready.recv_timeout(PATIENCE).expect("a subscription");
        Peer { client, inbox, thread: Some(thread) }
    }

    pub fn send(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload.into()).unwrap();
    }

    pub fn send_with(&self, topic: &str, payload: &str, properties: PublishProperties) {
        let payload = payload.as_bytes().to_vec();
        self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).unwrap();
    }

    /// The next message on a topic; others before it are dropped.
    pub fn next_on(&self, topic: &str) -> Publish {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let publish = self.inbox.recv_timeout(left).unwrap_or_else(|_| panic!("nothing on {topic}"));
            if publish.topic == topic {
                return publish;
            }
        }
    }

    pub fn text_on(&self, topic: &str) -> String {
        String::from_utf8(self.next_on(topic).payload.to_vec()).unwrap()
    }

    pub fn json_on(&self, topic: &str) -> Value {
        serde_json::from_str(&self.text_on(topic)).unwrap()
    }

    /// Waits for a retained or new state.
    pub fn wait_state(&self, word: &str) {
        while self.text_on("emberd/n/state") != word {}
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.client.disconnect();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
