//! Open requests and their way through the spool, the scheduler and one connection after another.

use std::collections::VecDeque;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use super::super::sessions::Lease;
use super::super::waiting::stopped;
use super::super::wire::{self, Asked, Form, Key, MAX_CORRELATION, WireRequest};
use super::link::{Link, Lost, Message, News, PACKET_OVERHEAD, Receipt};
use super::open::{self, Envelope, Open, Stage, Wanted};
use super::options::Options;
use super::outbox::{Entry, Outbox};
use super::presence::{self, Presence};
use super::reply::{self, Address};
use crate::scheduler::backend::{Input, InputError};
use crate::scheduler::{Answer, Code, Failure, Request, Scheduler};
use crate::spool::{Admission, Held, Spool, State, fail_point, now_s};

/// Time that the farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Time that the engine waits for the disk before it begins.
const BEGIN: Duration = Duration::from_secs(10);

/// Requests whose admission may be under way at once.
const MAX_ADMITTING: usize = 256;

/// Requests that there is no room for and that are looked up at once, for they may be repetitions.
const MAX_LOOKUPS: usize = 1024;

/// Why a connection is no longer served.
pub(super) enum End {
    /// Everything was said.
    Stopped,
    /// The connection broke.
    Lost(Lost),
}

/// What the spool's thread says.
pub(super) enum SpoolNews {
    /// A former life left these.
    Held(Vec<Held>),
    Admitted(Key, Admission),
    /// The answer is on disk, or cannot be.
    Stored(Key),
}

/// What the spool's thread said, and the bell that rings then.
#[derive(Clone, Default)]
pub(super) struct Inbox {
    news: Arc<Mutex<VecDeque<SpoolNews>>>,
    bell: Arc<Notify>,
}

impl Inbox {
    pub(super) fn tell(&self, news: SpoolNews) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push_back(news);
        self.bell.notify_one();
    }

    fn take(&self) -> VecDeque<SpoolNews> {
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the bell; the scheduler rings it too.
    pub(super) async fn notified(&self) {
        self.bell.notified().await;
    }
}

/// All requests that came over MQTT.
pub(super) struct Door {
    options: Options,
    scheduler: Scheduler,
    spool: Arc<Spool>,
    /// In the order of arrival; few enough to be searched.
    open: Vec<Open>,
    outbox: Outbox,
    presence: Presence,
    inbox: Inbox,
    /// Whether a message that the broker waits for was dropped.
    missed: bool,
    /// Roots of former trees that this connection has unsubscribed.
    left: Vec<String>,
}

impl Door {
    pub(super) fn new(options: Options, scheduler: Scheduler, spool: Spool, inbox: Inbox) -> Door {
        let (open, outbox, left) = Default::default();
        let presence = Presence::new(&options);
        Door { options, scheduler, spool: Arc::new(spool), open, outbox, presence, inbox, missed: false, left }
    }

    /// Serves one connection. `up` is called when the broker has accepted it and the subscriptions.
    pub(super) async fn serve(
        &mut self,
        link: &mut Link,
        stop: &mut watch::Receiver<bool>,
        mut up: impl FnMut(bool),
    ) -> End {
        let inbox = self.inbox.clone();
        let mut batch = interval(self.options.batch);
        batch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut connected, mut announced, mut offline, mut farewell) = (false, false, false, None);
        loop {
            self.tend(Some(&*link).filter(|_| connected));
            if connected {
                self.send(link);
            }
            if farewell.is_some() && !offline && !self.storing() {
                // After the last answer.
                offline = true;
                self.outbox.push(self.state("offline"));
                continue;
            }
            match farewell {
                Some(_) if !connected => return End::Stopped,
                Some(_) if self.outbox.is_empty() && !self.storing() => link.disconnect(),
                _ => {}
            }
            let until = farewell.unwrap_or_else(|| Instant::now() + FAREWELL);
            tokio::select! {
                news = link.news() => match news {
                    News::Connected => {
                        connected = true;
                        if !link.subscribe(self.options.topics.filters(), presence::filters(&self.options)) {
                            return End::Lost(Lost { reason: "cannot subscribe".into(), taken_over: false });
                        }
                    }
                    News::Subscribed(true) => {
                        info!(host = self.options.host, "connected to the MQTT broker");
                        if farewell.is_none() {
                            announced = true;
                            self.announce();
                            self.presence.connected(&self.options, link);
                        }
                        up(true);
                    }
                    News::Subscribed(false) => {
                        let filters = self.options.topics.filters();
                        error!(?filters, "the MQTT broker denies the subscription; see its access rules");
                        return End::Lost(Lost { reason: "subscription denied".into(), taken_over: false });
                    }
                    News::Message(message) => self.arrived(message, link),
                    News::Sent(packet) => self.outbox.sent(packet),
                    News::Acknowledged(packet, taken) => self.acknowledged(packet, taken, link),
                    News::Disconnected => return End::Stopped,
                    News::Lost(_) if farewell.is_some() => return End::Stopped,
                    News::Lost(lost) => return End::Lost(lost),
                },
                () = inbox.notified() => {}
                // Without an announcement the change is told with the first one.
                Ok(()) = self.options.rules.changed(), if announced && farewell.is_none() => self.announce_info(),
                _ = batch.tick(), if self.has_batch() => self.send_batches(link),
                _ = second.tick(), if announced && farewell.is_none() => {
                    self.presence.tick(&self.options, &self.scheduler, link);
                    // A broker that keeps to the Receive Maximum never sends so many.
                    if (self.missed || link.missed()) && self.outbox.is_empty() {
                        self.missed = false;
                        let reason = "more requests came than it may send at once; it has to send the rest again";
                        return End::Lost(Lost { reason: reason.into(), taken_over: false });
                    }
                }
                () = stopped(stop), if farewell.is_none() => {
                    farewell = Some(Instant::now() + FAREWELL);
                    self.tend(Some(link));
                }
                () = sleep_until(until.into()), if farewell.is_some() => return End::Stopped,
            }
        }
    }

    /// The connection is gone: answers wait for the next one, states are announced anew.
    pub(super) fn disconnected(&mut self) {
        // The broker delivers again what was not acknowledged, and it is refused again.
        self.outbox.disconnected(|entry| !entry.retain && entry.receipt.is_none());
        self.missed = false;
        self.left.clear();
    }

    fn announce(&mut self) {
        self.announce_info();
        self.outbox.push(self.state("online"));
    }

    fn announce_info(&mut self) {
        let mut info = self.options.info.clone();
        info["presets"] = self.options.rules.borrow_and_update().presets.names().collect();
        let info = Entry {
            topic: self.options.topics.info(),
            payload: info.to_string().into_bytes(),
            retain: true,
            content_type: Some(Form::Json.content_type().into()),
            ..Entry::default()
        };
        self.outbox.push(info);
    }

    fn state(&self, word: &str) -> Entry {
        Entry { topic: self.options.topics.state(), payload: word.into(), retain: true, ..Entry::default() }
    }

    /// Goes on with what the spool and the scheduler have said. Without a connection nobody hears of the progress.
    pub(super) fn tend(&mut self, link: Option<&Link>) {
        for news in self.inbox.take() {
            match news {
                SpoolNews::Held(held) => held.into_iter().for_each(|held| self.revive(held)),
                SpoolNews::Admitted(key, admission) => self.admitted(&key, admission, link),
                SpoolNews::Stored(key) => self.stored(&key),
            }
        }
        self.collect(link);
    }

    fn storing(&self) -> bool {
        self.open.iter().any(|open| matches!(open.stage, Stage::Answered(_)))
    }

    /// A message outside the request tree: of a tree that this daemon served under another configuration, whose subscription
    /// the broker's session still has. Those who ask there are told so, and the next one goes to who serves it now.
    fn stray(&mut self, mut message: Message, link: &Link) {
        let (form, receipt) = (Form::of(message.content_type.as_deref(), &message.payload), message.receipt.take());
        let Some((root, key)) = self.options.topics.former(&message.topic) else {
            debug!("message outside the request tree");
            return receipt.iter().for_each(|receipt| link.acknowledge(receipt));
        };
        if !self.left.contains(&root) && link.unsubscribe(wire::subscriptions(&root)) {
            warn!(tree = root, "a request of a tree that is not served here any more; unsubscribed");
            self.left.push(root.clone());
        }
        let topic = match message.response_topic.take() {
            Some(topic) if self.options.topics.check_response_topic(&key.client, &topic).is_ok() => topic,
            _ => format!("{root}/res/{}/{}", key.client, key.id),
        };
        let correlation = message.correlation.take().filter(|bytes| bytes.len() <= MAX_CORRELATION);
        let address = Address { topic, correlation };
        self.refuse(&key, form, address, receipt, busy("this daemon does not serve this topic any more".into()));
    }

    fn arrived(&mut self, message: Message, link: &Link) {
        match self.options.topics.asked(&message.topic) {
            None if self.presence.heard(&self.options, &message.topic, &message.payload, link) => {}
            None if !message.retained => return self.stray(message, link),
            None => debug!("message outside the request tree"),
            Some(asked) if message.retained => warn!(?asked, "retained request ignored"),
            Some(Asked::Cancel(key)) => {
                for open in self.open.iter_mut().filter(|open| open.key == key) {
                    match &open.stage {
                        Stage::Asked(ticket) => ticket.cancel(),
                        _ => open.cancelled = true,
                    }
                }
            }
            Some(Asked::Answer(key)) => return self.request(key, message, link),
        }
        if let Some(receipt) = &message.receipt {
            link.acknowledge(receipt);
        }
    }

    fn request(&mut self, key: Key, mut message: Message, link: &Link) {
        fail_point("mqtt.arrived");
        let (key, digest) = (key.unique(fastrand::u64(..)), open::digest(&message));
        let receipt = message.receipt.take();
        let form = Form::of(message.content_type.as_deref(), &message.payload);
        let address = match self.reply_address(&key, &message) {
            Ok(address) => address,
            Err(error) => {
                let address = Address { topic: self.options.topics.response(&key), correlation: None };
                return self.refuse(&key, form, address, receipt, error.into());
            }
        };
        if let Some(open) = find(&mut self.open, &key) {
            if open.digest != digest {
                return self.refuse(&key, form, address, receipt, mismatch());
            }
            // A redelivery, or a client that repeats itself: the answer is on its way, to where it was asked for last.
            open.address = address;
            match (&open.stage, receipt) {
                // The newest receipt counts; each that is kept back takes a place of the receive maximum.
                (Stage::Admitting(..), Some(receipt)) => {
                    open.receipt.replace(receipt).iter().for_each(|older| link.acknowledge(older));
                }
                (_, receipt) => receipt.iter().for_each(|receipt| link.acknowledge(receipt)),
            }
            return;
        }
        let Message { payload, preset, .. } = message;
        let mut envelope = Envelope { form, address, preset, payload, before: Vec::new() };
        let (mut request, wire) = match open::request(&self.options, &key, &digest, &envelope) {
            Ok(parsed) => parsed,
            Err(error) => return self.refuse(&key, form, envelope.address, receipt, error.into()),
        };
        let mut room = self.room(&request);
        if matches!(&room, Err(failure) if failure.code == Code::ShuttingDown) && receipt.is_some() {
            // The broker keeps it for the next start.
            return;
        }
        let lookups = self.open.iter().filter(|open| matches!(open.stage, Stage::Admitting(_, Some(_)))).count();
        if let Err(failure) = &room
            && lookups >= MAX_LOOKUPS
        {
            return self.refuse(&key, form, envelope.address, receipt, failure.clone());
        }
        let mut lease = None;
        if let (Ok(()), Some(session)) = (&room, wire.session.clone()) {
            // What is not admitted for its session may still be a repetition, which gets its answer.
            match self.options.sessions.begin(Some(&key.client), session, said(&request), Instant::now()) {
                Ok(begun) => {
                    envelope.remember(begun.before());
                    go_on(&mut request, &begun);
                    lease = Some(begun);
                }
                Err(failure) => room = Err(failure),
            }
        }
        let limit = self.options.request_timeout.as_secs();
        let limits = [Some(limit), message.expiry_s.map(u64::from), wire.timeout_s];
        let limit = limits.into_iter().flatten().min().unwrap_or(limit);
        request.deadline = Instant::now().checked_add(Duration::from_secs(limit));
        debug!(id = key.path(), bytes = envelope.payload.len(), "request over MQTT");
        let (inbox, named) = (self.inbox.clone(), key.clone());
        let then = move |admission| inbox.tell(SpoolNews::Admitted(named, admission));
        let limit = limit.try_into().unwrap_or(u32::MAX);
        let bytes = room.is_ok().then(|| envelope.encode());
        self.spool.admit(key.path(), digest, limit, bytes, then);
        let stage = Stage::Admitting(Box::new(request), room.err());
        let wanted = self.options.wanted(&wire, &key.client);
        let mut open = Open::new(key, stage, &envelope, digest, wanted);
        (open.receipt, open.lease) = (receipt, lease);
        self.open.push(open);
    }

    /// Whether the request could wait for its turn, those counted that the spool is about to admit.
    fn room(&self, request: &Request) -> Result<(), Failure> {
        let (mut all, mut own) = (0, 0);
        for open in &self.open {
            if let Stage::Admitting(other, None) = &open.stage {
                all += 1;
                own += usize::from(other.client == request.client);
            }
        }
        if all >= MAX_ADMITTING {
            return Err(busy("the disk does not keep up with the requests".into()));
        }
        self.scheduler.admits(request, all, own)
    }

    fn reply_address(&self, key: &Key, message: &Message) -> Result<Address, InputError> {
        let correlation = message.correlation.clone();
        if let Some(bytes) = correlation.as_ref().map(Vec::len).filter(|&bytes| bytes > MAX_CORRELATION) {
            let why = format!("Correlation Data: expected at most {MAX_CORRELATION} bytes, found {bytes}");
            return Err(InputError::new("correlation_data", why));
        }
        let topic = match &message.response_topic {
            None => self.options.topics.response(key),
            Some(topic) => {
                self.options.topics.check_response_topic(&key.client, topic)?;
                topic.clone()
            }
        };
        let address = Address { topic, correlation };
        reply::check(&self.options, key, &address)?;
        Ok(address)
    }

    /// The spool has said whether it keeps a request.
    fn admitted(&mut self, key: &Key, admission: Admission, link: Option<&Link>) {
        // Under the same key there may be one that a former life left, found only now.
        let admitting = |open: &Open| open.key == *key && matches!(open.stage, Stage::Admitting(..));
        let Some(at) = self.open.iter().position(admitting) else { return };
        let mut open = self.open.remove(at);
        fail_point("mqtt.admitted");
        let Stage::Admitting(request, refusal) = std::mem::replace(&mut open.stage, Stage::Sending) else { return };
        let receipt = open.receipt.take();
        if matches!(admission, Admission::Accepted | Admission::Known) {
            if let (Some(receipt), Some(link)) = (&receipt, link) {
                link.acknowledge(receipt);
            }
            fail_point("mqtt.acknowledged");
        }
        let failure = match admission {
            Admission::Accepted => {
                return if open.cancelled {
                    self.give_up(open, Failure::new(Code::Cancelled, "the request was taken back"));
                } else {
                    self.ask(open, *request);
                };
            }
            Admission::Known => return,
            Admission::Answered(answer) => {
                info!(id = key.path(), "answered again from the spool");
                let mut entries = open::decode(&answer).unwrap_or_default();
                for entry in &mut entries {
                    (entry.topic, entry.correlation) = (open.address.topic.clone(), open.address.correlation.clone());
                }
                match entries.last_mut() {
                    Some(last) => last.receipt = receipt,
                    None => receipt.iter().zip(link).for_each(|(receipt, link)| link.acknowledge(receipt)),
                }
                let owed = entries.last().is_some_and(|last| last.receipt.is_some());
                if !self.outbox.push_refusal(entries) {
                    self.missed |= owed;
                    warn!(id = key.path(), "too many messages wait for the broker; a repeated answer is dropped");
                }
                return;
            }
            Admission::Mismatch => mismatch(),
            Admission::Full => refusal.unwrap_or_else(|| busy("the spool is full of unanswered requests".into())),
            Admission::Failed(reason) => busy(format!("the spool cannot be written: {reason}")),
        };
        self.refuse(key, open.form, open.address, receipt, failure);
    }

    /// Hands a request that is on disk to the scheduler.
    fn ask(&mut self, mut open: Open, request: Request) {
        let (spool, path) = (Arc::clone(&self.spool), open.key.path());
        let begin = move || {
            let (sender, written) = channel();
            spool.started(path, move || {
                let _ = sender.send(());
            });
            let _ = written.recv_timeout(BEGIN);
            fail_point("mqtt.started");
        };
        let inbox = self.inbox.clone();
        let wake = move || inbox.bell.notify_one();
        // It is kept for the next start when the daemon is about to end.
        if let Ok(ticket) = self.scheduler.submit_held(request, Box::new(wake), Box::new(begin)) {
            open.stage = Stage::Asked(ticket);
            self.open.push(open);
        }
    }

    /// Goes on with a request that a former life left.
    fn revive(&mut self, held: Held) {
        let Held { key: path, head, request, answer } = held;
        let Some(key) = Key::parse(&path) else { return self.spool.forget(path) };
        let open = |envelope: &Envelope, wanted| Open::new(key.clone(), Stage::Sending, envelope, head.digest, wanted);
        if let Some(entries) = answer.as_deref().and_then(open::decode) {
            let topic = entries.last().map_or_else(String::new, |entry| entry.topic.clone());
            let address = Address { topic, correlation: None };
            let open = open(&empty(address), Wanted::default());
            info!(id = path, "the answer is sent again");
            self.publish(&open.key, entries);
            return self.open.push(open);
        }
        let Some(envelope) = Envelope::decode(&request) else {
            error!(id = path, "the spool has this request in a form that this version does not know; it is given up");
            let address = Address { topic: self.options.topics.response(&key), correlation: None };
            let why =
                "another version of emberd kept this request, and this one cannot read it; send it under another id";
            return self.give_up(open(&empty(address), Wanted::default()), Failure::new(Code::Internal, why));
        };
        let parsed = open::request(&self.options, &key, &head.digest, &envelope);
        let wanted = |(_, wire): &(_, WireRequest)| self.options.wanted(wire, &key.client);
        let mut open = open(&envelope, parsed.as_ref().map_or_else(|_| Wanted::default(), wanted));
        if head.state == State::Running && head.attempts >= self.options.attempts {
            let attempts = head.attempts;
            error!(id = path, attempts, "this request was running each time the daemon died; it is given up");
            let value = json!({"client": key.client, "id": key.level(), "attempts": attempts, "at": now_s()});
            let (topic, payload) = (self.options.topics.dead(), value.to_string().into_bytes());
            self.outbox.push(Entry { topic, payload, ..Entry::default() });
            let why = format!("the daemon died {attempts} times while it ran this request");
            return self.give_up(open, Failure::new(Code::Internal, why));
        }
        let left = head.left_s(now_s());
        match parsed {
            Err(error) => self.give_up(open, error.into()),
            Ok(_) if left == 0 => {
                let failure = Failure::new(Code::Expired, "the deadline passed while the daemon was away");
                self.give_up(open, failure);
            }
            Ok((mut request, wire)) => {
                info!(id = path, attempts = head.attempts, "taken up again");
                request.deadline = Instant::now().checked_add(Duration::from_secs(left.into()));
                if let Some(session) = wire.session {
                    let (before, more) = (envelope.before(), said(&request));
                    let lease = self.options.sessions.begin_again(&key.client, session, before, more);
                    go_on(&mut request, &lease);
                    open.lease = Some(lease);
                }
                self.ask(open, request);
            }
        }
    }

    /// Sends a refusal; only then may the broker forget the request.
    fn refuse(&mut self, key: &Key, form: Form, address: Address, receipt: Option<Receipt>, failure: Failure) {
        debug!(id = key.path(), code = failure.code.name(), "refused over MQTT");
        self.scheduler.refused(&failure);
        let mut entries = reply::entries(&self.options, form, key, &address, None, &Err(failure));
        // One of QoS 0 comes no second time, whatever is done.
        let owed = receipt.is_some();
        if let Some(last) = entries.last_mut() {
            last.receipt = receipt;
        }
        if !self.outbox.push_refusal(entries) {
            self.missed |= owed;
            warn!(id = key.path(), "too many refusals wait for the broker; one is dropped");
        }
    }

    /// Takes what the tickets have: events go out, pieces are collected, ends go to the spool.
    fn collect(&mut self, link: Option<&Link>) {
        let options = &self.options;
        let event = |open: &Open, value: Value| {
            if let Some(link) = link.filter(|_| open.wanted.events) {
                link.publish_droppable(options.topics.events(&open.key), value.to_string().into_bytes());
            }
        };
        let mut ended = Vec::new();
        for (at, open) in self.open.iter_mut().enumerate() {
            let Stage::Asked(ticket) = &open.stage else { continue };
            let update = ticket.take();
            if let Some(ahead) = update.queued {
                event(open, json!({"event": "queued", "position": ahead}));
            }
            if let Some(tokens) = update.started {
                event(open, json!({"event": "started", "prompt_tokens": tokens}));
            }
            open.prefill = update.prefill.or(open.prefill);
            if open.wanted.stream {
                open.text.push_str(&update.text);
                open.thought.push_str(&update.thought);
            }
            if let Some(result) = update.ended {
                open.send_batch(options, link);
                if !kept(&result) {
                    event(open, wire::ended(&result));
                }
                ended.push((at, result));
            }
        }
        // Taken out from the back, so that the places before stay valid; answered in the order of their arrival.
        let ended: Vec<_> = ended.into_iter().rev().map(|(at, result)| (self.open.remove(at), result)).collect();
        for (open, result) in ended.into_iter().rev() {
            if kept(&result) {
                info!(id = open.key.path(), "kept for the next start");
                self.spool.taken_back(open.key.path());
            } else {
                self.finish(open, &result);
            }
        }
    }

    /// Ends a request that the scheduler does not have.
    fn give_up(&mut self, open: Open, failure: Failure) {
        self.scheduler.refused(&failure);
        self.finish(open, &Err(failure));
    }

    /// Gives the end of a request to the spool; it goes out when it is on disk.
    fn finish(&mut self, mut open: Open, result: &Result<Answer, Failure>) {
        fail_point("mqtt.ended");
        let lease = open.lease.take();
        let session = lease.as_ref().map(Lease::told);
        let entries = reply::entries(&self.options, open.form, &open.key, &open.address, session, result);
        if let (Some(lease), Ok(answer)) = (lease, result) {
            lease.answered(answer, open.key.level());
        }
        let (inbox, named) = (self.inbox.clone(), open.key.clone());
        self.spool.answered(open.key.path(), open::encode(&entries), move |_| inbox.tell(SpoolNews::Stored(named)));
        open.stage = Stage::Answered(entries);
        self.open.push(open);
    }

    /// The answer is on disk. (Or the disk takes nothing: then it goes out all the same, and the spool's thread tries on.)
    fn stored(&mut self, key: &Key) {
        fail_point("mqtt.stored");
        let answered = |open: &&mut Open| open.key == *key && matches!(open.stage, Stage::Answered(_));
        let Some(open) = self.open.iter_mut().find(answered) else { return };
        if let Stage::Answered(entries) = std::mem::replace(&mut open.stage, Stage::Sending) {
            self.publish(key, entries);
        }
    }

    /// The last entry of an answer completes its request.
    fn publish(&mut self, key: &Key, mut entries: Vec<Entry>) {
        if let Some(last) = entries.last_mut() {
            last.completes = Some(key.clone());
        }
        entries.into_iter().for_each(|entry| self.outbox.push(entry));
    }

    fn has_batch(&self) -> bool {
        self.open.iter().any(Open::has_batch)
    }

    fn send_batches(&mut self, link: &Link) {
        for open in &mut self.open {
            open.send_batch(&self.options, Some(link));
        }
    }

    /// Hands the outbox to the client as far as broker and client take it.
    fn send(&mut self, link: &Link) {
        while let Some(entry) = self.outbox.next(link.in_flight) {
            let bytes = entry.topic.len() + entry.payload.len() + entry.correlation.as_ref().map_or(0, Vec::len);
            if bytes + PACKET_OVERHEAD > link.max_packet {
                self.shrink(link);
                continue;
            }
            if !link.publish(entry) {
                return;
            }
            self.outbox.handed();
        }
    }

    /// Replaces an answer that the broker would not take (and would break the connection over) by a failure, and
    /// drops a failure that is too large itself.
    fn shrink(&mut self, link: &Link) {
        let limit = link.max_packet;
        let Some(entry) = self.outbox.discard() else { return };
        warn!(topic = entry.topic, bytes = entry.payload.len(), limit, "larger than the MQTT broker accepts");
        if let Some(receipt) = &entry.receipt {
            link.acknowledge(receipt);
        }
        let Some(key) = entry.completes else { return };
        let Some(open) = find(&mut self.open, &key) else { return };
        if entry.error.is_some() {
            return self.complete(&key);
        }
        let failure = Failure::new(Code::TooLarge, format!("the answer is larger than the broker's {limit} bytes"));
        let address = Address { topic: entry.topic, correlation: entry.correlation };
        let small = reply::entries(&self.options, open.form, &key, &address, None, &Err(failure));
        self.publish(&key, small);
    }

    fn acknowledged(&mut self, packet: u16, taken: bool, link: &Link) {
        let Some(entry) = self.outbox.acknowledged(packet) else { return };
        if !taken {
            warn!(topic = entry.topic, "the MQTT broker refuses this message; see its access rules");
        }
        if let Some(receipt) = &entry.receipt {
            link.acknowledge(receipt);
        }
        if let Some(key) = entry.completes {
            self.complete(&key);
        }
    }

    /// The broker has the answer.
    fn complete(&mut self, key: &Key) {
        fail_point("mqtt.completed");
        // One that is being admitted is a repetition of it.
        self.open.retain(|open| open.key != *key || matches!(open.stage, Stage::Admitting(..)));
        self.spool.done(key.path());
    }
}

/// Whether the request is left to the next start.
fn kept(result: &Result<Answer, Failure>) -> bool {
    matches!(result, Err(failure) if failure.code == Code::ShuttingDown)
}

fn mismatch() -> Failure {
    Failure::new(Code::DuplicateMismatch, "another request has this id and another body; choose another id")
}

fn busy(why: String) -> Failure {
    Failure { retry_after_s: Some(10), ..Failure::new(Code::Busy, why) }
}

/// The messages of a request.
fn said(request: &Request) -> Vec<Value> {
    match &request.input {
        Input::Chat { messages: Value::Array(messages), .. } => messages.clone(),
        _ => Vec::new(),
    }
}

/// Puts what is known of the session before the messages of a request.
fn go_on(request: &mut Request, lease: &Lease) {
    if let Input::Chat { messages, .. } = &mut request.input {
        *messages = lease.conversation().into();
    }
}

/// The envelope of a request that is not there to be read.
fn empty(address: Address) -> Envelope {
    Envelope { form: Form::Json, address, preset: None, payload: Vec::new(), before: Vec::new() }
}

fn find<'a>(open: &'a mut [Open], key: &Key) -> Option<&'a mut Open> {
    open.iter_mut().find(|open| open.key == *key)
}
