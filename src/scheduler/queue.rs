//! The bounded queue between the transports and the engine thread.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::counters::Counters;
use super::lock::lock;
use super::mailbox::{Reader, Reply, Update, Wake, mailbox};
use super::request::{Code, Failure, Priority, Request};

/// How often an idle engine says that it lives.
const IDLE_BEAT: Duration = Duration::from_millis(500);

/// Clients whose latest turn is remembered.
const MAX_ENDS: usize = 1024;

/// Time of an answer before one has been measured.
const FIRST_GUESS: Duration = Duration::from_secs(10);

/// Bounds of the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Requests that may wait while one is running.
    pub depth: usize,
    /// Most tokens of an answer, whatever the request asks for.
    pub max_tokens: usize,
}

/// Called on the engine thread before a request runs, which waits for it.
pub type Begin = Box<dyn FnOnce() + Send>;

/// A request on its way through the queue.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) reply: Reply,
    pub(super) begin: Option<Begin>,
    pub(super) submitted: Instant,
    number: u64,
    /// Start tag of start-time fair queueing among those of its priority, in requests: the later of the tag that is being served
    /// and the end of the client's request before (Goyal, Vin and Cheng, SIGCOMM 1996).
    tag: u64,
}

impl Job {
    fn order(&self) -> (Priority, u64, u64) {
        (self.request.priority, self.tag, self.number)
    }
}

struct State {
    /// In the order in which they will be served.
    waiting: VecDeque<Job>,
    /// Tag of the request that was served last, by priority: one that overtakes all others leaves their turns alone.
    tags: [u64; Priority::COUNT],
    /// End of each client's request that was served last, as far as it lies behind that tag.
    ends: HashMap<(Priority, String), u64>,
    running_since: Option<Instant>,
    drain_until: Option<Instant>,
    /// Moving average of what an answer takes.
    typical: Duration,
    next_number: u64,
}

/// The state that transports and engine share.
pub(super) struct Queue {
    pub(super) options: Options,
    pub(super) counters: Arc<Counters>,
    state: Mutex<State>,
    changed: Condvar,
    beats: AtomicU64,
}

impl Queue {
    pub(super) fn new(options: Options) -> Queue {
        let state = State {
            waiting: VecDeque::with_capacity(options.depth + 1),
            tags: [0; Priority::COUNT],
            ends: HashMap::new(),
            running_since: None,
            drain_until: None,
            typical: FIRST_GUESS,
            next_number: 0,
        };
        Queue {
            options,
            counters: Arc::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            beats: AtomicU64::new(0),
        }
    }

    pub(super) fn submit(queue: &Arc<Queue>, request: Request, wake: Wake) -> Result<Ticket, Failure> {
        let now = Instant::now();
        let mut state = lock(&queue.state);
        state.admits(&request, &queue.options, (0, 0), now)?;
        Ok(Self::enter(queue, &mut state, request, wake, None, now))
    }

    pub(super) fn admits(&self, request: &Request, more: usize, own: usize) -> Result<(), Failure> {
        lock(&self.state).admits(request, &self.options, (more, own), Instant::now())
    }

    pub(super) fn submit_held(
        queue: &Arc<Queue>,
        request: Request,
        wake: Wake,
        begin: Begin,
    ) -> Result<Ticket, Failure> {
        let mut state = lock(&queue.state);
        if state.drain_until.is_some() {
            return Err(shutting_down());
        }
        Ok(Self::enter(queue, &mut state, request, wake, Some(begin), Instant::now()))
    }

    fn enter(
        queue: &Arc<Queue>,
        state: &mut State,
        request: Request,
        wake: Wake,
        begin: Option<Begin>,
        now: Instant,
    ) -> Ticket {
        let (reply, reader) = mailbox(wake, &queue.counters);
        let number = state.next_number;
        state.next_number += 1;
        let tag = state.tag_for(&request);
        let job = Job { request, reply, begin, submitted: now, number, tag };
        let at = state.waiting.partition_point(|other| other.order() <= job.order());
        let ahead = at + usize::from(state.running_since.is_some());
        if ahead > 0 {
            job.reply.tell(|update| update.queued = Some(ahead));
        }
        state.waiting.insert(at, job);
        if at + 1 < state.waiting.len() {
            state.announce_positions();
        }
        queue.changed.notify_one();
        Ticket { reader, queue: Arc::clone(queue), number }
    }

    /// The next job for the engine; waits for one and calls `idle` meanwhile. `None` once the queue is drained.
    pub(super) fn next(&self, idle: &mut dyn FnMut()) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            self.beat();
            state.expire(Instant::now());
            if let Some(job) = state.waiting.pop_front() {
                state.running_since = Some(Instant::now());
                state.serve(&job);
                state.announce_positions();
                return Some(job);
            }
            if state.drain_until.is_some() {
                return None;
            }
            // Nobody waits: nobody has had more than others.
            state.ends.clear();
            let (woken, waited) = self.changed.wait_timeout(state, IDLE_BEAT).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if waited.timed_out() {
                drop(state);
                idle();
                state = lock(&self.state);
            }
        }
    }

    /// The engine is done with the job that [`Queue::next`] gave it.
    pub(super) fn done(&self) {
        let mut state = lock(&self.state);
        if let Some(since) = state.running_since.take() {
            state.typical = (state.typical * 3 + since.elapsed()) / 4;
        }
    }

    /// Called by the engine at every step: the heartbeat, and the end of those who waited too long. Whether the
    /// running job has to end because the drain's limit has passed.
    pub(super) fn tend(&self, now: Instant) -> bool {
        self.beat();
        let mut state = lock(&self.state);
        state.expire(now);
        state.drain_until.is_some_and(|limit| now >= limit)
    }

    pub(super) fn drain(&self, until: Instant) {
        let mut state = lock(&self.state);
        state.drain_until = Some(state.drain_until.map_or(until, |earlier| earlier.min(until)));
        for job in state.waiting.drain(..) {
            job.reply.end(Err(shutting_down()));
        }
        self.changed.notify_all();
    }

    pub(super) fn draining(&self) -> bool {
        lock(&self.state).drain_until.is_some()
    }

    pub(super) fn heartbeat(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    pub(super) fn load(&self) -> (usize, bool) {
        let state = lock(&self.state);
        (state.waiting.len(), state.running_since.is_some())
    }

    fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a waiting job out; a job that is already running stops by its mailbox.
    fn withdraw(&self, number: u64) {
        let mut state = lock(&self.state);
        if let Some(at) = state.waiting.iter().position(|job| job.number == number) {
            if let Some(job) = state.waiting.remove(at) {
                job.reply.end(Err(cancelled()));
            }
            state.announce_positions();
        }
    }
}

impl State {
    /// Whether there is room. A named client may not take the last quarter of the queue: a hundred requests of one
    /// leave room for those of others.
    fn admits(
        &self,
        request: &Request,
        options: &Options,
        (more, more_own): (usize, usize),
        now: Instant,
    ) -> Result<(), Failure> {
        if self.drain_until.is_some() {
            return Err(shutting_down());
        }
        let busy = |why: String| {
            let retry = self.retry_after(now);
            Failure { retry_after_s: Some(retry), ..Failure::new(Code::Busy, format!("{why}; try again in {retry} s")) }
        };
        // A running request has left `waiting`, one that is about to run has not: count both alike.
        let ahead = self.waiting.len() + more + usize::from(self.running_since.is_some());
        if ahead > options.depth {
            return Err(busy(format!("{ahead} requests are ahead, the queue is full")));
        }
        let Some(client) = &request.client else { return Ok(()) };
        let waiting = self.waiting.iter().filter(|job| job.request.client.as_ref() == Some(client)).count();
        let own = waiting + more_own;
        let share = options.depth - options.depth / 4;
        // While none runs, one of those that wait is about to.
        if own >= share + usize::from(self.running_since.is_none()) {
            return Err(busy(format!("{own} requests of this client wait, its share of the queue is {share}")));
        }
        Ok(())
    }

    /// The start tag of a request that comes now: behind those of its client that wait. What was taken back costs no turn.
    fn tag_for(&self, request: &Request) -> u64 {
        let same = |job: &&Job| job.request.priority == request.priority && job.request.client == request.client;
        let waits = self.waiting.iter().filter(same).map(|job| job.tag + 1).max().unwrap_or(0);
        let served = self.ends.get(&turn(request)).copied().unwrap_or(0);
        waits.max(served).max(self.tags[request.priority as usize])
    }

    /// Moves on to `job`, which leaves the queue to run.
    fn serve(&mut self, job: &Job) {
        let tag = &mut self.tags[job.request.priority as usize];
        *tag = job.tag.max(*tag);
        let tags = self.tags;
        self.ends.retain(|(priority, _), end| *end > tags[*priority as usize]);
        // Of clients that each come once no end passes; to forget one's turn puts it before others once.
        if self.ends.len() >= MAX_ENDS {
            self.ends.clear();
        }
        self.ends.insert(turn(&job.request), job.tag + 1);
    }

    fn announce_positions(&self) {
        let running = usize::from(self.running_since.is_some());
        for (at, job) in self.waiting.iter().enumerate() {
            job.reply.tell(|update| update.queued = Some(at + running));
        }
    }

    fn expire(&mut self, now: Instant) {
        let before = self.waiting.len();
        self.waiting.retain(|job| {
            let late = job.request.deadline.is_some_and(|deadline| now >= deadline);
            if late {
                job.reply.end(Err(expired()));
            }
            !late
        });
        if self.waiting.len() != before {
            self.announce_positions();
        }
    }

    /// Seconds until a place is likely to be free: what the running answer still takes.
    fn retry_after(&self, now: Instant) -> u64 {
        let ran = self.running_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.typical.saturating_sub(ran).as_secs().clamp(1, 3600)
    }
}

/// Whose turns a request's is one of.
fn turn(request: &Request) -> (Priority, String) {
    (request.priority, request.client.clone().unwrap_or_default())
}

pub(super) fn cancelled() -> Failure {
    Failure::new(Code::Cancelled, "the request was taken back")
}

pub(super) fn expired() -> Failure {
    Failure::new(Code::Expired, "the deadline passed before the answer was complete")
}

pub(super) fn shutting_down() -> Failure {
    Failure {
        retry_after_s: Some(10),
        ..Failure::new(Code::ShuttingDown, "the daemon is shutting down; try again later")
    }
}

/// A place in the queue and the way to its answer. Dropping it takes the request back.
pub struct Ticket {
    reader: Reader,
    queue: Arc<Queue>,
    number: u64,
}

impl Ticket {
    /// Everything that happened since the last call.
    pub fn take(&self) -> Update {
        self.reader.take()
    }

    /// Takes the request back; its end, [`Code::Cancelled`] or an answer that was quicker, still arrives.
    pub fn cancel(&self) {
        self.reader.cancel();
        self.queue.withdraw(self.number);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::{Input, Sampling};
    use super::*;

    /// Of clients that each ask once nothing stays, neither while others wait nor afterwards.
    #[test]
    fn turns_are_forgotten() {
        let queue = Arc::new(Queue::new(Options { depth: 4, max_tokens: 1 }));
        let mut tickets = VecDeque::new();
        let mut ask = |n: usize| {
            let request = Request {
                id: n.to_string(),
                client: Some(format!("client {n}")),
                priority: Priority::Normal,
                input: Input::Raw(String::new()),
                sampling: Sampling::default(),
                deadline: None,
            };
            tickets.push_back(Queue::submit(&queue, request, Box::new(|| {})).unwrap());
        };
        ask(0);
        for n in 1..3 * MAX_ENDS {
            ask(n);
            queue.next(&mut || {}).unwrap().reply.end(Err(cancelled()));
            queue.done();
            assert!((1..=MAX_ENDS).contains(&lock(&queue.state).ends.len()));
        }
        queue.next(&mut || {}).unwrap().reply.end(Err(cancelled()));
        queue.done();
        // Nobody waits: `next` does, until the drain ends it.
        let waits = Arc::clone(&queue);
        let engine = std::thread::spawn(move || waits.next(&mut || waits.drain(Instant::now())).is_none());
        assert!(engine.join().unwrap() && lock(&queue.state).ends.is_empty());
    }
}
